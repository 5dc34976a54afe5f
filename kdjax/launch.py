"""The command line: `python -m kdjax.launch --config=configs/sam_distill.py`.

--config=FILE[:VARIANT]       the experiment; --config.stages.student.optim.lr=3e-4 changes a field of it
--mode=train                  train what is not trained yet, then report (the default)
--mode=eval                   score a stage on its test images, or another file with --weights
--mode=predict                masks and overlays for a folder of images: --images=, --output=; or, for models of CAN
                              windows, alerts for a log, which may be growing: --log=FILE or --log=-
--mode=export                 a stage as files to deploy: safetensors, StableHLO, PyTorch; --output=
--mode=metrics                compare two folders of masks: --predicted=, --truth=, --output=FILE.csv
--mode=report                 make the report anew from what lies in the working directory
--list=models                 what there is: models, configs, losses, tasks, data
"""

import ast
import ctypes
import dataclasses
import os
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_type_hints

from absl import app, flags
from ml_collections import config_flags
from ml_collections.config_flags import config_flags as typed_flags
from ml_collections.config_flags import config_path

from kdjax import registry
from kdjax.config import ConfigError, Experiment, nearest
from kdjax.experiment.saved import from_json, own_names

MODES = ("train", "eval", "predict", "export", "metrics", "report")
NUMBERS = ("auto", "hex", "decimal")
LISTS = ("models", "configs", "losses", "tasks", "data")

MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
STAGE = flags.DEFINE_string("stage", "", "Only this stage (and, for training, what it needs).")
WORKDIR = flags.DEFINE_string("workdir", "", "Where everything goes; runs/NAME if left out.")
LIST = flags.DEFINE_enum("list", None, LISTS, "Print what there is, and end.")
WEIGHTS = flags.DEFINE_string("weights", "", "eval, predict, export: a file of weights instead of the stage's own.")
IMAGES = flags.DEFINE_string("images", "", "predict: the folder of images.")
LOG = flags.DEFINE_string("log", "", "predict: a CAN log, CSV or parquet; - is standard input, CSV.")
THRESHOLD = flags.DEFINE_float("threshold", None, "predict: scores above it are alerts; else the model's own.")
IDS = flags.DEFINE_enum("ids", None, NUMBERS, "predict: how the log writes ids; else as training read them.")
PAYLOAD = flags.DEFINE_enum("payload", None, NUMBERS, "predict: how the log writes payloads of eight columns.")
OUTPUT = flags.DEFINE_string(
    "output", "", "predict, export: the folder to write, for logs a .jsonl file of all windows; metrics: the CSV file."
)
PREDICTED = flags.DEFINE_string("predicted", "", "metrics: the folder of predicted masks.")
TRUTH = flags.DEFINE_string("truth", "", "metrics: the folder of true masks.")
NUM_CLASSES = flags.DEFINE_integer("num_classes", 2, "metrics: classes of the masks, background included.", 2)
EMPTY = flags.DEFINE_enum("empty", "original", ("original", "diagonal", "skip"), "metrics: how empty masks count.")
TRUST = flags.DEFINE_list("trust", [], "Modules of your own that a file may name: mypackage.models,mypackage.losses.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "Several processes: HOST:PORT of the first, or auto on a cluster.")
PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many.", 1)
PROCESS = flags.DEFINE_integer("process", None, "Several processes: which one this is, from 0.", 0)


def load(spec: str) -> Experiment:
    """The experiment of "FILE" or "FILE:VARIANT", nothing overridden."""
    path, colon, variant = spec.partition(":")
    if not Path(path).is_file():
        folder = Path(path).parent if Path(path).parent.is_dir() else Path("configs")
        raise ConfigError(f"there is no config {path!r}; {nearest(path, map(str, folder.glob('*.py')))}")
    get_config = runpy.run_path(path).get("get_config")
    if get_config is None:
        raise ConfigError(f"{path} is no config: it has no function get_config(variant='') -> Experiment")
    experiment = get_config(*[variant] * bool(colon))
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{path}: get_config must return an Experiment, found {type(experiment).__name__}")
    return experiment


NONE = Experiment(name="", stages={})
CONFIG = config_flags.DEFINE_config_dataclass("config", NONE, "The experiment: a file, or file:variant.", parse_fn=load)


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise ConfigError(f"unexpected argument {argv[1]!r}; flags are written --name=value")
    if LIST.value:
        return show_list(LIST.value)
    if MODE.value == "metrics":
        return metrics()
    _quiet()
    _keep_memory()
    if COORDINATOR.value:
        connect()
    registry.trust(*TRUST.value, *own_names(CONFIG.value))
    experiment = CONFIG.value if CONFIG.value.stages else _config_of_workdir()
    workdir = Path(WORKDIR.value or _default_workdir())
    what = {"train": train, "eval": evaluate, "predict": predict, "export": export, "report": report}
    from kdjax.experiment.run import compiling

    with compiling(quick=experiment.quick_compile):
        return what[MODE.value](experiment, workdir)


# -- what it does ----------------------------------------------------------------------------------------------------


def train(experiment: Experiment, workdir: Path) -> int:
    from kdjax.experiment import run as running
    from kdjax.report import tables
    from kdjax.train.signals import Stopped

    try:
        summary = running.run(experiment, workdir, STAGE.value)
    except Stopped:
        if _first_process():
            print(f"Stopped and saved. To go on, run the same command again:\n  {_command()}")
        return 0
    if _first_process():
        print(f"\n{tables.text(summary)}\n\nreport: {workdir / 'report.html'}")
    return 0


def evaluate(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import predict as predicting
    from kdjax.report import tables

    summary = predicting.evaluate(experiment, workdir, STAGE.value, WEIGHTS.value)
    if _first_process():
        print(f"{tables.text(summary)}\n\n{tables.results(summary)}\nalso in {workdir / predicting.RESULTS}")
    return 0


def predict(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import predict as predicting

    kind, prefix = predicting.kind_of(experiment, STAGE.value), "--mode=predict of a model of"
    of_logs = {"log": LOG.value, "threshold": THRESHOLD.value, "ids": IDS.value, "payload": PAYLOAD.value}
    given = [name for name, value in of_logs.items() if value not in ("", None)]
    if kind == "nodes":
        raise ConfigError(f"{prefix} one graph's nodes has nothing new to read; --mode=eval scores it")
    if kind == "graphs":
        if IMAGES.value or not LOG.value:
            extra = " and no --images" if IMAGES.value else ""
            raise ConfigError(f"{prefix} graphs needs --log=FILE, a CAN log, or --log=- for standard input{extra}")
        return detect(experiment, workdir)
    if given:
        raise ConfigError(f"{prefix} images knows no --{', --'.join(given)}; give it --images=FOLDER")
    if not IMAGES.value:
        raise ConfigError("--mode=predict needs --images=FOLDER, and --output=FOLDER for what it writes")
    output = Path(OUTPUT.value or workdir / "predictions")
    count = predicting.predict(experiment, workdir, STAGE.value, WEIGHTS.value, Path(IMAGES.value), output)
    print(f"masks and overlays of {count} images: {output}")
    return 0


def detect(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import watch as detecting

    options = {"output": OUTPUT.value, "threshold": THRESHOLD.value}
    options["reading"] = {k: v for k, v in (("ids", IDS.value), ("payload", PAYLOAD.value)) if v}
    print(detecting.detect(experiment, workdir, STAGE.value, WEIGHTS.value, LOG.value, **options))
    return 0


def export(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import export as exporting

    exported = exporting.export(experiment, workdir, STAGE.value, WEIGHTS.value, OUTPUT.value)
    for name, file in exported["files"].items():
        print(f"{name:25} {file['bytes']:>13,} bytes  the same as {exported['weights']}: {file['compared']}")
    print(f"{exported['folder']}, told of in {exporting.SIGNATURE}")
    return 0


def report(experiment: Experiment, workdir: Path) -> int:
    from kdjax.experiment import outcome
    from kdjax.experiment.opening import open_run
    from kdjax.report import tables

    if not (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds no run to report; train it first, or name another --workdir")
    opened = open_run(experiment, workdir)
    summary = outcome.summarise(opened)
    outcome.report(opened, summary)
    print(f"{tables.text(summary)}\n\nreport: {workdir / 'report.html'}")
    return 0


def metrics() -> int:
    from kdjax.report.metrics import segmentation as compare

    if not (PREDICTED.value and TRUTH.value):
        raise ConfigError("--mode=metrics needs --predicted=FOLDER and --truth=FOLDER")
    output = OUTPUT.value or "metrics.csv"
    summary = compare.compare_folders(PREDICTED.value, TRUTH.value, output, NUM_CLASSES.value, EMPTY.value)
    for name, value in summary["metrics"].items():
        print(f"{name:15} {value['mean']:.4f} ± {value['std']:.4f}  (n = {value['n']})")
    print(f"per image: {output}")
    return 0


def show_list(kind: str) -> int:
    """Prints the names, each with the first line of its docstring, or, for a model, of its class's docstring."""
    if kind == "configs":
        docs = {}
        for path in sorted(Path("configs").glob("*.py")):
            doc = ast.get_docstring(ast.parse(path.read_text())) or ""
            variants = runpy.run_path(str(path)).get("VARIANTS", ())
            docs |= {str(path): doc} | {f"{path}:{v}": "" for v in variants if v}
    else:
        entries = {name: registry.get(kind, name) for name in registry.names(kind)}
        if kind == "models":
            entries = {name: get_type_hints(build)["return"] for name, build in entries.items()}
        docs = {name: entry.__doc__ or "" for name, entry in entries.items()}
    width = max(map(len, docs), default=0)
    for name, doc in docs.items():
        print(f"{name:{width}}  {doc.strip().partition(chr(10))[0]}".rstrip())
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
    """runs/NAME, with the variant: configs/sam_distill.py:smoke gives runs/sam_distill-smoke."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return str(Path("runs") / "-".join(filter(None, [Path(path).stem, variant.partition("=")[0]])))


def _first_process() -> bool:
    import jax

    return jax.process_index() == 0


def _command() -> str:
    return shlex.join(["python", "-m", "kdjax.launch", *sys.argv[1:]])


def _keep_memory() -> None:
    """Tells glibc to keep what XLA frees after each step: else it goes back to the kernel, and the next step fetches it
    anew, page by page, which is a quarter of the time of a small step on a CPU."""
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, most)


def _quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from absl import logging

    logging.set_verbosity(logging.WARNING)


# -- flags, and what is wrong with them ------------------------------------------------------------------------------


def parse(argv: list[str]) -> list[str]:
    """Parses the flags; one error lists all that is wrong with the config's name and its fields."""
    if spec := _spec(argv):
        base = load(spec)
        if faults := [fault for name in _overridden(argv) if (fault := _unknown(base, name))]:
            raise ConfigError("\n".join(faults))
    elif overridden := list(_overridden(argv)):
        raise ConfigError(f"--config.{overridden[0]} changes a field of a config: give --config=FILE before it")
    try:
        return flags.FLAGS(argv)
    except typed_flags.UnsupportedOperationError as error:
        name = re.search(r"field config\.(\S+)", str(error))
        raise ConfigError(f"--config.{name[1] if name else '?'}: change the fields inside it, one by one") from error
    except flags.IllegalFlagValueError as error:
        raise ConfigError(_ill_typed(load(spec), str(error)) if spec else str(error)) from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error


def _spec(argv: list[str]) -> str:
    """The value of --config, written with "=" or as the next word."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            return value if equals else following
    return ""


def _overridden(argv: list[str]) -> Iterator[str]:
    """The fields of the config that are changed: "stages.student.optim.lr"."""
    for word in argv[1:]:
        if match := re.match(r"--?(?:no)?config\.([^=]+)", word):
            yield match[1]


def _unknown(base: Experiment, name: str) -> str:
    """What is wrong with the name of a field; "" where the config has it."""
    value: Any = base
    parts = name.split(".")
    for depth, part in enumerate(parts):
        at = ".".join(["config", *parts[:depth]])
        if value is None:
            return f"--config.{name}: {at} is None; give it a value in the file of the config"
        if not isinstance(value, dict) and not dataclasses.is_dataclass(value):
            return f"--config.{name}: {at} is {value!r} and has no fields"
        known = (
            value if isinstance(value, dict) else {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        )
        if part not in known:
            return f"--config.{name}: {at} has no field {part!r}; {nearest(part, known)}"
        value = known[part]
    return ""


def _ill_typed(base: Experiment, message: str) -> str:
    """A plainer message for a value that a field of the config cannot take."""
    match = re.match(r"flag --config\.([^=]+)=([^:]*):", message)
    if not match or _unknown(base, match[1]):
        return message
    kind = config_path.get_type(match[1], base)
    return f"--config.{match[1]}: expected {getattr(kind, '__name__', kind)}, found {match[2]!r}"


def answer(command: Callable[[], Any]) -> int:
    """The exit code of `command`: what a person can mend ends in a message, a fault of the program keeps its trace."""
    try:
        return command() or 0
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not _mendable(error):
            raise
        print(f"\nerror: {error}", file=sys.stderr)
        return 2


def _mendable(error: Exception) -> bool:
    if isinstance(error, (ConfigError, OSError)):
        return True
    from kdjax.experiment.run import GateError
    from kdjax.train.recording import Diverged
    from kdjax.weights.safetensors import WeightsError

    return isinstance(error, (GateError, Diverged, WeightsError))


if __name__ == "__main__":
    sys.exit(answer(lambda: app.run(main, flags_parser=parse)))
