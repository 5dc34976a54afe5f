"""The working directory of a run: where files lie, which run owns it, and how files are written."""

import os
from dataclasses import dataclass
from pathlib import Path

import jax

from kdjax.config import ConfigError, Experiment, Stage
from kdjax.experiment.plan import standing_in
from kdjax.experiment.saved import differences, from_json, refuse_other_edition, to_json
from kdjax.train.setup import Learner
from kdjax.weights import safetensors

MAY_CHANGE = ("mesh.", "log.", "quick_compile")  # of a config between two starts


@dataclass
class Run:
    """An experiment with all its stages checked, and the folder that it lives in."""

    experiment: Experiment
    folder: Path
    learners: dict[str, Learner]  # controls included, in order
    files: dict[str, dict]  # weights from outside, by path

    def stand_in(self, absent: str, present: str) -> None:
        """From here on, whatever refers to one stage means the other, which trains the same model."""
        for learner in self.learners.values():
            if learner.name != present:
                learner.stage = standing_in(learner.stage, absent, present)

    def folder_of(self, stage: str) -> Path:
        return stage_folder(self.folder, stage, self.learners[stage].stage)

    def weights(self, stage: str) -> dict:
        """The variables that a finished stage left."""
        path = self.folder_of(stage) / "model.safetensors"
        if not path.exists():
            raise ConfigError(f"stage {stage!r} has no {path} yet; run it first with --stage={stage}")
        return safetensors.load(path)[0]

    def init(self, stage: Stage) -> dict[str, dict]:
        """What a stage is from the start, by submodule; "" is all of it."""
        inside = {part: self.weights(source) for _, source, part in stages_inside(stage)}
        return inside | ({"": self.files[stage.init]} if stage.init in self.files else {})

    def teachers(self, stage: Stage) -> dict[str, dict]:
        """The variables of the frozen teachers."""
        frozen = {key: t for key, t in stage.teachers.items() if t.stage or t.weights}
        return {key: self.weights(t.stage) if t.stage else self.files[t.weights] for key, t in frozen.items()}


def stages_inside(stage: Stage) -> list[tuple[str, str, str]]:
    """(where in the config, stage, submodule) of each stage whose model a stage is from the start; "" is all of it."""
    start = [("init", stage.init.removeprefix("stage:"), "")] if stage.init.startswith("stage:") else []
    return start + [(f"parts.{part}", source, part) for part, source in stage.parts.items()]


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


def write(path: Path, text: str) -> None:
    """A whole file or none."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def claim(folder: Path, experiment: Experiment) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0 and not (folder / "config.json").exists():
        write(folder / "config.json", to_json(experiment))


def check_owner(folder: Path, experiment: Experiment) -> None:
    """Refuses a folder that holds another experiment; the mesh and the log may change between restarts."""
    if not (folder / "config.json").exists():
        return
    text = (folder / "config.json").read_text()
    refuse_other_edition(text, folder)
    changes = [d for d in differences(from_json(text), experiment) if not d.startswith(MAY_CHANGE)]
    if changes:
        shown = "\n  ".join(changes[:10] + ([f"and {len(changes) - 10} more"] if len(changes) > 10 else []))
        raise ConfigError(
            f"{folder} belongs to another config (there, and now):\n  {shown}\n"
            "Choose another --workdir, or give the config it was made with."
        )
