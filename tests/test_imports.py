"""Who may import whom: the layers of the house, read from the source."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FOREIGN = {"torch", "torchvision", "tensorflow", "segment_anything", "transformers", "benchmarks", "tests"}
PINNED = {  # a foreign library -> the only files that may know it, and folders, which end with a slash
    "orbax": {"train/checkpoint.py"},
    "jraph": {  # what a graph is, for who makes, reads, declares, scores or writes down one
        "data/fields.py",
        "data/graphs/",
        "deploy/export.py",
        "models/graphs/",
        "models/inputs.py",
        "tasks/can/",
    },
    "tensorboardX": {"report/trackers.py"},
    "wandb": {"report/trackers.py"},
    "convert": {"deploy/export.py", "launch.py"},  # which write PyTorch's names, and start its command
}
LOWEST = {"registry", "config", "type_faults", "hub", "vocabulary"}
LAYERS = {"models.layers"}  # plain functions of arrays, such as the one way in which everything is resized
STATISTICS = {"models.statistics"}  # whether weights are built as they were trained
TRAINING = LOWEST | {"distill", "tasks", "data", "weights", "report"}
RUNNING = TRAINING | {"train"}
MAY_IMPORT = {  # besides itself; models and losses are reached through the registry
    "config": set(),
    "type_faults": set(),
    "registry": {"config", "type_faults"},
    "hub": {"config"},
    "vocabulary": set(),
    "losses": LOWEST,
    "models": LOWEST,
    "data": LOWEST,
    "weights": LOWEST,
    "report": {"config"},
    "distill": LOWEST | LAYERS | {"data", "weights", "report"},
    "tasks": LOWEST | LAYERS | {"losses", "report"},
    "train": TRAINING | LAYERS,
    "experiment": RUNNING | STATISTICS,
    "deploy": RUNNING | STATISTICS | {"experiment"},
    "command": RUNNING | {"experiment", "deploy"},
    "launch": RUNNING | {"experiment", "deploy", "command"},
}
CONVERT = LOWEST | {"models", "weights"}
STANDARD = set(sys.stdlib_module_names)


def imported(source: str, package: str = "") -> list[str]:
    """Dotted names of all imports, inside functions too; `from kdjax import data` counts as `kdjax.data`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found += [f"{module}.{alias.name}" for alias in node.names]
    return found


def layer(path: pathlib.PurePath) -> str:
    """`train/step.py` is of the layer "train", `launch.py` of "launch"."""
    return path.parts[0].removesuffix(".py")


def faults(path: pathlib.PurePath, source: str) -> list[str]:
    """What a file of the package, by its path within it, imports against the rules."""
    mine = layer(path)
    package = ".".join(["kdjax", *path.parts[:-1]])
    wrong = []
    for name in imported(source, package):
        top, *rest = name.split(".")
        if top in FOREIGN:
            wrong.append(f"{path} imports {name}: the runtime does not know {top}")
        if top in PINNED and not any(at in PINNED[top] for at in (str(path), *(f"{p}/" for p in path.parents))):
            wrong.append(f"{path} imports {name}: only {', '.join(sorted(PINNED[top]))} may")
        known = top == "kdjax" and mine in MAY_IMPORT and rest and rest[0] in MAY_IMPORT
        if known and rest[0] != mine and not {rest[0], ".".join(rest[:2])} & MAY_IMPORT[mine]:
            wrong.append(f"{path} imports {name}: {mine} may import {', '.join(sorted(MAY_IMPORT[mine])) or 'none'}")
    return wrong


def sources(folder: str) -> dict[pathlib.PurePath, str]:
    return {p.relative_to(ROOT / folder): p.read_text() for p in sorted((ROOT / folder).rglob("*.py"))}


def test_no_arrow_upward():
    found = [fault for path, source in sources("kdjax").items() for fault in faults(path, source)]
    assert not found, "\n".join(found)


