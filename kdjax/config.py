"""The words an experiment is written in.

An experiment is an ordered set of named stages. A stage trains one model on one task; it distils when it names
teachers and has terms that read them. Everything here is data: no JAX, so that a config loads in milliseconds.

Each docstring explains every field of its class, a line each (`--list=fields`).
"""

import copy
import dataclasses
import difflib
import functools
import inspect
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar


class ConfigError(ValueError):
    """A config that cannot work: says what was expected, what was found, and what to do."""


MIXING = ("mixup", "cutmix", "tokenmix", "mixtoken", "patchmix")  # transforms that give an example a soft target

T = TypeVar("T")


def word(kind: type[T]) -> type[T]:
    """A class of this file, whose constructor tells a wrong field in a sentence."""
    fill, signature = kind.__init__, inspect.signature(kind)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())

    @functools.wraps(fill)
    def __init__(self, *args: Any, **fields: Any) -> None:
        if strange := [] if open_ended else [name for name in fields if name not in signature.parameters]:
            known = nearest(strange[0], signature.parameters)
            raise ConfigError(f"{kind.__name__} has no field {strange[0]!r}; {known}")
        try:
            signature.bind(*args, **fields)
        except TypeError as error:
            raise ConfigError(f"{kind.__name__}: {error}") from error
        fill(self, *args, **fields)

    kind.__init__ = __init__
    return kind


@word
@dataclass(slots=True, init=False)
class Model:
    """A registered model and what to build it with: `Model("tinyusfm_seg", image_size=128)`.

    name: a registered model (`--list=models`), or one's own, "package.module:symbol"
    options: what it is built with. Those set to None are filled in from the file of weights that the stage starts from,
        else from the data, and so is `num_classes` where it is left out
    """

    name: str
    options: dict

    def __init__(self, name: str, /, **options):
        self.name = name
        self.options = options


@word
@dataclass(slots=True, init=False)
class Task:
    """A registered task and its options: `Task("segmentation")`.

    name: a registered task (`--list=tasks`), or one's own
    options: what the task leaves open, by name
    """

    name: str
    options: dict

    def __init__(self, name: str, **options):
        self.name = name
        self.options = options


@word
@dataclass(slots=True, init=False)
class Data:
    """Where the examples come from and how they are dealt out.

    source: a registered reader (`--list=data`), or one's own
    options: of the reader (`root=`, `size=`, ...); the other fields mean the same for every reader
    image_size: side of the square that every image is resized to
    num_classes: classes of the mask, background included: 2 is binary; of classified images, their classes; None is as
        many as the reader finds. Models and terms take it from here
    batch_size: rows of a step, over all devices
    labelled: share of the training images whose labels may be used
    split: shares of train, val and test, where the data set brings no split of its own
    split_seed: another one deals the examples out differently
    augment: transform (`--list=transforms`) -> probability
    classes: names of the mask's classes without the background, in the order of their values; they say num_classes too
    views: different views of each example, which then recur; 0 makes a new one in every pass
    copies: rows that each example of a batch has, every one another view of it
    workers: reader processes; 0 reads in threads
    mix_alpha: examples are mixed by shares from Beta(mix_alpha, mix_alpha): 1 is any share, less is mostly one example
    """

    source: str
    options: dict
    image_size: int
    num_classes: Optional[int]
    batch_size: int
    labelled: float
    split: tuple[float, ...]
    split_seed: int
    augment: dict[str, float]
    classes: tuple[str, ...] = ()
    views: int = 0
    copies: int = 1
    workers: int = 0
    mix_alpha: float = 1.0

    def __init__(
        self,
        source: str,
        *,
        image_size: int = 224,
        num_classes: int | None = 2,
        batch_size: int = 8,
        labelled: float = 1.0,
        split: tuple[float, ...] = (0.7, 0.15, 0.15),
        split_seed: int = 0,
        augment: dict[str, float] | None = None,
        classes: tuple[str, ...] = (),
        views: int = 0,
        copies: int = 1,
        workers: int = 0,
        mix_alpha: float = 1.0,
        **options,
    ):
        self.source, self.options, self.classes = source, options, tuple(classes)
        self.num_classes = 1 + len(classes) if classes else num_classes
        self.image_size, self.batch_size = image_size, batch_size
        self.labelled, self.split, self.split_seed = labelled, split, split_seed
        self.augment, self.views, self.copies, self.workers = dict(augment or {}), views, copies, workers
        self.mix_alpha = mix_alpha

    @property
    def mixes(self) -> bool:
        """Whether examples are mixed, and so have soft targets."""
        return any(self.augment.get(name) for name in MIXING)

    @property
    def class_count(self) -> int:
        """`num_classes`, of data that have been opened, or that say it."""
        if self.num_classes is None:
            raise ConfigError("data.num_classes=None is found when the data are opened, and they were not; say it")
        return self.num_classes


