"""Finds everything in an experiment that cannot work, before anything is built."""

import re
import sys
import unicodedata
from typing import Any, TypeGuard

from kdjax.config import ConfigError, Experiment, Stage, Teacher, Term, nearest, task_of
from kdjax.distill.scope import PLACES, paths
from kdjax.experiment.plan import gate_faults, hears, references, teacher_folders
from kdjax.type_faults import type_faults

COLDEST = 1e-3  # temperature, below which a softmax is a maximum and its logarithm overflows
SHAPES = ("linear", "cosine", "steps")  # of a schedule


MEANT = "[]*?\\"  # characters that the libraries below take for patterns or for other folders in the name of a folder


def name_fault(folder: Any) -> str:
    """What keeps a folder from being written to under its name; "" where nothing does."""
    strange = sorted({c for c in str(folder) if c in MEANT or unicodedata.category(c) in ("Cc", "Cs")})
    if not strange:
        return ""
    found = " ".join(map(repr, strange))
    return (
        f"{str(folder)!r}: expected a path without patterns and control characters, in UTF-8, found {found}; choose "
        "another one"
    )


def validate(experiment: Experiment) -> None:
    """Raises one ConfigError that lists everything in the experiment that cannot work."""
    if sys.flags.optimize:  # Flax takes LoRA's interceptor away inside an assert: gradients of adapters would double
        raise ConfigError(
            "expected Python with its asserts, found python -O (or PYTHONOPTIMIZE), which leaves out work that Flax "
            "does in them, so that LoRA would learn twice as fast; start without -O"
        )
    if faults := type_faults(Experiment, experiment):
        raise ConfigError("the config has values of the wrong type:\n  " + "\n  ".join(faults))
    seen: list[str] = []
    if not experiment.stages:
        faults.append("stages: an experiment needs at least one stage")
    for name, stage in experiment.stages.items():
        at = f"stages.{name}"
        if not re.fullmatch(r"\w[\w.-]*", name):
            faults.append(f"{at}: a stage is named with letters, digits, '_', '-' and '.': it names a folder")
        faults += [f"{at}: {text}" for text in _stage_faults(stage, seen)]
        if name.endswith("_control"):
            faults.append(f"{at}: names that end in '_control' are taken by control runs")
        if stage.gate:
            faults += [f"{at}.{fault}" for fault in gate_faults(name, stage.gate, experiment.stages)]
            if stage.gate.otherwise == "control" and not experiment.control:
                faults.append(f"{at}.gate.otherwise='control' needs the control runs that control=False switches off")
        seen.append(name)
    if not 0 <= experiment.seed < 2**32:
        faults.append(f"seed: expected a whole number in [0, 2**32), found {experiment.seed}")
    for axis in ("data", "fsdp", "model"):
        size = getattr(experiment.mesh, axis)
        if size == 0 or size < -1:
            faults.append(f"mesh.{axis}: expected -1 or a positive number of devices, found {size}")
    if experiment.log.every < 1:
        faults.append(f"log.every: expected at least 1 step, found {experiment.log.every}")
    if experiment.log.wandb not in ("off", "offline", "online"):
        faults.append(f"log.wandb: expected off, offline or online, found {experiment.log.wandb!r}")
    if faults:
        raise ConfigError("the config cannot work:\n  " + "\n  ".join(faults))


LEAST = {  # smallest sensible value of a stage's numbers -> the fields
    0: "epochs save_every grad_norms_every data.workers data.views data.split_seed "
    "optim.warmup optim.end_lr optim.weight_decay optim.clip optim.lookahead",
    1: "data.image_size data.batch_size data.copies optim.accumulate stop.patience lora.rank",
}


def _too_small(stage: Stage) -> list[str]:
    faults = []
    for least, fields in LEAST.items():
        for path in fields.split():
            part, _, name = path.rpartition(".")
            holder = getattr(stage, part) if part else stage
            if holder is not None and getattr(holder, name) < least:
                faults.append(f"{path}: expected at least {least}, found {getattr(holder, name)}")
    return faults