def test_every_file_has_a_layer():
    layers = {layer(path) for path in sources("kdjax")} - {"__init__"}
    assert layers == set(MAY_IMPORT) & layers, f"no rule for {layers - set(MAY_IMPORT)}"


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("losses/x.py", "from kdjax.models.vision import sam", "kdjax.models.vision.sam"),
        ("models/x.py", "def f():\n    import kdjax.data.pipeline", "kdjax.data.pipeline"),
        ("data/x.py", "from kdjax import weights", "kdjax.weights"),
        ("distill/x.py", "from ..losses.logits import kl", "kdjax.losses.logits.kl"),
        ("distill/x.py", "from kdjax.models.vision import sam", "kdjax.models.vision.sam"),
        ("tasks/x.py", "from kdjax import models", "kdjax.models"),
        ("losses/x.py", "import jraph", "jraph"),
        ("data/images/x.py", "import jraph", "jraph"),
        ("report/x.py", "from .. import registry", "kdjax.registry"),
        ("tasks/x.py", "from kdjax.train.step import State", "kdjax.train.step.State"),
        ("train/x.py", "from kdjax.experiment import run as experiment", "kdjax.experiment.run"),
        ("config.py", "import kdjax.registry", "kdjax.registry"),
        ("train/loop.py", "import orbax.checkpoint", "orbax.checkpoint"),
        ("models/x.py", "if True:\n    import torch.nn as nn", "torch.nn"),
        ("launch.py", "import tensorflow", "tensorflow"),
        ("report/page.py", "import wandb", "wandb"),
        ("weights/x.py", "from convert import sam", "convert.sam"),
    ],
)
def test_a_wrong_arrow_is_seen(path, source, expected):
    (fault,) = faults(pathlib.PurePath(path), source)
    assert fault.startswith(f"{path} imports {expected}:")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("train/x.py", "from kdjax.train import lora\nfrom .step import State\nfrom kdjax.distill import terms"),
        ("train/checkpoint.py", "import orbax.checkpoint"),
        ("distill/x.py", "from kdjax.models.layers.resize import resize"),
        ("models/graphs/x.py", "import jraph"),
        ("data/fields.py", "import jraph"),
        ("tasks/x.py", "from kdjax.losses.labels import dice"),
    ],
)
def test_a_right_arrow_passes(path, source):
    assert not faults(pathlib.PurePath(path), source)


def test_the_package_itself_imports_lazily():
    tree = ast.parse((ROOT / "kdjax" / "__init__.py").read_text())
    at_once = ast.unparse(ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef)], []))
    assert not [name for name in imported(at_once, "kdjax") if name.split(".")[0] not in STANDARD]


def test_configs_know_the_words_alone():
    for path, source in sources("configs").items():
        strange = [n for n in imported(source) if not n.startswith("kdjax.config.") and n.split(".")[0] not in STANDARD]
        assert not strange, f"configs/{path} imports {strange}: a config imports kdjax.config alone"


def test_converters_know_models_and_weights_alone():
    for path, source in sources("convert").items():
        names = [n.split(".") for n in imported(source, ".".join(["convert", *path.parts[:-1]]))]
        strange = [n for n in names if n[0] == "kdjax" and (len(n) < 2 or n[1] not in CONVERT)]
        assert not strange, f"convert/{path} imports {strange}"


def test_files_are_named_after_what_is_in_them():
    parts = {part.removesuffix(".py") for path in sources("kdjax") for part in path.parts}
    assert not parts & {"utils", "util", "base", "core", "helpers", "helper", "common", "misc"}


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_the_runtime_loads_no_other_framework():
    """Every module is imported, so that no library of ours brings one in unseen."""
    modules = [".".join(["kdjax", *path.with_suffix("").parts]).removesuffix(".__init__") for path in sources("kdjax")]
    found = loaded("\n".join(f"import {module}" for module in modules))
    assert {"jax", "flax", "kdjax"} <= found
    assert not found & (FOREIGN | {"tensorboardX", "wandb"})


def test_configs_load_without_jax():
    calls = [f"import runpy; runpy.run_path({f'configs/{path}'!r})['get_config']()" for path in sources("configs")]
    assert calls
    found = loaded("\n".join(calls))
    assert "kdjax" in found
    assert not found & {"jax", "flax", "numpy", "grain", "orbax"}