@word
@dataclass(slots=True)
class Schedule:
    """A factor over time: `start` until `begin`, then towards `end`, which it reaches at `until`.

    Time is counted in epochs, or, with `over`, in what the stage's validation has last measured ("auc").

    shape: linear | cosine | steps
    start: the factor at first
    end: the factor at last
    begin: when it begins to change
    until: when it has changed
    points: of "steps", which jumps instead: from each (at, value) on the factor is that value, and before them `start`
    over: a measure of the task; "" is the epoch
    """

    shape: str = "linear"
    start: float = 0.0
    end: float = 1.0
    begin: float = 0.0
    until: float = 1.0
    points: tuple[tuple[float, float], ...] = ()
    over: str = ""


@word
@dataclass(slots=True)
class Term:
    """One part of an objective: a loss and what it reads.

    In the short form an endpoint of the student meets that of a teacher or a label of the batch; with neither of them
    the loss is a penalty on the student alone. An endpoint is a name the model documents ("logits"), or, with a slash,
    any module by its path ("image_encoder/blocks_5"; at the top "/neck"). The short form lays student and target out
    alike, in channels (by an adapter) and in space; the long form, `reads`, hands over what there is.

    loss: a registered loss (`--list=losses`), or one's own
    student: an endpoint of the student
    teacher: an endpoint of a teacher, "teacher:endpoint"
    label: a label of the batch
    adapter: what maps the student's features to the teacher's channels where these differ, or to the teacher's grid
        (`--list=adapters`)
    weight: of the term in the sum; 0 leaves it out
    schedule: multiplies the weight
    over: the mask in the batch of what is averaged over ("nodes"); else the examples that may be read
    args: hyper-parameters of the loss
    reads: the long form: argument of the loss -> path in the scope, {"student": "student:logits", "teacher":
        "sam:logits", "labels": "batch:class"}; a tuple of paths gives the argument a tuple of arrays
    """

    loss: str
    student: str = "logits"
    teacher: str = ""
    label: str = ""
    adapter: str = ""
    weight: float = 1.0
    schedule: Optional[Schedule] = None
    over: str = ""
    args: dict = field(default_factory=dict)
    reads: dict = field(default_factory=dict)


@word
@dataclass(slots=True)
class Teacher:
    """A source of endpoints to learn from. Its parameters never receive a gradient. It is one of

    - a frozen model: an earlier stage, or a file of weights with the model that it is for. Where neither is named it is
      found by the student's folder: the finished stage of another size without distillation;
    - the running average of the student itself;
    - another part of a composed student ("peers"), whose endpoints are called "b.logits" there;
    - a tail: a method of the frozen model, such as a decoder on the student's embedding. Gradients flow through it to
      what it is fed.

    stage: an earlier stage of the experiment
    model: the model that `weights` are for; left out, it is the one that the file tells of
    weights: a file of weights, or a finished stage of another run, "WORKDIR:STAGE"
    dtype: of the teacher's computation: float32 | bfloat16
    inputs: input of the model -> field of the batch, where they differ
    average: it is the running average of the student, of decay `optim.ema`
    part: it is this part of a composed student
    method: of a tail: the method of the frozen model
    reads: of a tail: argument of the method -> path in the scope
    """

    stage: str = ""
    model: Optional[Model] = None
    weights: str = ""
    dtype: str = "float32"
    inputs: dict[str, str] = field(default_factory=dict)
    average: bool = False
    part: str = ""
    method: str = ""
    reads: dict[str, str] = field(default_factory=dict)


@word
@dataclass(slots=True)
class Lora:
    """What is learned beside every Dense whose path matches.

    rank: of the two matrices of "lora"
    targets: (path pattern, "all" | "q_v" | "k_v"); the last two split a fused projection and adapt queries and values,
        or keys and values
    scale: what the product of the two matrices is multiplied by: alpha / rank, where a method says alpha
    kind: "lora", two matrices whose product is added to the kernel; "ia3", factors of the outputs
    """

    rank: int = 4
    targets: tuple[tuple[str, str], ...] = ((r".*/attn/qkv", "q_v"),)
    scale: float = 1.0
    kind: str = "lora"


