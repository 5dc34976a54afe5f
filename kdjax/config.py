"""The words an experiment is written in.

An experiment is an ordered set of named stages. A stage trains one model on one task; it distils when it names
teachers and has terms that read them. Everything here is data: no JAX, so that a config loads in milliseconds.
"""

import copy
import dataclasses
import difflib
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
    """A registered model and what to build it with: `Model("tinyusfm_seg", image_size=128)`.

    Options set to None are filled in from the file of weights that the stage starts from, else from the data.
    """

    name: str
    options: dict

    def __init__(self, name: str, /, **options):
        self.name = name
        self.options = options


@dataclass(slots=True, init=False)
class Task:
    """A registered task and its options: `Task("segmentation")`."""

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
    views: int = 0  # different views of each example, which then recur; 0 makes a new one in every pass
    workers: int = 0  # reader processes; 0 reads in threads

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
        views: int = 0,
        workers: int = 0,
        **options,
    ):
        self.source, self.options = source, options
        self.image_size, self.num_classes, self.batch_size = image_size, num_classes, batch_size
        self.labelled, self.split, self.split_seed = labelled, split, split_seed
        self.augment, self.views, self.workers = dict(augment or {}), views, workers


@dataclass(slots=True)
class Schedule:
    """A factor over time: `start` until `begin`, then towards `end`, which it reaches at `until`.

    Time is counted in epochs, or, with `over`, in what the stage's validation has last measured ("auc"). The shape
    "steps" jumps instead: from each (at, value) of `points` on the factor is that value, and before them `start`.
    """

    shape: str = "linear"  # linear | cosine | steps
    start: float = 0.0
    end: float = 1.0
    begin: float = 0.0
    until: float = 1.0
    points: tuple[tuple[float, float], ...] = ()
    over: str = ""  # a measure of the task; "" is the epoch


@dataclass(slots=True)
class Term:
    """One part of an objective: a loss and what it reads.

    In the short form an endpoint of the student meets that of a teacher ("teacher:endpoint") or a label of the batch;
    with neither of them the loss is a penalty on the student alone. An endpoint is a name the model documents
    ("logits"), or, with a slash, any module by its path ("image_encoder/blocks_5").

    The long form, `reads`, names a path in the scope for each argument of the loss: {"student": "student:logits",
    "teacher": "sam:logits", "labels": "batch:class"}; a tuple of paths gives the argument a tuple of arrays. The short
    form lays student and target out alike, in channels (by an adapter) and in space; `reads` hands over what there is.
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
    reads: dict = field(default_factory=dict)  # argument of the loss -> path, or a tuple of paths


@dataclass(slots=True)
class Teacher:
    """A source of endpoints to learn from. Its parameters never receive a gradient. It is one of

    - a frozen model: an earlier stage, or a registered model with a file of weights. Where neither is named it is
      found by the student's folder: the finished stage of another size without distillation;
    - `average=True`: the running average of the student itself, of decay `optim.ema`;
    - `part="b"`: another part of a composed student ("peers"), whose endpoints are called "b.logits" there;
    - a tail, `method="decode"`: a method of the frozen model, fed with what `reads` names in the scope, such as a
      decoder on the student's embedding. Gradients flow through it to what it is fed.
    """

    stage: str = ""
    model: Optional[Model] = None
    weights: str = ""
    dtype: str = "float32"
    inputs: dict[str, str] = field(default_factory=dict)  # input of the model -> field of the batch, where they differ
    average: bool = False
    part: str = ""
    method: str = ""
    reads: dict[str, str] = field(default_factory=dict)  # argument of the method -> path


@dataclass(slots=True)
class Lora:
    """Low-rank adapters on every Dense whose path matches; a slice list splits a fused projection."""

    rank: int = 4
    targets: tuple[tuple[str, str], ...] = ((r".*/attn/qkv", "q_v"),)  # (path pattern, "all" | "q_v")
    scale: float = 1.0


@dataclass(slots=True)
class Optim:
    """The optimiser, its schedule in epochs, and rules `(pattern, value)`, first match wins.

    A pattern matches the whole path of a parameter: "model/...", "lora/...", "adapters/..." or "losses/...".

    `pull` says how the gradient is made of the terms: their weighted "sum"; "sharpness", the sum's at the worst point
    within `radius` (SAM, arXiv 2010.01412); "separate" momenta for what teachers say and the rest, `momentum` plus and
    minus `spread` (DOT, ICCV 2023; sgd alone); "balanced", what teachers say made as long as the rest.
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
    pull: str = "sum"  # sum | sharpness | separate | balanced
    radius: float = 0.05  # of "sharpness"
    spread: float = 0.075  # of "separate"
    ema: float = 0.0  # decay of the averaged parameters that are evaluated and kept; 0 is off
    trainable: tuple[tuple[str, bool], ...] = ((r".*", True),)
    decay: tuple[tuple[str, float], ...] = ((r".*(bias|scale|pos_embed|cls_token|rel_pos_[hw])", 0.0), (r".*", 1.0))
    lr_scale: tuple[tuple[str, float], ...] = ((r".*", 1.0),)


