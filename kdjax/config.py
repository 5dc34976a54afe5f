"""The words an experiment is written in.

An experiment is an ordered set of named stages. A stage trains one model on one task; it distils when it names
teachers and has terms that read them. Everything here is data: no JAX, so that a config loads in milliseconds.
"""

import copy
import dataclasses
import difflib
import json
import math
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional


class ConfigError(ValueError):
    """A config that cannot work: says what was expected, what was found, and what to do."""


@dataclass(slots=True, init=False)
class Model:
    """A registered model and what to build it with: `Model("tinyusfm_seg", image_size=128)`."""

    name: str
    options: dict

    def __init__(self, name: str, **options):
        self.name = name
        self.options = options


@dataclass(slots=True, init=False)
class Data:
    """Where the examples come from and how they are dealt out.

    `options` belong to the reader (`root=`, `size=`, ...); the fields below mean the same for every reader.
    """

    source: str
    options: dict
    image_size: int  # side of the square that every image is resized to
    num_classes: int  # classes of the mask, background included: 2 is binary
    batch_size: int  # over all devices
    labelled: float  # share of the training images whose labels may be used
    split: tuple[float, ...]  # train, val, test, where the data set brings no split of its own
    split_seed: int
    augment: dict[str, float]  # transform -> probability
    workers: int  # reader processes; 0 reads in threads

    def __init__(
        self,
        source: str,
        *,
        image_size: int = 224,
        num_classes: int = 2,
        batch_size: int = 8,
        labelled: float = 1.0,
        split: tuple[float, ...] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
        augment: dict[str, float] | None = None,
        workers: int = 0,
        **options,
    ):
        self.source, self.options = source, options
        self.image_size, self.num_classes, self.batch_size = image_size, num_classes, batch_size
        self.labelled, self.split, self.split_seed = labelled, split, split_seed
        self.augment, self.workers = dict(augment or {}), workers


@dataclass(slots=True)
class Schedule:
    """A factor over time: `start` until epoch `begin`, then towards `end`, which it reaches at epoch `until`."""

    shape: str = "linear"  # linear | cosine
    start: float = 0.0
    end: float = 1.0
    begin: float = 0.0
    until: float = 1.0


@dataclass(slots=True)
class Term:
    """One part of an objective: this endpoint of the student meets that one of a teacher, or a label.

    An endpoint is a name the model documents ("logits"), or, with a slash, any module by its path
    ("image_encoder/blocks_5"). A teacher's endpoint is written "teacher:endpoint".
    """

    loss: str
    student: str = "logits"
    teacher: str = ""
    label: str = ""
    adapter: str = ""  # maps the student's features to the teacher's shape; needed where their channels differ
    weight: float = 1.0
    schedule: Optional[Schedule] = None  # multiplies the weight
    args: dict = field(default_factory=dict)


@dataclass(slots=True)
class Teacher:
    """A frozen model to learn from: an earlier stage, or a registered model with a file of weights."""

    stage: str = ""
    model: Optional[Model] = None
    weights: str = ""
    dtype: str = "float32"


@dataclass(slots=True)
class Lora:
    """Low-rank adapters on every Dense whose path matches; a slice list splits a fused projection."""

    rank: int = 4
    targets: tuple[tuple[str, str], ...] = ((r".*/attn/qkv", "q_v"),)  # (path pattern, "all" | "q_v")
    scale: float = 1.0


@dataclass(slots=True)
class Optim:
    """The optimiser, its schedule in epochs, and rules `(pattern, value)`, first match wins.

    A pattern matches the whole path of a parameter: "model/...", "lora/..." or "adapters/...".
    """

    name: str = "adamw"  # adamw | adam | sgd
    lr: float = 1e-3
    schedule: str = "warmup_cosine"  # constant | warmup_cosine | warmup_poly | plateau
    warmup: float = 0.0  # epochs
    end_lr: float = 0.0
    power: float = 1.0  # of warmup_poly
    factor: float = 0.5  # of plateau: the learning rate is multiplied by it ...
    patience: int = 5  # ... after so many epochs without a lower training loss
    weight_decay: float = 0.0
    momentum: float = 0.9  # sgd
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip: float = 0.0  # largest global norm of the gradient; 0 is off
    accumulate: int = 1  # micro-batches to one step
    ema: float = 0.0  # decay of the averaged parameters that are evaluated and kept; 0 is off
    trainable: tuple[tuple[str, bool], ...] = ((r".*", True),)
    decay: tuple[tuple[str, float], ...] = ((r".*(bias|scale|pos_embed|cls_token|rel_pos_[hw])", 0.0), (r".*", 1.0))
    lr_scale: tuple[tuple[str, float], ...] = ((r".*", 1.0),)


@dataclass(slots=True)
class Gate:
    """The task's measure (Dice, for segmentation) that validation must reach before the next stage starts."""

    at_least: float = 0.0


@dataclass(slots=True)
class Stop:
    """Early stopping: after `patience` epochs that did not improve on the best by more than `min_delta`."""

    patience: int = 10
    min_delta: float = 0.0