@word
@dataclass(slots=True)
class Optim:
    """The optimiser, its schedule in epochs, and rules `(pattern, value)`, first match wins.

    A pattern matches the whole path of a parameter: "model/...", "lora/...", "adapters/..." or "losses/...".

    name: adamw | adam | sgd (`--list=optimisers`)
    lr: the learning rate, at its highest
    schedule: constant | warmup_cosine | warmup_poly | onecycle | plateau
    warmup: epochs of warm-up; of onecycle, which climbs from lr / 25, 0 is 30 % of all
    end_lr: the learning rate at the end; of onecycle, 0 is lr / 250,000
    power: the exponent of warmup_poly
    factor: of plateau: the learning rate is multiplied by it ...
    patience: ... after so many epochs without a lower training loss
    over: ... or without a higher measure on validation data ("auc"), where one is named
    weight_decay: decoupled for adamw, part of the gradient for adam and sgd
    momentum: of sgd's running sum of gradients
    b1: of adam and adamw: the decay of the first moment
    b2: ... and of the second
    eps: ... and what is added to its root
    centralise: take from the gradient of each kernel the mean over the inputs of each output (arXiv 2004.01461)
    clip: largest global norm of the gradient; 0 is off
    accumulate: micro-batches to one step
    pull: how the gradient is made of the terms: their weighted "sum"; "sharpness", the sum's at the worst point within
        `radius` (SAM, arXiv 2010.01412); "separate" momenta for what teachers say and the rest, `momentum` plus and
        minus `spread` (DOT, ICCV 2023; sgd alone); "balanced", what teachers say made as long as the rest
    radius: how far "sharpness" looks
    adaptive: "sharpness" looks so many times the size of each parameter far (ASAM, arXiv 2102.11600)
    spread: how far "separate" sets the two momenta apart
    lookahead: steps after which slow parameters follow those that are trained, which go on from there (Lookahead, arXiv
        1907.08610); the slow ones are evaluated and kept, or, with `ema`, the average of the others; 0 is off
    slow: the share of the way that they follow
    ema: decay, after a warm-up, of the averaged parameters that are evaluated and kept; 0 is off
    statistics: what BatchNorm goes by while it trains: "trained", by the batch where its own parameters are trained
        and by what it remembers where they are frozen; "all", by the batch everywhere
    trainable: which parameters are trained
    decay: what the weight decay of a parameter is multiplied by
    lr_scale: what its learning rate is multiplied by
    """

    name: str = "adamw"
    lr: float = 1e-3
    schedule: str = "warmup_cosine"
    warmup: float = 0.0
    end_lr: float = 0.0
    power: float = 1.0
    factor: float = 0.5
    patience: int = 5
    over: str = ""
    weight_decay: float = 0.0
    momentum: float = 0.9
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    centralise: bool = False
    clip: float = 0.0
    accumulate: int = 1
    pull: str = "sum"
    radius: float = 0.05
    adaptive: bool = False
    spread: float = 0.075
    lookahead: int = 0
    slow: float = 0.5
    ema: float = 0.0
    statistics: str = "trained"
    trainable: tuple[tuple[str, bool], ...] = ((r".*", True),)
    decay: tuple[tuple[str, float], ...] = ((r".*(bias|scale|pos_embed|cls_token|rel_pos_[hw])", 0.0), (r".*", 1.0))
    lr_scale: tuple[tuple[str, float], ...] = ((r".*", 1.0),)


@word
@dataclass(slots=True)
class Curriculum:
    """Trains on all examples of class 1 and a growing number of class 0, those first that another stage scores highest.

    The number grows more where the model is sure on validation data, less where it is not.

    scorer: the stage whose score says how hard an example is; "" is no curriculum
    start: examples of class 0 to each of class 1 at first
    end: ... and after `warmup` epochs
    warmup: epochs from `start` to `end`
    momentum: smooths the number
    sure: mean probability of the chosen side above which the number grows
    unsure: ... and below which it shrinks
    """

    scorer: str = ""
    start: float = 1.0
    end: float = 4.0
    warmup: float = 10.0
    momentum: float = 0.9
    sure: float = 0.75
    unsure: float = 0.6


@word
@dataclass(slots=True)
class Budget:
    """The batch is as large as memory allows, by the compiler's count; its size is found before training and kept.

    bytes: of each device; 0 is off
    safety: the share of them that a step may take
    most: examples of the largest batch that is tried
    """

    bytes: int = 0
    safety: float = 0.8
    most: int = 1024


