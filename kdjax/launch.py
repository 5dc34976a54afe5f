"""The command line: `python -m kdjax.launch --config=configs/sam_distill.py`.

    --config=FILE[:VARIANT]       the experiment; --config.stages.student.optim.lr=3e-4 changes a field of it
    --mode=train                  train what is not trained yet, then report (the default)
    --mode=eval                   score a stage on its test images, or another file with --weights
    --mode=predict                masks and overlays for a folder of images: --images=, --output=
    --mode=metrics                compare two folders of masks: --predicted=, --truth=, --output=FILE.csv
    --mode=report                 make the report anew from what lies in the working directory
    --list=models                 what there is: models, configs, losses, tasks, data
"""

import os
import sys
import time
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from kdjax.config import ConfigError, Experiment, from_json, nearest

BEGAN = time.monotonic()
MODES = ("train", "eval", "predict", "metrics", "report")
LISTS = ("models", "configs", "losses", "tasks", "data")

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment: a file, or file:variant.", lock_config=False)
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
STAGE = flags.DEFINE_string("stage", "", "Only this stage (and, for training, what it needs).")
WORKDIR = flags.DEFINE_string("workdir", "", "Where everything goes; runs/NAME if left out.")
LIST = flags.DEFINE_enum("list", None, LISTS, "Print what there is, and end.")
WEIGHTS = flags.DEFINE_string("weights", "", "eval, predict: a file of weights instead of the stage's own.")
IMAGES = flags.DEFINE_string("images", "", "predict: the folder of images.")
OUTPUT = flags.DEFINE_string("output", "", "predict: the folder for masks and overlays; metrics: the CSV file.")
PREDICTED = flags.DEFINE_string("predicted", "", "metrics: the folder of predicted masks.")
TRUTH = flags.DEFINE_string("truth", "", "metrics: the folder of true masks.")
NUM_CLASSES = flags.DEFINE_integer("num_classes", 2, "metrics: classes of the masks, background included.", 2)
EMPTY = flags.DEFINE_enum("empty", "original", ("original", "diagonal", "skip"), "metrics: how empty masks count.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "Several processes: HOST:PORT of the first, or auto on a cluster.")
PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many.", 1)
PROCESS = flags.DEFINE_integer("process", None, "Several processes: which one this is, from 0.", 0)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    if LIST.value:
        return show_list(LIST.value)
    if MODE.value == "metrics":
        return metrics()
    _quiet()
    if COORDINATOR.value:
        connect()
    experiment = CONFIG.value or _config_of_workdir()
    workdir = Path(WORKDIR.value or _default_workdir())
    return {"train": train, "eval": evaluate, "predict": predict, "report": report}[MODE.value](experiment, workdir)


def train(experiment: Experiment, workdir: Path) -> int:
    from kdjax import experiment as running
    from kdjax.report import tables
    from kdjax.train.loop import Stopped

    try:
        summary = running.run(experiment, workdir, STAGE.value)
    except Stopped:
        print(f"Stopped and saved. To go on, run the same command again:\n  {_command()}")
        return 0
    if _first_process():
        print(f"\n{tables.text(summary)}\n\nreport: {workdir / 'report.html'}")
    return 0


def evaluate(experiment: Experiment, workdir: Path) -> int:
    from kdjax import predict as predicting
    from kdjax.report import tables

    summary = predicting.evaluate(experiment, workdir, STAGE.value, WEIGHTS.value)
    print(tables.results(summary))
    return 0


def predict(experiment: Experiment, workdir: Path) -> int:
    from kdjax import predict as predicting

    if not IMAGES.value:
        raise ConfigError("--mode=predict needs --images=FOLDER, and --output=FOLDER for what it writes")
    output = Path(OUTPUT.value or workdir / "predictions")
    count = predicting.predict(experiment, workdir, STAGE.value, WEIGHTS.value, Path(IMAGES.value), output)
    print(f"{count} masks and overlays in {output}")
    return 0


def report(experiment: Experiment, workdir: Path) -> int:
    from kdjax import experiment as running
    from kdjax.report import tables

    made = running.open_run(experiment, workdir)
    summary = running.summarise(made, running.told_seconds(workdir))
    running.report(made, summary)
    print(f"{tables.text(summary)}\n\nreport: {workdir / 'report.html'}")
    return 0


def metrics() -> int:
    from kdjax.report import metrics as compare

    if not (PREDICTED.value and TRUTH.value):
        raise ConfigError("--mode=metrics needs --predicted=FOLDER and --truth=FOLDER")
    output = OUTPUT.value or "metrics.csv"
    found = compare.compare_folders(PREDICTED.value, TRUTH.value, output, NUM_CLASSES.value, EMPTY.value)
    for name, value in found["metrics"].items():
        print(f"{name:15} {value['mean']:.4f} ± {value['std']:.4f}  (n = {value['n']})")
    print(f"per image: {output}")
    return 0


def show_list(kind: str) -> int:
    from kdjax import registry

    if kind == "configs":
        for path in sorted(Path("configs").glob("*.py")):
            first = path.read_text().split('"""')[1].strip().splitlines()[0]
            print(f"{path}  {first}")
        return 0
    print("\n".join(registry.names(kind)))
    return 0


def connect() -> None:
    """Joins the other processes; `auto` asks the cluster (SLURM, Open MPI, TPU pods) for the rest."""
    import jax

    if COORDINATOR.value == "auto":
        jax.distributed.initialize()
        return
    if PROCESSES.value is None or PROCESS.value is None:
        raise ConfigError("--coordinator=HOST:PORT needs --processes=N and --process=I (0 on that host)")
    jax.distributed.initialize(COORDINATOR.value, PROCESSES.value, PROCESS.value)


def _config_of_workdir() -> Experiment:
    saved = Path(WORKDIR.value) / "config.json"
    if not WORKDIR.value or not saved.exists():
        raise ConfigError("give --config=FILE (see --list=configs), or the --workdir of a run that began")
    return from_json(saved.read_text())


def _default_workdir() -> str:
    """runs/NAME, with the variant: --config=configs/sam_distill.py:smoke gives runs/sam_distill-smoke."""
    spec = next(a.split("=", 1)[-1] for a in sys.argv if a.lstrip("-").startswith("config="))
    path, _, variant = spec.partition(":")
    return str(Path("runs") / "-".join(filter(None, [Path(path).stem, variant.replace("/", "_")])))


def _first_process() -> bool:
    import jax

    return jax.process_index() == 0


def _command() -> str:
    return " ".join(["python -m kdjax.launch", *sys.argv[1:]])


def _quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from absl import logging

    logging.set_verbosity(logging.WARNING)


def _parse(argv: list[str]) -> list[str]:
    """Flags, with the nearest name where a field of the config does not exist."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise ConfigError(str(error)) from error
    except (KeyError, AttributeError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(_unknown_field(argv) or f"the flags cannot be read: {error}") from error


def _unknown_field(argv: list[str]) -> str:
    """Which override names a field that the config does not have."""
    import dataclasses

    spec = next((a.split("=", 1)[1] for a in argv if a.lstrip("-").startswith("config=")), "")
    holder = flags.FLAGS["config"]
    del holder
    if not spec:
        return "--config.FIELD=VALUE needs --config=FILE"
    path, _, variant = spec.partition(":")
    if not Path(path).exists():
        known = [str(p) for p in sorted(Path(path).parent.glob("*.py"))]
        return f"there is no config {path!r}; {nearest(path, known)}"
    scope: dict = {}
    exec(compile(Path(path).read_text(), path, "exec"), scope)
    base = scope["get_config"](variant) if variant else scope["get_config"]()
    for argument in argv:
        name = argument.lstrip("-").split("=", 1)[0]
        if not name.startswith("config."):
            continue
        value, seen = base, "config"
        for part in name.split(".")[1:]:
            names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
            names = list(value) if isinstance(value, dict) else names
            if part not in names:
                return f"{argument}: {seen} has no field {part!r}; {nearest(part, names)}"
            value = value[part] if isinstance(value, dict) else getattr(value, part)
            seen += f".{part}"
    return ""


def entry() -> None:
    """What the user did wrong ends in a message and exit code 2, not in a trace."""
    try:
        app.run(main, flags_parser=_parse)
    except (ConfigError, RuntimeError, OSError) as error:
        if not getattr(error, "__kdjax__", isinstance(error, ConfigError)) and os.environ.get("KDJAX_TRACE"):
            raise
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    entry()