@dataclass(slots=True, kw_only=True)
class Stage:
    task: str
    data: Data
    model: Model
    epochs: int  # passes over as many images as the training set has, labelled or not, so that budgets compare
    title: str = ""  # the row's name in the report
    init: str = ""  # "stage:NAME" or a file of weights to start from
    init_skip: tuple[str, ...] = ()  # patterns of parameters that are not taken from there
    teachers: dict[str, Teacher] = field(default_factory=dict)
    terms: dict[str, Term] = field(default_factory=dict)  # a term named like one of the task's replaces it
    optim: Optim = field(default_factory=Optim)
    lora: Optional[Lora] = None
    gate: Optional[Gate] = None
    stop: Optional[Stop] = None
    dtype: str = "float32"  # of the computation; parameters stay float32
    auxiliary: bool = False  # run only if another stage starts from it or learns from it
    save_every: int = 0  # steps between checkpoints; 0 saves at the end of each epoch
    grad_norms_every: int = 1  # epochs between measurements of each term's gradient norm; 0 is never


@dataclass(slots=True)
class Mesh:
    """Devices along each axis; -1 takes what is left. `rules` place parameters: (pattern, "fsdp" | "replicate")."""

    data: int = -1
    fsdp: int = 1
    model: int = 1
    rules: tuple[tuple[str, str], ...] = ((r".*", "fsdp"),)


@dataclass(slots=True)
class Log:
    every: int = 10  # steps between records of the training measures
    tensorboard: bool = True
    wandb: str = "off"  # off | offline | online
    project: str = "kdjax"


@dataclass(slots=True, kw_only=True)
class Experiment:
    name: str
    stages: dict[str, Stage]
    seed: int = 0
    control: bool = True  # train each distilled stage once more without its teachers
    quick_compile: bool = False  # compile in half the time and run several times slower: for trying things out
    mesh: Mesh = field(default_factory=Mesh)
    log: Log = field(default_factory=Log)

    def __post_init__(self):
        """A config may use one Data or Model for several stages; a change of one stage's must not reach the others."""
        self.stages = {name: copy.deepcopy(stage) for name, stage in self.stages.items()}


# -- checking --------------------------------------------------------------------------------------------------------


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest ones, else all."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known) or 'none'}"


def needed(experiment: Experiment) -> list[str]:
    """The stages to run, in order: auxiliary ones only where another needed stage refers to them."""
    want: set[str] = set()
    for name, stage in reversed(experiment.stages.items()):
        if not stage.auxiliary or name in want:
            want |= {name, *references(stage)}
    return [name for name in experiment.stages if name in want]


def references(stage: Stage) -> list[str]:
    """The stages that this one starts from or learns from."""
    start = [stage.init.removeprefix("stage:")] if stage.init.startswith("stage:") else []
    return start + [t.stage for t in stage.teachers.values() if t.stage]


def without_teachers(stage: Stage) -> Stage:
    """The control of a distilled stage: same data, labels and budget, but nothing of a teacher."""
    terms = {k: t for k, t in stage.terms.items() if not t.teacher}
    title = f"{stage.title.split(',')[0]}, no teacher" if stage.title else ""
    return dataclasses.replace(stage, teachers={}, terms=terms, title=title, grad_norms_every=0)


def validate(experiment: Experiment) -> None:
    """Raises one ConfigError that lists everything in the experiment that cannot work."""
    if wrong := _type_faults(Experiment, experiment):
        raise ConfigError("the config has values of the wrong type:\n  " + "\n  ".join(wrong))
    seen: list[str] = []
    if not experiment.stages:
        wrong.append("stages: an experiment needs at least one stage")
    for name, stage in experiment.stages.items():
        at = f"stages.{name}"
        wrong += [f"{at}: {text}" for text in _stage_faults(stage, seen)]
        if name.endswith("_control"):
            wrong.append(f"{at}: names that end in '_control' are taken by control runs")
        seen.append(name)
    for axis in ("data", "fsdp", "model"):
        size = getattr(experiment.mesh, axis)
        if size == 0 or size < -1:
            wrong.append(f"mesh.{axis}: expected -1 or a positive number of devices, found {size}")
    if experiment.log.every < 1:
        wrong.append(f"log.every: expected at least 1 step, found {experiment.log.every}")
    if experiment.log.wandb not in ("off", "offline", "online"):
        wrong.append(f"log.wandb: expected off, offline or online, found {experiment.log.wandb!r}")
    if wrong:
        raise ConfigError("the config cannot work:\n  " + "\n  ".join(wrong))


