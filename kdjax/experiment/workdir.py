"""The working directory of a run: where files lie, how far its stages are, and who is at work in it."""

from dataclasses import dataclass
from pathlib import Path

import jax

from kdjax.config import ConfigError, Experiment, Stage, nearest
from kdjax.experiment.plan import is_file, standing_in, with_controls
from kdjax.experiment.saved import LOST, from_json, to_json
from kdjax.report.trackers import METRICS
from kdjax.train import kept
from kdjax.train.recording import Record
from kdjax.train.setup import Learner
from kdjax.weights import safetensors

MODEL, RESULT, CONFIG = "model.safetensors", "result.json", "config.json"
LASTING = (MODEL, "test.npz", "test.csv", "maps.npz")  # what a finished stage leaves, and what can be made of it again


@dataclass
class Run:
    """An experiment with all its stages checked, and the folder that it lives in."""

    experiment: Experiment
    folder: Path
    learners: dict[str, Learner]  # controls included, in order
    files: dict[str, dict]  # weights from outside, by path
    warnings: list[str]  # of what works, and may still be wrong

    def stand_in(self, absent: str, present: str) -> None:
        """From here on, whatever refers to one stage means the other, which trains the same model."""
        for learner in self.learners.values():
            if learner.name != present:
                learner.stage = standing_in(learner.stage, absent, present)

    def folder_of(self, stage: str) -> Path:
        return stage_folder(self.folder, stage, self.learners[stage].stage)

    def finished(self, stage: str) -> dict | None:
        """The result of a stage that has nothing left to train, and of whose files none is gone."""
        place = self.folder_of(stage)
        result = result_of(place)
        return result if is_finished(result, self.learners[stage].stage) and not gone(place, result) else None

    def weights(self, stage: str) -> dict:
        """The variables that a finished stage left."""
        path = self.folder_of(stage) / MODEL
        if not path.exists():
            raise ConfigError(f"stage {stage!r} has no {path} yet; run it first with --stage={stage}")
        return safetensors.load(as_left(path))[0]

    def init(self, stage: Stage) -> dict[str, dict]:
        """What a stage is from the start, by submodule; "" is all of it."""
        from_files = {part: self.files[path] for _, path, part in files_inside(stage)}
        return from_files | {part: self.weights(source) for _, source, part in stages_inside(stage)}

    def teachers(self, stage: Stage) -> dict[str, dict]:
        """The variables of the frozen teachers."""
        frozen = {key: t for key, t in stage.teachers.items() if t.stage or t.weights}
        return {key: self.weights(t.stage) if t.stage else self.files[t.weights] for key, t in frozen.items()}


def stages_inside(stage: Stage) -> list[tuple[str, str, str]]:
    """(where in the config, stage, submodule) of each stage whose model a stage is from the start; "" is all of it."""
    start = [("init", stage.init.removeprefix("stage:"), "")] if stage.init.startswith("stage:") else []
    return start + [(f"parts.{part}", source, part) for part, source in stage.parts.items() if not is_file(source)]


def files_inside(stage: Stage) -> list[tuple[str, str, str]]:
    """(where in the config, file, submodule) of each file of weights that a stage starts from."""
    start = [("init", stage.init, "")] if stage.init and not stage.init.startswith("stage:") else []
    return start + [(f"parts.{part}", path, part) for part, path in stage.parts.items() if is_file(path)]


def stage_folder(folder: Path, name: str, stage: Stage) -> Path:
    """Below the working directory, and refused where a link leads out of it: files are written and deleted there."""
    path = folder / (stage.folder or f"stages/{name}")
    for inside in (path, path / "checkpoints"):
        if not inside.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(
                f"{inside}: expected a folder below {folder}, found a way out of it, {inside.resolve()}; "
                "remove the link, or choose another --workdir"
            )
    return path


def claim(folder: Path, experiment: Experiment) -> None:
    """Keeps the config in the folder, as it is now."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / CONFIG, to_json(experiment)
    if jax.process_index() == 0 and not (path.exists() and path.read_bytes() == text.encode()):
        kept.write(path, text)


def config_of(folder: Path) -> str | None:
    """The config that a run was made with: the folder's, or, where that is gone, the one that a stage began with."""
    path = folder / CONFIG
    if not path.exists() and (beside := sorted(folder.glob(f"*/**/{CONFIG}"), key=lambda copy: copy.stat().st_mtime)):
        path = beside[-1]
    return kept.text_of(path, LOST) if path.exists() else None