def _stage_faults(stage: Stage, earlier: list[str]) -> list[str]:
    faults = _too_small(stage)
    if stage.folder and any(part in ("", ".", "..") for part in stage.folder.replace("\\", "/").split("/")):
        faults.append(f"folder: expected a path below the working directory such as 'a/b', found {stage.folder!r}")
    elif fault := name_fault(stage.folder):
        faults.append(f"folder {fault}")
    for reference in references(stage):
        if reference not in earlier:
            choice = nearest(reference, earlier)
            faults.append(f"refers to stage {reference!r}, which does not come before it; {choice}")
    for name, teacher in stage.teachers.items():
        faults += [f"teachers.{name}: {fault}" for fault in _teacher_faults(stage, teacher)]
    for name, term in stage.terms.items():
        faults += [f"terms.{name}{fault}" for fault in _term_faults(stage, term)]
    if not stage.epochs and not stage.init:
        faults.append("epochs=0 trains nothing and measures what the stage starts from: name that in init")
    if stage.gate and 0 < stage.gate.good < stage.gate.at_least:
        faults.append(f"gate.good: expected no less than at_least={stage.gate.at_least}, found {stage.gate.good}")
    data, optim = stage.data, stage.optim
    if data.batch_size % max(1, optim.accumulate):
        faults.append(f"data.batch_size {data.batch_size} must be a multiple of optim.accumulate {optim.accumulate}")
    if data.copies > 1 and (data.batch_size % data.copies or 0 < data.views < data.copies):
        faults.append(
            f"data.copies: expected a divisor of batch_size {data.batch_size}"
            f"{f' and at most views={data.views}' if data.views else ''}, found {data.copies}"
        )
    if data.copies > 1 and not any(data.augment.values()):
        faults.append(
            f"data.copies={data.copies}: nothing sets the copies of an image apart; name transforms in augment"
        )
    if not 0 < data.labelled <= 1:
        faults.append(f"data.labelled: expected a share in (0, 1], found {data.labelled}")
    if len(data.split) != 3 or min(data.split) <= 0 or abs(sum(data.split) - 1) > 1e-6:
        faults.append(f"data.split: expected three positive shares that add up to 1, found {data.split}")
    if data.num_classes is not None and data.num_classes < 2:
        faults.append(f"data.num_classes counts the background, so it is at least 2; found {data.num_classes}")
    if data.classes and data.num_classes != 1 + len(data.classes):
        named = f"{', '.join(data.classes)} and the background make {1 + len(data.classes)}"
        faults.append(f"data.classes: {named}, and data.num_classes is {data.num_classes}; set it to the same")
    if stage.budget.bytes < 0 or not 0 < stage.budget.safety <= 1:
        faults.append(f"budget: expected bytes of at least 0 and a safety in (0, 1], found {stage.budget}")
    for name in ("lr", "eps"):
        if getattr(optim, name) <= 0:
            faults.append(f"optim.{name}: expected a positive number, found {getattr(optim, name)}")
    for name in ("b1", "b2", "momentum", "ema"):
        if not 0 <= getattr(optim, name) < 1:
            faults.append(f"optim.{name}: expected a decay in [0, 1), found {getattr(optim, name)}")
    if data.mix_alpha <= 0:
        faults.append(f"data.mix_alpha: expected a positive number, found {data.mix_alpha}")
    if not 0 < optim.slow <= 1:
        faults.append(f"optim.slow: expected a share in (0, 1], found {optim.slow}")
    if stage.teachers and not any(term.weight and hears(term, stage) for term in stage.terms.values()):
        faults.append("teachers: no term that has a weight reads them; give one a weight, or leave the teachers out")
    faults += [f"task.options.{fault}" for fault in _negative(task_of(stage).options)]
    faults += [f"model.options.{fault}" for fault in _dropout_faults(stage.model.options)]
    if optim.statistics not in ("trained", "all"):
        faults.append(f"optim.statistics: expected 'trained' or 'all', found {optim.statistics!r}")
    if stage.dtype not in ("float32", "bfloat16"):
        faults.append(f"dtype: expected float32 or bfloat16, found {stage.dtype!r}")
    return faults


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _negative(options: dict[str, Any]) -> list[str]:
    weight: Any = options.get("weight")
    return [f"weight: expected at least 0, found {weight}"] if _is_number(weight) and weight < 0 else []