def _type_faults(kind: Any, value: Any, at: str = "") -> list[str]:
    """Every value under `at` that is not of the type that its field declares; a number must be a finite one."""
    origin: Any = typing.get_origin(kind) or kind
    args = typing.get_args(kind)
    if kind is Any or (origin in (typing.Union, types.UnionType) and value is None):
        return []
    if origin in (typing.Union, types.UnionType):
        return _type_faults(next(a for a in args if a is not type(None)), value, at)
    if not _is_of(origin, value):
        return [f"{at}: expected {origin.__name__}, found {value!r}"]
    if kind is float and not math.isfinite(value):
        return [f"{at}: expected a finite number, found {value}"]
    inside: dict[Any, tuple[Any, Any]] = {}
    if dataclasses.is_dataclass(kind):
        inside = {f.name: (f.type, getattr(value, f.name)) for f in dataclasses.fields(kind)}
    elif origin is dict and args:
        inside = {k: (args[1], v) for k, v in value.items()}
    elif origin is tuple and args[1:] == (...,):
        inside = {i: (args[0], v) for i, v in enumerate(value)}
    elif origin is tuple and args:
        if len(value) != len(args):
            return [f"{at}: expected {len(args)} values, found {value!r}"]
        inside = dict(enumerate(zip(args, value, strict=True)))
    return [fault for k, (t, v) in inside.items() for fault in _type_faults(t, v, f"{at}.{k}" if at else str(k))]


def _is_of(kind: Any, value: Any) -> bool:
    """In Python True is an int, and 1 is no float; here it is the other way round."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


LEAST = {  # smallest sensible value of a stage's numbers -> the fields
    0: "save_every grad_norms_every data.workers optim.warmup optim.end_lr optim.weight_decay optim.clip",
    1: "epochs data.image_size data.batch_size optim.accumulate stop.patience lora.rank",
}


def _too_small(stage: Stage) -> list[str]:
    wrong = []
    for least, paths in LEAST.items():
        for path in paths.split():
            part, _, name = path.rpartition(".")
            holder = getattr(stage, part) if part else stage
            if holder is not None and getattr(holder, name) < least:
                wrong.append(f"{path}: expected at least {least}, found {getattr(holder, name)}")
    return wrong


def _stage_faults(stage: Stage, earlier: list[str]) -> list[str]:
    wrong = _too_small(stage)
    for reference in references(stage):
        if reference not in earlier:
            wrong.append(f"refers to stage {reference!r}, which does not come before it; {nearest(reference, earlier)}")
    for name, teacher in stage.teachers.items():
        if bool(teacher.stage) == bool(teacher.model):
            wrong.append(f"teachers.{name}: name either a stage or a model, not both or neither")
        if teacher.model and not teacher.weights:
            wrong.append(f"teachers.{name}: a model needs weights=FILE, else it would teach noise")
    for name, term in stage.terms.items():
        if bool(term.teacher) == bool(term.label):
            wrong.append(f"terms.{name}: reads either a teacher ('name:endpoint') or a label, not both or neither")
        elif term.teacher:
            teacher, colon, endpoint = term.teacher.partition(":")
            if not (colon and endpoint):
                wrong.append(f"terms.{name}.teacher: expected 'teacher:endpoint', found {term.teacher!r}")
            elif teacher not in stage.teachers:
                wrong.append(f"terms.{name}: no teacher {teacher!r}; {nearest(teacher, stage.teachers)}")
        if term.schedule and term.schedule.shape not in ("linear", "cosine"):
            wrong.append(f"terms.{name}.schedule.shape: expected linear or cosine, found {term.schedule.shape!r}")
    data, optim = stage.data, stage.optim
    if data.batch_size % max(1, optim.accumulate):
        wrong.append(f"data.batch_size {data.batch_size} must be a multiple of optim.accumulate {optim.accumulate}")
    if not 0 < data.labelled <= 1:
        wrong.append(f"data.labelled: expected a share in (0, 1], found {data.labelled}")
    if len(data.split) != 3 or min(data.split) <= 0 or abs(sum(data.split) - 1) > 1e-6:
        wrong.append(f"data.split: expected three positive shares that add up to 1, found {data.split}")
    if data.num_classes < 2:
        wrong.append(f"data.num_classes counts the background, so it is at least 2; found {data.num_classes}")
    if optim.lr <= 0:
        wrong.append(f"optim.lr: expected a positive number, found {optim.lr}")
    if not 0 <= optim.ema < 1:
        wrong.append(f"optim.ema: expected a decay in [0, 1), found {optim.ema}")
    if stage.dtype not in ("float32", "bfloat16"):
        wrong.append(f"dtype: expected float32 or bfloat16, found {stage.dtype!r}")
    return wrong


# -- saving and comparing --------------------------------------------------------------------------------------------


def to_dict(value: Any) -> Any:
    """Plain dicts, lists and scalars, as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def to_json(experiment: Experiment) -> str:
    return json.dumps(to_dict(experiment), indent=1)


def from_json(text: str) -> Experiment:
    return _from(Experiment, json.loads(text))


def _from(kind: Any, value: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _from(next(a for a in args if a is not type(None)), value)
    if origin is dict:
        return {k: _from(args[1], v) for k, v in value.items()}
    if origin is tuple or kind is tuple:
        return _tuples(value)
    if dataclasses.is_dataclass(kind):
        made = object.__new__(typing.cast(type, kind))
        for f in dataclasses.fields(kind):
            setattr(made, f.name, _from(f.type, value[f.name]))
        return made
    return value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two configs differ, a line each: "stages.student.optim.lr: 0.001 and 0.0003"."""
    a, b = to_dict(a), to_dict(b)
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{at}.{k}" if at else str(k))]
    return [] if a == b else [f"{at}: {a!r} and {b!r}"]