@word
@dataclass(slots=True)
class Gate:
    """The task's measure (Dice, for segmentation) that validation must reach before the next stage starts.

    at_least: the measure that is asked for
    good: from here on it is called good, and below it marginal; 0 calls it nothing
    otherwise: what happens where it is not reached: "stop"; "control" trains the stages that would learn from this one
        as their controls, without it; the name of a stage, which runs only then, trains the same model, and stands in
        for this one from then on
    """

    at_least: float = 0.0
    good: float = 0.0
    otherwise: str = "stop"


@word
@dataclass(slots=True)
class Stop:
    """Early stopping.

    patience: epochs that did not improve on the best before training ends
    min_delta: what an improvement has to exceed
    """

    patience: int = 10
    min_delta: float = 0.0


@word
@dataclass(slots=True, kw_only=True)
class Stage:
    """One model, trained on one task; it distils where it names teachers and has terms that read them.

    task: what is learned (`--list=tasks`); the name alone where it needs no options
    data: what it is learned from
    model: what learns
    epochs: passes over as many images as the training set has, labelled or not, so that budgets compare; 0 trains
        nothing and measures what `init` brings
    title: the row's name in the report
    folder: where it lies below the working directory: stages/NAME if left out, else as `layout` says
    init: the weights to start from: a file, an earlier stage, "stage:NAME", or a finished stage of another run,
        "WORKDIR:STAGE"
    init_skip: patterns of parameters that `init` and `parts` leave as new: a head of other classes
    adopt: what `init` names, a file or an earlier stage, also says with which options the model is built
    inputs: input of the model -> field of the batch, where they differ
    parts: submodule -> the stage whose model it is from the start; or weights as in `init`, which are told by a "/", a
        ":" or a name that ends in ".safetensors"
    teachers: what terms read beside the student and the batch, by names of one's own
    terms: the objective; a term named like one of the task's replaces it
    optim: how it is optimised
    lora: adapters, low-rank or factors; None trains the model itself
    gate: what its validation has to reach before the next stage; None asks for nothing
    stop: early stopping; None trains all epochs
    curriculum: which examples come first; None takes all of them
    budget: decides data.batch_size where it has bytes
    dtype: of the computation: float32 | bfloat16; parameters stay float32
    auxiliary: run only if another stage starts from it or learns from it
    save_every: steps between checkpoints; 0 saves at the end of each epoch
    grad_norms_every: epochs between measurements of each term's gradient norm; 0 is never
    """

    task: Task | str
    data: Data
    model: Model
    epochs: int
    title: str = ""
    folder: str = ""
    init: str = ""
    init_skip: tuple[str, ...] = ()
    adopt: bool = False
    inputs: dict[str, str] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, Teacher] = field(default_factory=dict)
    terms: dict[str, Term] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    lora: Optional[Lora] = None
    gate: Optional[Gate] = None
    stop: Optional[Stop] = None
    curriculum: Optional[Curriculum] = None
    budget: Budget = field(default_factory=Budget)
    dtype: str = "float32"
    auxiliary: bool = False
    save_every: int = 0
    grad_norms_every: int = 1

    def __post_init__(self):
        self.task = task_of(self)


@word
@dataclass(slots=True)
class Mesh:
    """Devices along each axis; -1 takes what is left.

    data: parts of the batch
    fsdp: parts of each parameter
    model: a third axis, along which no rule splits anything
    rules: where parameters are placed: (pattern, "fsdp" | "replicate")
    """

    data: int = -1
    fsdp: int = 1
    model: int = 1
    rules: tuple[tuple[str, str], ...] = ((r".*", "fsdp"),)


@word
@dataclass(slots=True)
class Log:
    """What is recorded while a stage trains, beside metrics.jsonl.

    every: steps between records of the training measures
    tensorboard: write TensorBoard's files
    wandb: Weights & Biases: off | offline | online
    project: its project there
    group: what its stages are grouped by there; the working directory's name if left out
    """

    every: int = 10
    tensorboard: bool = True
    wandb: str = "off"
    project: str = "kdjax"
    group: str = ""


@word
@dataclass(slots=True, kw_only=True)
class Experiment:
    """Named stages, in order.

    name: what reports call it
    stages: the stages, which may refer to those before them
    seed: of all that is drawn
    control: train each distilled stage once more without its teachers
    quick_compile: compile in half the time and run several times slower: for trying things out
    mesh: the devices
    log: what is recorded
    """

    name: str
    stages: dict[str, Stage]
    seed: int = 0
    control: bool = True
    quick_compile: bool = False
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


def raised_at(error: BaseException) -> tuple[str, int]:
    """The file and the line that an error was raised in; Python's own machinery of imports is passed over."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    return frames[-1].filename, frames[-1].lineno or 0


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
