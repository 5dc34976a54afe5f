"""Weights that meet images: what their running statistics say is told wherever the two come together."""

import pytest
from PIL import Image

from kdjax.config import Data, Experiment, Log, Model, Stage, Task
from kdjax.data import pipeline
from kdjax.experiment import run as running
from kdjax.experiment.doubts import doubts
from kdjax.experiment.opening import open_run
from kdjax.experiment.outcome import summarise
from kdjax.report import page
from kdjax.weights import safetensors
from tests.models.test_statistics import SIZE, declared, trained
from tests.support.command import command

DATA = Data("forgeries", size=SIZE, image_size=SIZE, train=8, val=8, test=8, batch_size=8)


@pytest.fixture(scope="module")
def variables():
    return trained("npr")[1]


def measured(path, preprocess) -> Experiment:
    stage = Stage(
        task=Task("detection", by="auc"), data=DATA, model=declared(preprocess), init=str(path), epochs=0, title="it"
    )
    return Experiment(name="doubted", stages={"measured": stage}, log=Log(tensorboard=False))


def test_only_what_is_wrong_is_doubted(variables):
    dataset = pipeline.build(DATA)
    assert doubts(declared("npr"), variables, dataset) == ""
    assert "preprocess='right_diag' is not what these weights" in doubts(declared("right_diag"), variables, dataset)
    assert doubts(Model("convnet", variant="nano", num_classes=2), {}, dataset) == "", "it has no choice"


def test_a_run_tells_it_before_it_trains_and_in_the_report(tmp_path, variables):
    path = tmp_path / "tiny.safetensors"
    safetensors.save(path, variables, safetensors.about(declared("right_diag")))
    opened = open_run(measured(path, "right_diag"), tmp_path / "run")
    (told,) = opened.warnings
    assert told.startswith(f"measured.init, {path}: preprocess='right_diag' is not")
    assert "build the model with preprocess='npr'" in told
    assert f"warning  {told}" in running.overview(opened)
    assert "is not what these weights were trained with" in page.render(summarise(opened), {}, {}, "")
    assert open_run(measured(path, "npr"), tmp_path / "other").warnings == []


@pytest.mark.long
def test_scores_of_new_images_and_of_test_images_tell_it_too(tmp_path, variables):
    path, workdir = tmp_path / "tiny.safetensors", tmp_path / "run"
    safetensors.save(path, variables, safetensors.about(declared("right_diag")))
    running.run(measured(path, "right_diag"), workdir)
    images = tmp_path / "pictures"
    images.mkdir()
    for i in range(4):
        Image.fromarray(pipeline.build(DATA).resized("test", i)["image"]).save(images / f"{i}.png")
    for words in (["--mode=predict", f"--images={images}", f"--output={tmp_path / 'out'}"], ["--mode=eval"]):
        assert "warning  preprocess='right_diag' is not" in command(f"--workdir={workdir}", *words).out


def test_what_a_run_tells_of_its_data_obeys_nobody(tmp_path, variables):
    """A name in a note may hold what a terminal would carry out."""
    path = tmp_path / "tiny.safetensors"
    safetensors.save(path, variables, safetensors.about(declared("npr")))
    opened = open_run(measured(path, "npr"), tmp_path / "run")
    opened.learners["measured"].dataset.notes = ("left out: \x1b[2Jhidden.png",)
    assert "left out: \\x1b[2Jhidden.png" in running.overview(opened)
