"""What of a config may change between two starts of a run: how it is run, and how long its stages train."""

from dataclasses import replace
from pathlib import Path

from kdjax.config import ConfigError, Experiment, Stage
from kdjax.experiment.plan import references, with_controls
from kdjax.experiment.saved import differences, from_json, refuse_other_edition
from kdjax.experiment.workdir import is_finished, result_of, stage_folder

RUNNING = ("mesh", "log", "quick_compile")  # of an experiment: how it is run
ENDING = ("epochs", "stop", "gate")  # of a stage: when it ends, and what follows
SPREAD = ("warmup_cosine", "warmup_poly")  # schedules of the learning rate that depend on the number of epochs


def check_owner(folder: Path, experiment: Experiment) -> None:
    """Refuses a folder that holds another experiment, or stages that cannot train on as they are asked to."""
    if not (folder / "config.json").exists():
        return
    text = (folder / "config.json").read_text()
    refuse_other_edition(text, folder)
    before = from_json(text)
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
    stages = with_controls(experiment)
    earlier = with_controls(before)
    if faults := [fault for name in stages for fault in extension_faults(folder, name, earlier[name], stages)]:
        raise ConfigError(f"{folder} cannot be gone on with:\n  " + "\n  ".join(faults))


def extension_faults(folder: Path, name: str, before: Stage, stages: dict[str, Stage]) -> list[str]:
    """What keeps a stage that has begun from training as long as it is asked to now."""
    stage, place = stages[name], stage_folder(folder, name, stages[name])
    if not has_begun(place):
        return []
    faults, at, result = [], f"stages.{name}.epochs", result_of(place)
    change = f"{at}: {before.epochs} and now {stage.epochs}"
    if stage.epochs < before.epochs:
        faults.append(f"{change}: a stage that has begun can be made longer alone; choose another --workdir")
    if stage.epochs > before.epochs and stage.optim.schedule in SPREAD:
        faults.append(
            f"{change}: optim.schedule={stage.optim.schedule!r} spreads the learning rate over all epochs, so those "
            "that are done would have been other ones. Start from what is trained, in another --workdir: "
            f"--config.stages.{name}.init={folder}:{name}"
        )
    if result and not is_finished(result, stage):
        if not any((place / "checkpoints").glob("*")):
            faults.append(f"{change}: the checkpoint to go on from is gone from {place}; choose another --workdir")
        for other in stages:
            if name in references(stages[other]) and has_begun(stage_folder(folder, other, stages[other])):
                faults.append(
                    f"stages.{name}: stage {other!r} has already used what it was; choose another --workdir, with "
                    f"--config.stages.{name}.init={folder}:{name}"
                )
    return faults


def has_begun(place: Path) -> bool:
    return (place / "result.json").exists() or any((place / "checkpoints").glob("*"))
