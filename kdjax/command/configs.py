"""Finding and reading configs: recipes by name, files by path, and what a working directory was made with."""

import ast
import runpy
import traceback
from pathlib import Path

import kdjax
from kdjax import config
from kdjax.config import ConfigError, Experiment, nearest, raised_at
from kdjax.experiment.saved import LOST, from_json
from kdjax.train import kept

RECIPES = Path(kdjax.__file__).parent / "configs"  # in the clone a link to its configs/


def load(spec: str) -> Experiment:
    """The experiment of "FILE", "FILE:VARIANT" or WORKDIR/config.json, nothing overridden."""
    if is_saved(spec):
        return from_json(kept.text_of(Path(spec), LOST), spec)
    name, colon, variant = spec.partition(":")
    path = find(name)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise ConfigError(f"{path} is no config: it has no function get_config(variant='') -> Experiment")
        experiment = get_config(*[variant] * bool(colon))
    except (ConfigError, ImportError) as error:
        raise _located(error, path) from error
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{path}: get_config must return an Experiment, found {type(experiment).__name__}")
    return experiment


def _located(error: Exception, path: Path) -> Exception:
    """The error with the line of the config that names a field, a module or a symbol which does not exist."""
    file, _ = raised_at(error)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if not lines or (isinstance(error, ConfigError) and file != config.__file__):
        return error
    return ConfigError(f"{path}, line {lines[-1]}: {error}")


def name_classes(experiment: Experiment, names: list[str]) -> None:
    """Names the classes of the masks of which the config leaves open how many there are."""
    left_open = [s.data for s in experiment.stages.values() if s.data.num_classes is None or s.data.classes]
    if not left_open:
        raise ConfigError("--classes names what a config leaves open with num_classes=None, and this one says it")
    for data in left_open:
        data.classes, data.num_classes = tuple(names), 1 + len(names)


def is_saved(spec: str) -> bool:
    """Whether it is what a working directory was made with, which came from a file: nobody vouches for its names."""
    return spec.endswith(".json")


def find(name: str) -> Path:
    """A file, or a recipe by its name: "sam_distill", and outside the clone "configs/sam_distill.py" too."""
    path, recipe = Path(name), RECIPES / f"{Path(name).stem}.py"
    if path.is_file():
        return path
    if recipe.is_file() and name in (path.stem, f"configs/{recipe.name}"):
        return recipe
    beside = map(str, path.parent.glob("*.py")) if path.suffix else runs(path.parent)
    raise ConfigError(f"there is no config {name!r}; {nearest(name, [*beside, *recipes()])}")


def runs(folder: Path) -> list[str]:
    """The working directories in a folder."""
    return [str(config.parent) for config in folder.glob("*/config.json")]


def recipes() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.py"))


def default_workdir(spec: str) -> Path:
    """runs/NAME, with the variant: configs/sam_distill.py:smoke gives runs/sam_distill-smoke."""
    if is_saved(spec):
        return Path(spec).parent
    path, _, variant = spec.partition(":")
    return Path("runs") / "-".join(filter(None, [Path(path).stem, variant.partition("=")[0]]))


def described() -> dict[str, str]:
    """Every recipe with its docstring, and its variants."""
    docs = {}
    for name in recipes():
        path = RECIPES / f"{name}.py"
        variants = runpy.run_path(str(path)).get("VARIANTS", ())
        docs[name] = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        docs |= {f"{name}:{variant}": "" for variant in variants if variant}
    return docs
