"""The flags of the command line, and how its words become flags."""

import re
from itertools import takewhile
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_flags as typed_flags

from kdjax.command import configs, lists
from kdjax.command.overrides import faults, ill_typed, make_room, overridden, refuse_whole
from kdjax.config import ConfigError, Experiment, nearest

MODES = ("train", "look", "eval", "predict", "export", "metrics", "report", "compare")
NUMBERS = ("auto", "hex", "decimal")
SEVERAL = ("compare",)  # modes of several working directories

MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
STAGE = flags.DEFINE_string("stage", "", "Only this stage (and, for training, what it needs).")
WORKDIR = flags.DEFINE_string("workdir", "", "Where everything goes; runs/NAME if left out.")
LIST = flags.DEFINE_enum("list", None, list(lists.KINDS), "Print what there is, and end.")
WEIGHTS = flags.DEFINE_string(
    "weights", "", "eval, predict, export: not the stage's own weights but a file, or another run's WORKDIR:STAGE."
)
DATA = flags.DEFINE_string("data", "", "eval: another labelled FOLDER, or READER:FOLDER, all of it test data.")
TTA = flags.DEFINE_list(
    "tta", [], "eval of classifiers: views that vote beside the images as they are: hflip,vflip,rot90,rot180,rot270."
)
ENSEMBLE = flags.DEFINE_list("ensemble", [], "eval of classifiers: other runs that vote too: WORKDIR or WORKDIR:STAGE.")
OUTSIDE = flags.DEFINE_string(
    "outside", "", "eval of classifiers: a FOLDER, or READER:FOLDER, of images that are of none of its classes."
)
IMAGES = flags.DEFINE_string("images", "", "predict: an image, or a folder of them.")
CAPTIONS = flags.DEFINE_string(
    "captions", "", "predict of records: a table, .jsonl or .csv, of texts and of the images that they belong to."
)
LOG = flags.DEFINE_string("log", "", "predict: a CAN log, CSV, parquet or candump -L; - is standard input.")
THRESHOLD = flags.DEFINE_float(
    "threshold", None, "predict: scores above it are alerts, images of class 1; else the model's own."
)
IDS = flags.DEFINE_enum("ids", None, NUMBERS, "predict: how the log writes ids; else as training read them.")
PAYLOAD = flags.DEFINE_enum("payload", None, NUMBERS, "predict: how the log writes payloads of eight columns.")
GRADCAM = flags.DEFINE_string(
    "gradcam",
    "",
    "predict: overlays of what speaks for an image's class, at the last map or at this endpoint or module.",
)
OF = flags.DEFINE_string("of", "", "predict: the class that --gradcam explains, by its name; else the predicted one.")
CLASSES = flags.DEFINE_list(
    "classes", [], "Names of the classes in masks, without the background, by their rising values: cyst,tumour."
)
TEACHER = flags.DEFINE_string(
    "teacher", "", "What students learn from, for recipes that take it: a name that the recipe knows, or a file."
)
OUTPUT = flags.DEFINE_string(
    "output",
    "",
    "eval of classifiers, predict, export: the folder to write, for logs a .jsonl file of all windows; metrics: the "
    "CSV file; compare: the HTML file.",
)
PREDICTED = flags.DEFINE_string("predicted", "", "metrics: the folder of predicted masks.")
TRUTH = flags.DEFINE_string("truth", "", "metrics: the folder of true masks.")
NUM_CLASSES = flags.DEFINE_integer("num_classes", 2, "metrics: classes of the masks, background included.", 2)
EMPTY = flags.DEFINE_enum("empty", "original", ("original", "diagonal", "skip"), "metrics: how empty masks count.")
TRUST = flags.DEFINE_list("trust", [], "Modules of your own that a file may name: mypackage.models,mypackage.losses.")
COORDINATOR = flags.DEFINE_string("coordinator", "", "Several processes: HOST:PORT of the first, or auto on a cluster.")
PROCESSES = flags.DEFINE_integer("processes", None, "Several processes: how many.", 1)
PROCESS = flags.DEFINE_integer("process", None, "Several processes: which one this is, from 0.", 0)


ARGV: list[str] = []  # the command as flags alone, once it is parsed: its overrides are read from here


