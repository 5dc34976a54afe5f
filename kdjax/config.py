"""The words an experiment is written in.

An experiment is an ordered set of named stages. A stage trains one model on one task; it distils when it names
teachers and has terms that read them. Everything here is data: no JAX, so that a config loads in milliseconds.
"""

import copy
import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional


class ConfigError(ValueError):
    """A config that cannot work: says what was expected, what was found, and what to do."""


@dataclass(slots=True, init=False)
class Model:
    """A registered model and what to build it with: `Model("tinyusfm_seg", image_size=128)`.

    An option that is None is told by the data: the number of ids, of features.
    """

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
    """One part of an objective: this endpoint of the student meets that one of a teacher, or a label; with neither of
    them it is a penalty on the student alone.

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
    over: str = ""  # the mask in the batch of what is averaged over ("nodes"); else the examples that may be read
    args: dict = field(default_factory=dict)


@dataclass(slots=True)
class Teacher:
    """A frozen model to learn from: an earlier stage, or a registered model with a file of weights.

    Where none is named it is found by the student's folder: the finished stage of another size without distillation.
    """

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
class Curriculum:
    """Trains on all attacks and a growing number of normal examples, those first that another stage finds strangest.

    To each attack come `start` normal examples at first and `end` after `warmup` epochs; more where the model is sure
    on validation data, fewer where it is not, and all that smoothed by `momentum`.
    """

    scorer: str = ""  # the stage whose anomaly says how hard an example is; "" is no curriculum
    start: float = 1.0
    end: float = 4.0
    warmup: float = 10.0
    momentum: float = 0.9
    sure: float = 0.75  # mean probability of the chosen side above which the ratio grows
    unsure: float = 0.6  # ... and below which it shrinks


@dataclass(slots=True)
class Agent:
    """How an agent learns from episodes: double Q-learning with a target network and a memory of what it did."""

    gamma: float = 0.9  # what the next reward is worth now
    explore: float = 0.2  # share of actions at random, at first
    explore_end: float = 0.01
    explore_decay: float = 0.995  # for each episode
    replay: int = 50_000  # transitions in memory
    batch_size: int = 128  # transitions that an update reads
    acts: int = 8  # actions between two updates
    target_every: int = 100  # updates between two copies of the network to its target


@dataclass(slots=True)
class Budget:
    """The batch is as large as memory allows, by the compiler's count; its size is found before training and kept."""

    bytes: int = 0  # of each device; 0 is off
    safety: float = 0.8  # the share of them that a step may take
    most: int = 1024  # examples


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
    folder: str = ""  # where it lies below the working directory: stages/NAME if left out, else as `layout` says
    init: str = ""  # "stage:NAME" or a file of weights to start from
    init_skip: tuple[str, ...] = ()  # patterns of parameters that are not taken from a file
    adopt: bool = False  # a file in `init` also says with which options the model is built
    parts: dict[str, str] = field(default_factory=dict)  # submodule -> the stage whose model it is from the start
    teachers: dict[str, Teacher] = field(default_factory=dict)
    terms: dict[str, Term] = field(default_factory=dict)  # a term named like one of the task's replaces it
    optim: Optim = field(default_factory=Optim)
    lora: Optional[Lora] = None
    gate: Optional[Gate] = None
    stop: Optional[Stop] = None
    curriculum: Optional[Curriculum] = None
    budget: Budget = field(default_factory=Budget)  # decides data.batch_size where it has bytes
    agent: Optional[Agent] = None  # for tasks that act
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


# -- reading it ------------------------------------------------------------------------------------------------------


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
    """The stages that this one starts from, learns from or is guided by."""
    start = [stage.init.removeprefix("stage:")] if stage.init.startswith("stage:") else []
    guides = [stage.curriculum.scorer] if stage.curriculum and stage.curriculum.scorer else []
    return start + [*stage.parts.values(), *guides] + [t.stage for t in stage.teachers.values() if t.stage]


def without_teachers(stage: Stage) -> Stage:
    """The control of a distilled stage: same data, labels and budget, but nothing of a teacher."""
    terms = {k: t for k, t in stage.terms.items() if not t.teacher}
    terms = terms if any(t.weight for t in terms.values()) else {}  # it heard teachers alone: now it hears the task
    title = f"{stage.title.removesuffix(', distilled')}, no teacher" if stage.title else ""
    folder = re.sub(r"(^|/)with-kd(/|$)", r"\1no-kd\2", stage.folder)
    if stage.folder and folder == stage.folder:
        folder += "_control"
    return dataclasses.replace(stage, teachers={}, terms=terms, title=title, folder=folder, grad_norms_every=0)


def layout(
    modality: str, dataset: str, learning_type: str, model: str, size: str, mode: str, *, distilled: bool = False
) -> str:
    """The folder of a stage among many others."""
    return "/".join([modality, dataset, learning_type, model, size, "with-kd" if distilled else "no-kd", mode])


def teacher_folders(folder: str) -> str:
    """A pattern of the folders in which a student in `folder` looks for its teacher; "" where it is no `layout`."""
    parts = folder.split("/")
    return "/".join([*parts[:4], "*", "no-kd", parts[6]]) if len(parts) == 7 else ""


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
            known = f.name in value or (f.default is f.default_factory is dataclasses.MISSING)
            setattr(made, f.name, _from(f.type, value[f.name]) if known else _default(f))
        return made
    return value


def _default(field: dataclasses.Field) -> Any:
    """Of a field that a config lacks which was saved before there was that field."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def own_names(value: Any) -> list[str]:
    """Every text in a config that could name code outside kdjax, "package.module:symbol"."""
    if isinstance(value, str):
        return [value] if re.fullmatch(r"[\w.]+:\w+", value) else []
    value = to_dict(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for one in inside for name in own_names(one)]


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def differences(a: Any, b: Any, at: str = "") -> list[str]:
    """Where two configs differ, a line each: "stages.student.optim.lr: 0.001 and 0.0003"."""
    a, b = to_dict(a), to_dict(b)
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(k for k in b if k not in a)]
        return [d for k in keys for d in differences(a.get(k), b.get(k), f"{at}.{k}" if at else str(k))]
    return [] if a == b else [f"{at}: {a!r} and {b!r}"]