def _dropout_faults(options: dict[str, Any]) -> list[str]:
    """Of the options of a model, and of the models inside it."""
    faults = []
    for name, value in options.items():
        if isinstance(value, dict):
            faults += [f"{name}.{fault}" for fault in _dropout_faults(value)]
        elif "drop" in name and _is_number(value) and not 0 <= value < 1:
            faults.append(f"{name}: expected a rate in [0, 1), found {value}")
    return faults


def _teacher_faults(stage: Stage, teacher: Teacher) -> list[str]:
    file = teacher.model or teacher.weights
    kinds = {"stage": teacher.stage, "model": file, "average": teacher.average, "part": teacher.part}
    named = [kind for kind, value in kinds.items() if value]
    faults = []
    if len(named) > 1:
        faults.append(f"is one kind of source, found {' and '.join(named)}; keep one of them")
    if not named and not teacher_folders(stage.folder):
        faults.append(
            "name a stage, or a model with a file of weights; only a stage whose folder is "
            "MODALITY/DATASET/LEARNING/MODEL/SIZE/with-kd/MODE finds its teacher by itself"
        )
    if teacher.model and not teacher.weights:
        faults.append("a model needs weights=FILE, else it would teach noise")
    if teacher.average and not stage.optim.ema:
        faults.append("average=True is the running average of the student, which optim.ema=0 switches off; set a decay")
    if bool(teacher.method) != bool(teacher.reads):
        faults.append("a tail has both: method, of the model, and reads, what the method is fed with")
    if teacher.method and (teacher.average or teacher.part):
        faults.append("a tail is a method of a frozen model: name a stage, or a model with a file of weights")
    return faults


def _term_faults(stage: Stage, term: Term) -> list[str]:
    """Each begins with what of the term it is about."""
    faults = []
    if term.reads and (term.teacher or term.label or term.adapter or term.student != "logits"):
        faults.append(".reads says all that the loss reads: leave student, teacher, label and adapter out")
    if term.teacher and term.label:
        faults.append(": reads either a teacher ('name:endpoint') or a label, not both; reads={...} can name both")
    if term.teacher and not all(term.teacher.partition(":")):
        faults.append(f".teacher: expected 'teacher:endpoint', found {term.teacher!r}")
    elif term.adapter and not term.teacher:
        faults.append(".adapter: maps features to a teacher's, and the term names no teacher")
    else:
        known = [*PLACES, *stage.teachers]
        for path in [term.teacher] if term.teacher else paths(term.reads):
            place, colon, name = str(path).partition(":")
            if not (colon and name):
                faults.append(f".reads: expected a path such as 'student:logits', found {path!r}")
            elif place not in known:
                choice = nearest(place, stage.teachers if term.teacher else known)
                faults.append(f": no teacher {place!r}; {choice}")
    if term.weight < 0:
        faults.append(f".weight: expected at least 0, which leaves the term out, found {term.weight}")
    temperature: Any = term.args.get("temperature")
    if _is_number(temperature) and temperature < COLDEST:
        faults.append(
            f".args.temperature: expected a positive number (2 to 8 for logits, 0.05 to 0.5 for similarities), found "
            f"{temperature}"
        )
    schedule = term.schedule
    if schedule and min(schedule.start, schedule.end, *(value for _, value in schedule.points)) < 0:
        faults.append(".schedule: expected factors of at least 0, found a negative one")
    if schedule and schedule.shape not in SHAPES:
        faults.append(f".schedule.shape: expected {', '.join(SHAPES)}, found {schedule.shape!r}")
    if schedule and (schedule.shape == "steps") != bool(schedule.points):
        faults.append(".schedule: the shape 'steps' has points=((at, value), ...), and no other shape has")
    return faults
