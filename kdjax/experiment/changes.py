"""What of a config may change between two starts of a run: how it is run, and how long its stages train."""

from dataclasses import replace
from pathlib import Path

from kdjax.config import ConfigError, Experiment, Stage
from kdjax.experiment.plan import references, with_controls
from kdjax.experiment.saved import differences, from_json, refuse_other_edition
from kdjax.experiment.workdir import CONFIG, RESULT, config_of, gone, has_begun, is_finished, result_of, stage_folder

RUNNING = ("mesh", "log", "quick_compile")  # of an experiment: how it is run
ENDING = ("epochs", "stop", "gate")  # of a stage: when it ends, and what follows
SPREAD = (
    "onecycle",
    "warmup_cosine",
    "warmup_poly",
)  # schedules of the learning rate that depend on the number of epochs


def check_owner(folder: Path, experiment: Experiment) -> None:
    """Refuses a folder that holds another experiment, or stages that cannot train on as they are asked to."""
    if (text := config_of(folder)) is None:
        return
    refuse_other_edition(text, folder)
    before = from_json(text, folder / CONFIG)
    same_end = {
        name: replace(stage, **{field: getattr(before.stages[name], field) for field in ENDING})
        for name, stage in experiment.stages.items()
        if name in before.stages
    }
    alike = {"stages": experiment.stages | same_end, **{field: getattr(before, field) for field in RUNNING}}
    if changes := differences(before, replace(experiment, **alike)):
        shown = "\n  ".join(changes[:10] + ([f"and {len(changes) - 10} more"] if len(changes) > 10 else []))
        raise ConfigError(
            f"{folder} belongs to another config (there, and now):\n  {shown}\n"
            "Choose another --workdir, or give the config it was made with."
        )
    faults = extension_faults(folder, with_controls(before), with_controls(experiment))
    if faults:
        raise ConfigError(f"{folder} cannot be gone on with:\n  " + "\n  ".join(faults))


def extension_faults(folder: Path, before: dict[str, Stage], stages: dict[str, Stage]) -> list[str]:
    """What keeps stages that have begun from training as long as they are asked to now, once for a student and its
    control."""
    faults: dict[str, str] = {}
    for name, stage in stages.items():
        place = stage_folder(folder, name, stage)
        if has_begun(place) and (reason := longer_fault(folder, name, before[name], stages)):
            field = name.removesuffix("_control")
            finished = (place / RESULT).exists()
            start = (
                f", and start from what is trained: --config.stages.{field}.init={folder}:{name}" if finished else ""
            )
            faults.setdefault(field, f"stages.{field}: {reason}; choose another --workdir{start}")
        if has_begun(place) and (reason := lost_fault(place, stage)):
            faults.setdefault(name, f"stages.{name}: {reason}")
    return list(faults.values())


def longer_fault(folder: Path, name: str, before: Stage, stages: dict[str, Stage]) -> str:
    """What keeps a stage that has begun from training longer."""
    stage, place = stages[name], stage_folder(folder, name, stages[name])
    change = f"epochs: {before.epochs} and now {stage.epochs}"
    if stage.epochs < before.epochs:
        return f"{change}: a stage that has begun can be made longer alone"
    if stage.epochs > before.epochs and stage.optim.schedule in SPREAD:
        return (
            f"{change}: optim.schedule={stage.optim.schedule!r} spreads the learning rate over all epochs, and those "
            "that are done would have been other ones"
        )
    result = result_of(place)
    if result is None or is_finished(result, stage):
        return ""
    if not any((place / "checkpoints").glob("*")):
        return f"{change}: the checkpoint to go on from is gone from {place}"
    users = [k for k, s in stages.items() if name in references(s) and has_begun(stage_folder(folder, k, s))]
    return f"{change}: stage {users[0]!r} has already used what it was" if users else ""


def lost_fault(place: Path, stage: Stage) -> str:
    """What keeps a finished stage from making files again that are gone."""
    lost = gone(place, result := result_of(place))
    if not lost or not stage.epochs or not is_finished(result, stage) or any((place / "checkpoints").glob("*")):
        return ""
    return (
        f"it is finished, but {' and '.join(lost)} of {place} are gone, and so are the checkpoints that they would be "
        f"made from; put them back, or remove {place / RESULT} to train the stage again"
    )
