"""What in an experiment cannot work, told all at once, before anything is built."""

import dataclasses
import math
import re
import types
import typing
from typing import Any

from kdjax.config import ConfigError, Experiment, Stage, nearest, references, teacher_folders


def validate(experiment: Experiment) -> None:
    """Raises one ConfigError that lists everything in the experiment that cannot work."""
    if wrong := _type_faults(Experiment, experiment):
        raise ConfigError("the config has values of the wrong type:\n  " + "\n  ".join(wrong))
    seen: list[str] = []
    if not experiment.stages:
        wrong.append("stages: an experiment needs at least one stage")
    for name, stage in experiment.stages.items():
        at = f"stages.{name}"
        if not re.fullmatch(r"\w[\w.-]*", name):
            wrong.append(f"{at}: a stage is named with letters, digits, '_', '-' and '.': it names a folder")
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
    if stage.folder and any(part in ("", ".", "..") for part in stage.folder.replace("\\", "/").split("/")):
        wrong.append(f"folder: expected a path below the working directory such as 'a/b', found {stage.folder!r}")
    for reference in references(stage):
        if reference not in earlier:
            wrong.append(f"refers to stage {reference!r}, which does not come before it; {nearest(reference, earlier)}")
    if stage.agent is not None and stage.teachers:
        wrong.append(
            "teachers: an agent is not distilled, it reads models that are: name teachers in the stages of its parts "
            f"({', '.join(stage.parts.values())}), and none here"
        )
    for name, teacher in stage.teachers.items():
        if teacher.stage and teacher.model:
            wrong.append(f"teachers.{name}: name either a stage or a model, not both")
        if not teacher.stage and not teacher.model and not teacher_folders(stage.folder):
            wrong.append(
                f"teachers.{name}: name a stage, or a model with a file of weights; only a stage whose folder is "
                "MODALITY/DATASET/LEARNING/MODEL/SIZE/with-kd/MODE finds its teacher by itself"
            )
        if teacher.model and not teacher.weights:
            wrong.append(f"teachers.{name}: a model needs weights=FILE, else it would teach noise")
    for name, term in stage.terms.items():
        if term.teacher and term.label:
            wrong.append(f"terms.{name}: reads either a teacher ('name:endpoint') or a label, not both")
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
    if stage.budget.bytes < 0 or not 0 < stage.budget.safety <= 1:
        wrong.append(f"budget: expected bytes of at least 0 and a safety in (0, 1], found {stage.budget}")
    if optim.lr <= 0:
        wrong.append(f"optim.lr: expected a positive number, found {optim.lr}")
    if not 0 <= optim.ema < 1:
        wrong.append(f"optim.ema: expected a decay in [0, 1), found {optim.ema}")
    if stage.dtype not in ("float32", "bfloat16"):
        wrong.append(f"dtype: expected float32 or bfloat16, found {stage.dtype!r}")
    return wrong
