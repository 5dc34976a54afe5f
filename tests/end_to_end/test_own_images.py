"""One's own images by flags: the classes come from the masks, and their names go everywhere that they are shown."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdjax import launch
from kdjax.config import ConfigError, Data, Experiment, Log, Model, Task, Term
from kdjax.data import pipeline
from kdjax.experiment import checks
from kdjax.experiment import look as looking
from kdjax.experiment import run as running
from kdjax.experiment.resolve import resolved
from kdjax.train.setup import task_of
from tests.support import folders, tiny
from tests.support.command import command, refused

CONFIG = """
from kdjax.config import Data, Experiment, Log, Mesh, Model, Stage, Task, Teacher, Term

MODEL = {"dim": 16, "heads": 2, "depth": 2, "taps": (0, 0, 1, 1), "neck_dim": 8, "head_dim": 8, "dropout": 0.0}


def get_config(variant=""):
    other = Data("ultrasound", image_size=32, batch_size=8, size=32, train=8, val=8, test=8)
    own = Data("folder", root=variant, num_classes=None, image_size=32, batch_size=8, augment={"hflip": 0.5})
    shared = {"task": Task("segmentation", weight=0.1, balanced=False), "epochs": 1, "grad_norms_every": 0}
    shared |= {"model": Model("tinyusfm_seg", image_size=32, **MODEL)}
    first = Stage(data=other, auxiliary=True, **shared)
    fresh = (r"params/decode_head/conv_seg/.*",)
    teacher = Stage(data=own, init="stage:first", init_skip=fresh, **shared)
    terms = {"kl": Term("kl", teacher="big:logits")}
    student = Stage(data=own, teachers={"big": Teacher("teacher")}, terms=terms, **shared)
    return Experiment(
        name="own", stages={"first": first, "teacher": teacher, "student": student}, control=False,
        quick_compile=True, mesh=Mesh(data=1), log=Log(tensorboard=False),
    )
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """(config:folder, the folder) of thirty images with pebbles and, in a few, bricks."""
    root = tmp_path_factory.mktemp("own")
    for i in range(30):
        folders.picture(root / "data" / f"day {i % 3}" / f"{i}.jpg", i, (120, 160))
        mask = np.zeros((120, 160), np.uint8)
        mask[10:60, 20:70] = 127
        mask[70:110, 90:140] = 255 * (i % 4 == 0)
        Image.fromarray(mask).save(root / "data" / f"day {i % 3}" / f"{i}_mask.png")
    (root / "own.py").write_text(CONFIG)
    return f"{root / 'own.py'}:{root / 'data'}", root / "data"


def test_a_look_before_anything_is_trained(own, tmp_path):
    flags = ("--mode=look", f"--config={own[0]}", f"--workdir={tmp_path}", "--classes=pebble,brick")
    ended = command(*flags, "--config.stages.student.task.options.balanced=True")
    assert ended.code == 0, ended
    assert [path.name for path in tmp_path.iterdir()] == ["look.html"], "the folder belongs to no run yet"
    page = (tmp_path / "look.html").read_text()
    assert "30 images, 3 classes, the background one of them." in page
    assert "12 of 21; on the right as the first epoch augments it (hflip 0.5)" in page
    assert "160 × 120" in page
    assert "30 are not square: they are squeezed." in page
    assert page.count("pebble, brick</b>") >= 3, "every split shows each class"
    assert "weight</th>" in page
    assert page.count("data:image/webp") == 2 * 12 + 5 + 4
    assert not {"http://", "https://", "<script"} & set(page.split('"'))


def test_what_the_student_sees_is_what_a_step_makes_of_it():
    stage = tiny.stage(data=Data("ultrasound", image_size=16, size=32, train=8, val=4, test=4, augment={"gamma": 1.0}))
    dataset = pipeline.build(stage.data)
    seen = looking.seen("x", stage, dataset, seed=3)
    learner = tiny.learner(stage, seed=3)
    at = [dataset.resized("train", i)["name"] for i in range(8)]
    chosen = np.array([at.index(example.name) for example in seen.splits["train"].examples])
    made = learner.step.prepare(dataset.batch("train", chosen), learner.knobs)["image"]
    shown = np.stack([example.augmented[0] for example in seen.splits["train"].examples])
    np.testing.assert_allclose(shown, np.asarray(made) * 255, atol=0.51)


def test_a_look_shows_images_alone(tmp_path):
    ended = command("--mode=look", "--config=configs/can_distill.py", f"--workdir={tmp_path}")
    refused(ended, "are graphs; --mode=train tells what it reads and all that is wrong with it, before it trains")
    assert not list(tmp_path.iterdir())