def _read(spec: str) -> Experiment:
    return make_room(configs.load(spec), ARGV)


NONE = Experiment(name="", stages={})
CONFIG = config_flags.DEFINE_config_dataclass(
    "config",
    NONE,
    "The experiment: a recipe or a file, or one of its variants, NAME:VARIANT.",
    parse_fn=_read,
    sys_argv=ARGV,
)
flags.FLAGS.set_gnu_getopt()  # so that words may stand between flags


def help_text() -> str:
    return re.sub(r"\n\s+\(default: '(Experiment\(.*?\))?'\)", "", flags.FLAGS.module_help(__name__), flags=re.DOTALL)


def parse(argv: list[str]) -> list[str]:
    """Parses words and flags; one error lists all that is wrong with the config's name and its fields.

    Returns what is left of the words, the command's name first.
    """
    ARGV[:] = argv = taught(completed(spelt_out(valued(argv))))
    spec = value_of("config", argv)
    if spec:
        if wrong := faults(configs.load(spec), argv):
            raise ConfigError("\n".join(wrong))
    elif fields := [name for name, _ in overridden(argv)]:
        raise ConfigError(f"--config.{fields[0]} changes a field of a config: give --config=FILE before it")
    try:
        return flags.FLAGS(argv)
    except typed_flags.UnsupportedOperationError as error:
        raise refuse_whole(str(error)) from error
    except flags.IllegalFlagValueError as error:
        raise ConfigError(ill_typed(_read(spec), str(error)) if spec else str(error)) from error
    except flags.Error as error:
        raise ConfigError(str(error)) from error


def spelt_out(argv: list[str]) -> list[str]:
    """`kdjax train sam_distill --stage=teacher` in flags alone: --mode=train --config=sam_distill --stage=teacher.

    A folder stands for a working directory, anything else for a config.
    """
    words = list(takewhile(lambda word: not word.startswith("-"), argv[1:]))
    if not words:
        return argv
    (mode, *subjects), rest = words, argv[1 + len(words) :]
    if mode not in (*MODES, "list"):
        raise ConfigError(f"there is no command {mode!r}; {nearest(mode, [*MODES, 'list', 'convert'])}")
    if mode == "list":
        return [argv[0], f"--list={' '.join(subjects)}", *rest]
    if mode in SEVERAL:
        return [argv[0], f"--mode={mode}", *subjects, *rest]
    named = [f"--{'workdir' if Path(word).is_dir() else 'config'}={word}" for word in subjects]
    if len(named) > 1:
        raise ConfigError(f"unexpected argument {subjects[1]!r}; flags are written --name=value")
    return [argv[0], f"--mode={mode}", *named, *rest]


def valued(argv: list[str]) -> list[str]:
    """With the value of a flag that may be given without one: the layer is then the last map."""
    return ["--gradcam=last" if word in ("--gradcam", "-gradcam") else word for word in argv]


def completed(argv: list[str]) -> list[str]:
    """With the config that the working directory was made with, where no other is given."""
    saved = Path(value_of("workdir", argv), "config.json")
    if value_of("config", argv) or not value_of("workdir", argv) or not saved.is_file():
        return argv
    return [argv[0], f"--config={saved}", *argv[1:]]


def taught(argv: list[str]) -> list[str]:
    """`--config=FILE:VARIANT --teacher=NAME` as `--config=FILE:VARIANT,teacher=NAME`, which is what a recipe reads."""
    teacher, spec = value_of("teacher", argv), value_of("config", argv)
    if not teacher:
        return argv
    if not spec or configs.is_saved(spec):
        raise ConfigError("--teacher says what a recipe learns from: give it together with --config=RECIPE")
    named = f"{spec},teacher={teacher}" if ":" in spec else f"{spec}:teacher={teacher}"
    return [f"--config={named}" if word == f"--config={spec}" else named if word == spec else word for word in argv]


def value_of(flag: str, argv: list[str]) -> str:
    """The value of a flag, written with "=" or as the next word; "" where it is not given."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = word.partition("=")
        if name in (f"--{flag}", f"-{flag}"):
            return value if equals else following
    return ""


def spec() -> str:
    """What --config was given."""
    return config_flags.get_config_filename(flags.FLAGS["config"]) if CONFIG.value.stages else ""
