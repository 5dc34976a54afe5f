"""Strict settings for every test: eight CPU devices, no silent rank promotion, shapes checked, no unlisted skip."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KDJAX_REFERENCE", str(pathlib.Path(__file__).parents[2] / "shared" / "reference"))

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

ALLOWED_SKIPS = ("no reference data",)

_hook = install_import_hook("kdjax", "beartype.beartype")

from kdjax import registry  # noqa: E402 - after the hook, which checks what is imported from here on

registry.trust("tests")  # what a test builds in Python was named by a person


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
