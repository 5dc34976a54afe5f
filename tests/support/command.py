"""The command line, run in this process, and the smallest experiment that it can run."""

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from absl import logging
from absl.testing import flagsaver

import kdjax.experiment.run  # noqa: F401 - the libraries it brings define flags, which must outlive a command
from kdjax import launch
from kdjax.command.flags import CONFIG
from kdjax.config import Experiment

TINY = """
from kdjax.config import Data, Experiment, Model, Stage, Teacher, Term

MODEL = {"dim": 16, "heads": 2, "depth": 2, "taps": (0, 0, 1, 1), "neck_dim": 8, "head_dim": 8, "dropout": 0.0}


def get_config(variant=""):
    data = Data("ultrasound", image_size=32, batch_size=8, size=32, train=16, val=8, test=11)
    model = Model("tinyusfm_seg", image_size=32, **MODEL)
    teacher = Stage(task="segmentation", data=data, model=model, epochs=1)
    terms = {"kl": Term("binary_kl", teacher="big:logits", args={"temperature": 4.0})}
    taught = {"teachers": {"big": Teacher("teacher")}, "terms": terms}
    student = Stage(task="segmentation", data=data, model=model, epochs=1, **taught)
    return Experiment(name="tiny", stages={"teacher": teacher, "student": student})
"""


class Ended(NamedTuple):
    code: int
    out: str
    error: str


def command(*flags: object) -> Ended:
    """`python -m kdjax.launch FLAGS`, without the start of a new process."""
    argv = ["kdjax.launch", *map(str, flags)]
    out, error, verbosity = io.StringIO(), io.StringIO(), logging.get_verbosity()
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(error),
    ):
        try:
            code = launch.answer(lambda: launch.main(launch.parse(argv)))
        finally:
            logging.set_verbosity(verbosity)
    return Ended(code, out.getvalue(), error.getvalue())


def parsed(*flags: object) -> Experiment:
    """The experiment as the command sees it."""
    argv = ["kdjax.launch", *map(str, flags)]
    with flagsaver.flagsaver(), mock.patch.object(sys, "argv", argv):
        launch.parse(argv)
        return CONFIG.value


def tiny(folder: Path) -> Path:
    """The file of a config of two stages, a teacher and a student, that train in a few steps."""
    path = folder / "tiny.py"
    path.write_text(TINY)
    return path


def refused(ended: Ended, *said: str) -> None:
    """A clean message with all of `said`, exit code 2, and no trace."""
    assert ended.code == 2, ended
    assert ended.error.startswith("\nerror: "), ended.error
    assert "Traceback" not in ended.error
    for text in said:
        assert text in ended.error, ended.error