def weights_file(place: str) -> str:
    """A file of weights as it is; of "WORKDIR:STAGE", a finished stage of another run, the file that it left."""
    folder, colon, name = place.rpartition(":")
    if not colon or Path(place).expanduser().exists() or not Path(folder).expanduser().is_dir():
        if place:
            as_left(Path(place).expanduser())
        return place
    other = Path(folder).expanduser()
    if (text := config_of(other)) is None:
        raise ConfigError(f"{place}: expected WORKDIR:STAGE, found no config.json in {folder}, which so holds no run")
    stages = with_controls(from_json(text, other / CONFIG))
    if name not in stages:
        raise ConfigError(f"{place}: the run has no stage {name!r}; {nearest(name, stages)}")
    path = stage_folder(other, name, stages[name]) / MODEL
    if not path.exists():
        raise ConfigError(f"{place}: stage {name!r} of that run has not finished; train it first")
    return str(as_left(path))


def result_of(place: Path) -> dict | None:
    """What a stage in this folder came to, when it last finished."""
    path = place / RESULT
    if not path.exists():
        return None
    return kept.read_json(path, "remove it and run the same command again: the stage is tested anew")


def keep_result(place: Path, result: dict) -> None:
    """With the checksums of all that the stage leaves behind."""
    others = [path.name for path in place.glob("*.json") if path.name not in (RESULT, CONFIG)]  # how logs are read
    others += [path.name for path in place.glob("best_*")]
    noted = kept.checksums(place, [*LASTING, METRICS, *others])
    kept.write_json(place / RESULT, {**result, kept.CHECKSUMS: noted})


def forget_result(place: Path, stage: Stage) -> None:
    """Before a stage goes on: one that trains longer will leave other files; one that lost files is finished anew."""
    if (result := result_of(place)) is None:
        return
    if is_finished(result, stage):
        (place / RESULT).unlink()
    else:
        kept.write_json(place / RESULT, {k: v for k, v in result.items() if k != kept.CHECKSUMS})


def gone(place: Path, result: dict | None) -> list[str]:
    """The files of a finished stage that are no longer there, and can be made again from its best epoch."""
    noted = (result or {}).get(kept.CHECKSUMS, {MODEL: ""})
    made_again = [name for name in noted if name != METRICS and not name.startswith("best_")]
    return [name for name in made_again if not (place / name).exists()]


def fault(path: Path) -> str:
    """How a file of a finished stage differs from what the stage left; "" where nothing says what that was."""
    try:
        noted = (result_of(path.parent) or {}).get(kept.CHECKSUMS, {})
    except kept.Damaged:  # who reads the result says so; a file may also lie beside a result.json that is no run's
        return ""
    return kept.fault(path, noted[path.name]) if path.name in noted else ""


def damage(place: Path) -> list[str]:
    """What a finished stage left of which its model does not depend, and that is not as it was."""
    noted = (result_of(place) or {}).get(kept.CHECKSUMS, {})
    faults = {name: kept.fault(place / name, checksum) for name, checksum in noted.items() if name != MODEL}
    return [
        f"{text}; the model is not touched by it"
        + ("" if name == METRICS or name.startswith("best_") else ", and where the file is removed it is made anew")
        for name, text in faults.items()
        if text
    ]


def as_left(path: Path) -> Path:
    """The file, refused where its stage left another."""
    if text := fault(path):
        raise kept.Damaged(
            f"{text}; put back what the stage left, or remove the file and train the run again, which makes it anew "
            "from the stage's best epoch"
        )
    return path


def is_finished(result: dict | None, stage: Stage) -> bool:
    """Whether that is all that the stage is asked for now."""
    if result is None:
        return False
    return Record({}, epochs=result["epochs"], best_epoch=result["best_epoch"]).is_over(stage.epochs, stage.stop)


def has_begun(place: Path) -> bool:
    return (place / RESULT).exists() or any((place / "checkpoints").glob("*"))