@dataclass(slots=True)
class Curriculum:
    """Trains on all examples of class 1 and a growing number of class 0, those first that another stage scores highest.

    To each of class 1 come `start` of class 0 at first and `end` after `warmup` epochs; more where the model is sure
    on validation data, fewer where it is not, and all that smoothed by `momentum`.
    """

    scorer: str = ""  # the stage whose score says how hard an example is; "" is no curriculum
    start: float = 1.0
    end: float = 4.0
    warmup: float = 10.0
    momentum: float = 0.9
    sure: float = 0.75  # mean probability of the chosen side above which the ratio grows
    unsure: float = 0.6  # ... and below which it shrinks


@dataclass(slots=True)
class Budget:
    """The batch is as large as memory allows, by the compiler's count; its size is found before training and kept."""

    bytes: int = 0  # of each device; 0 is off
    safety: float = 0.8  # the share of them that a step may take
    most: int = 1024  # examples


@dataclass(slots=True)
class Gate:
    """The task's measure (Dice, for segmentation) that validation must reach before the next stage starts.

    Where it does not, the run stops; with `otherwise="control"` the stages that would learn from this one train as
    their controls, without it; with the name of a stage, that one runs next and stands in for this one from then on.
    It has to train the same model, and runs only then.
    """

    at_least: float = 0.0
    otherwise: str = "stop"  # stop | control | the name of a stage


@dataclass(slots=True)
class Stop:
    """Early stopping: after `patience` epochs that did not improve on the best by more than `min_delta`."""

    patience: int = 10
    min_delta: float = 0.0


@dataclass(slots=True, kw_only=True)
class Stage:
    task: Task | str  # the name alone where it needs no options; made a Task
    data: Data
    model: Model
    epochs: int  # passes over as many images as the training set has, labelled or not, so that budgets compare
    title: str = ""  # the row's name in the report
    folder: str = ""  # where it lies below the working directory: stages/NAME if left out, else as `layout` says
    init: str = ""  # "stage:NAME" or a file of weights to start from
    init_skip: tuple[str, ...] = ()  # patterns of parameters that are not taken from a file
    adopt: bool = False  # a file in `init` also says with which options the model is built
    inputs: dict[str, str] = field(default_factory=dict)  # input of the model -> field of the batch, where they differ
    parts: dict[str, str] = field(default_factory=dict)  # submodule -> the stage whose model it is from the start
    teachers: dict[str, Teacher] = field(default_factory=dict)
    terms: dict[str, Term] = field(default_factory=dict)  # a term named like one of the task's replaces it
    optim: Optim = field(default_factory=Optim)
    lora: Optional[Lora] = None
    gate: Optional[Gate] = None
    stop: Optional[Stop] = None
    curriculum: Optional[Curriculum] = None
    budget: Budget = field(default_factory=Budget)  # decides data.batch_size where it has bytes
    dtype: str = "float32"  # of the computation; parameters stay float32
    auxiliary: bool = False  # run only if another stage starts from it or learns from it
    save_every: int = 0  # steps between checkpoints; 0 saves at the end of each epoch
    grad_norms_every: int = 1  # epochs between measurements of each term's gradient norm; 0 is never

    def __post_init__(self):
        self.task = task_of(self)


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


def task_of(stage: Stage) -> Task:
    return stage.task if isinstance(stage.task, Task) else Task(stage.task)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest ones, else all."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(known) or 'none'}"


def layout(
    modality: str, dataset: str, learning_type: str, model: str, size: str, mode: str, *, distilled: bool = False
) -> str:
    """The folder of a stage among many others."""
    return "/".join([modality, dataset, learning_type, model, size, "with-kd" if distilled else "no-kd", mode])


def to_dict(value: Any) -> Any:
    """Plain dicts, lists and scalars, as JSON has them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: to_dict(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_dict(v) for v in value]
    return value


def type_faults(kind: Any, value: Any, at: str = "") -> list[str]:
    """Every value under `at` that is not of the type that its field declares; a number must be a finite one."""
    origin: Any = typing.get_origin(kind) or kind
    args = typing.get_args(kind)
    if kind is Any:
        return []
    if origin in (typing.Union, types.UnionType):
        several = [type_faults(one, value, at) for one in args]
        own = [faults for one, faults in zip(args, several, strict=True) if one is not type(None)]
        return [] if [] in several else own[0] if len(own) == 1 else [f"{at}: expected {_said(kind)}, found {value!r}"]
    if not _is_of(origin, value):
        return [f"{at}: expected {_said(kind)}, found {value!r}"]
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
    return [fault for k, (t, v) in inside.items() for fault in type_faults(t, v, f"{at}.{k}" if at else str(k))]


def _said(kind: Any) -> str:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return " or ".join(_said(one) for one in typing.get_args(kind))
    return str(kind) if typing.get_args(kind) else kind.__name__


def _is_of(kind: Any, value: Any) -> bool:
    """As isinstance, except that True does not pass for an int and an int passes for a float."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)