def test_the_flagship_takes_a_folder(own, tmp_path):
    experiment = launch.load(f"configs/sam_distill.py:folder={own[1]}")
    teacher, student = experiment.stages["teacher"], experiment.stages["student"]
    assert (student.data.source, student.data.options) == ("folder", {"root": str(own[1]), "bits": None})
    assert experiment.stages["sam"].data.num_classes == 2
    assert teacher.init_skip, "its head is of other classes"
    facts = pipeline.build(student.data).facts
    assert resolved(student, facts).model.options["num_classes"] == 3
    assert resolved(teacher, facts).model.options["num_classes"] == 3
    refused(
        command("--config=configs/sam_distill.py:smoke", "--classes=a,b", f"--workdir={tmp_path}"),
        "--classes names what a config leaves open with num_classes=None",
    )


@pytest.mark.parametrize("recipe", ["sam_distill", "segformer_distill", "segformer_train"])
def test_every_recipe_of_masks_takes_a_folder(own, recipe):
    (*_, last) = launch.load(f"{recipe}:folder={own[1]}").stages.values()
    counted = replace(last, data=replace(last.data, **pipeline.build(last.data).facts))
    assert resolved(last, {"num_classes": 3}).model.options["num_classes"] == counted.data.num_classes == 3
    assert task_of(counted).terms()["ce"].weight == last.task.options["weight"]


def test_an_option_that_the_config_says_stays():
    said = tiny.stage(model=Model("tinyusfm_seg", num_classes=5))
    assert resolved(said, {"num_classes": 3}).model.options == {"num_classes": 5}
    assert resolved(tiny.stage(model=tiny.model()), {"num_classes": 3}).model.options == {}, "it takes no such option"


def test_an_argument_of_a_loss_that_is_none_comes_from_the_data():
    learner = tiny.learner(tiny.stage(task=Task("segmentation", balanced=True)))
    (bce,) = [term for term in learner.terms if term.name == "bce"]
    assert bce.term.args == {"class_weights": learner.dataset.fact("class_weights")}
    ignored = {"ce": Term("ce", label="mask", args={"ignore": None})}
    data = Data("ultrasound", num_classes=3, size=32, image_size=16, train=8, val=4, test=4)
    stage = tiny.stage(terms=ignored, model=tiny.model(classes=3), data=data)
    (ce,) = [term for term in tiny.learner(stage).terms if term.name == "ce"]
    assert ce.term.args == {"ignore": None}, "that is its default"


def test_names_and_a_number_that_differ_are_refused():
    data = Data("folder", root="x", classes=("a", "b"))
    data.num_classes = 2
    experiment = Experiment(name="x", stages={"s": tiny.stage(data=data)})
    with pytest.raises(ConfigError, match=r"data\.classes: a, b and the background make 3, and data\.num_classes is 2"):
        checks.validate(experiment)


@pytest.mark.long
def test_a_run_on_ones_own_classes(own, tmp_path):
    here = (f"--config={own[0]}", f"--workdir={tmp_path / 'run'}", "--classes=pebble,brick")
    ended = command(*here)
    assert ended.code == 0, ended
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["num_classes"] == 3
    assert summary["class_names"] == ["background", "pebble", "brick"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(text in page for text in ("pebble</li>", "brick</li>", "Dice of each class"))
    there = (f"--workdir={tmp_path / 'run'}",)  # the run knows its classes
    images = tmp_path / "images"
    folders.picture(images / "x.png", 3, (200, 300))
    ended = command(*there, "--mode=predict", f"--images={images}", f"--output={tmp_path / 'out'}")
    assert ended.code == 0, ended
    with Image.open(tmp_path / "out" / "x_mask.png") as mask, Image.open(tmp_path / "out" / "x_overlay.png") as overlay:
        assert mask.size == (300, 200)
        assert overlay.width == 300
        assert overlay.height > 210, "a strip names the colours"
        assert set(np.unique(mask)) <= {0, 1, 2}
    ended = command(*there, "--mode=eval")
    assert ended.code == 0, ended
    assert "brick" in (tmp_path / "run" / "eval_results.txt").read_text()
    assert command(*there, "--mode=export").code == 0
    told = json.loads((tmp_path / "run" / "export" / "student" / "signature.json").read_text())
    assert told["output"]["classes"] == ["background", "pebble", "brick"]
    assert told["model"]["options"]["num_classes"] == 3


@pytest.mark.long
@pytest.mark.parametrize("what", ["all masks", "one image"])
def test_data_that_changed_between_two_starts_are_refused(what, tmp_path):
    root = folders.folder(tmp_path / "scans", 40)["root"]
    data = Data("folder", root=root, num_classes=2, image_size=16, batch_size=8)
    stage = tiny.stage(data=data, epochs=1)
    made = Experiment(name="tiny", stages={"one": stage}, control=False, quick_compile=True, log=Log(tensorboard=False))
    running.run(made, tmp_path / "run")
    running.run(made, tmp_path / "run")  # the same data are the same
    masks = sorted(Path(root).glob("*_mask.png"))
    for mask in masks if what == "all masks" else []:
        folders.blob(mask, at=(9, 9))
    if what == "one image":
        folders.picture(Path(root) / masks[0].name.replace("_mask", ""), 999)
    stage.epochs = 2
    with pytest.raises(ConfigError, match="data of other contents than there are now"):
        running.run(made, tmp_path / "run")
