"""Strict settings for every test: eight CPU devices, no silent rank promotion, shapes checked, no unlisted skip."""

import gc
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("KDJAX_REFERENCE", str(pathlib.Path(__file__).parents[2] / "shared" / "reference"))

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# transformers imports torchvision where it is installed, and beside a CPU's PyTorch PyPI's cannot be imported.
sys.modules["torchvision"] = None  # type: ignore[assignment]

ALLOWED_SKIPS = ("no reference data",)

_hook = install_import_hook("kdjax", "beartype.beartype")

from kdjax import registry  # noqa: E402 - after the hook, which checks what is imported from here on

registry.trust("tests")  # what a test builds in Python was named by a person


gc.collect()
gc.freeze()  # what is imported stays; collections that look through it again and again took a fifteenth of the time
gc.set_threshold(50_000, 20, 20)


QUICK = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"  # a third of the suite was compiling


def pytest_configure(config):
    """Programs are compiled quickly, but for the long tests as users have them; and what is compiled is kept, for all
    workers, for the processes that tests start and for the next run."""
    if "not long" in config.option.markexpr and jax.__version_info__ < (0, 11):  # XLA ends on a flag that it lacks
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(config.cache.mkdir("xla")))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What a file has compiled is let go after its long tests: kept, it came to 9 GB in a worker."""
    if item.config.option.markexpr == "long" and (nextitem is None or nextitem.path != item.path):
        jax.clear_caches()
        gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(allowed in reason for allowed in ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"skipped for a reason that is not on the list: {reason}"
    return report


@pytest.fixture(scope="session")
def reference() -> pathlib.Path:
    """The folder of real weights and data, where there is one."""
    path = pathlib.Path(os.environ["KDJAX_REFERENCE"])
    if not path.is_dir():
        pytest.skip("no reference data")
    return path
