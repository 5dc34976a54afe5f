"""Classes of a folder of images: the table, the page, and the overlays beside them."""

import csv
import json
import re

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image

import kdjax
from kdjax import launch
from kdjax.deploy import pictures
from kdjax.distill.teachers import build_model
from kdjax.report import predictions
from kdjax.report.predictions import ALONE, Answer, Ranking, Shown
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors
from tests.support.command import command, refused
from tests.support.folders import picture

CONFIG = """
from kdjax.config import Data, Experiment, Model, Stage


def get_config(variant=""):
    data = Data("classes", root="nowhere", image_size=16, batch_size=8, num_classes=7)
    model = Model("convnet", widths=(4, 6), depths=(1, 1), image_size=16, num_classes=7)
    return Experiment(name="tiny", stages={"only": Stage(task="classification", data=data, model=model, epochs=1)})
"""
NAMES = ("ant", "bee", "cat <b>", "dog", "eel")  # of seven classes
TEMPERATURE = 2.0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, workdir, model, variables) of a classifier of random weights, whose data are not there."""
    folder = tmp_path_factory.mktemp("run")
    path, workdir = folder / "tiny.py", folder / "work"
    path.write_text(CONFIG)
    stage = launch.load(str(path)).stages["only"]
    model = build_model(stage.model)
    variables = jax.tree.map(np.array, initialiser(model)(jax.random.key(0)))
    variables["params"]["head"]["kernel"] *= 20
    about = safetensors.about(stage.model) | {"image_classes": json.dumps(NAMES), "temperature": repr(TEMPERATURE)}
    (workdir / "stages" / "only").mkdir(parents=True)
    safetensors.save(workdir / "stages" / "only" / "model.safetensors", variables, about)
    return path, workdir, model, variables


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Five images, two in a folder inside, one with a name as of ours."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (40, 30), "b.jpg": (33, 61), "in/c.png": (16, 16), "in/ü.png": (9, 2000)}.items():
        (root / name).parent.mkdir(exist_ok=True)
        small = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(root / name)
    picture(root / "front_cam.png", 3)
    return root


def on(run, images, output, *flags):
    path, workdir, *_ = run
    where = (f"--config={path}", f"--workdir={workdir}", f"--images={images}", f"--output={output}")
    return command("--mode=predict", *where, *flags)


def rows(path):
    head, *lines = csv.reader(path.read_text(encoding="utf-8").splitlines())
    return head, {line[0]: line[1:] for line in lines}


@pytest.fixture(scope="module")
def explained(run, images, tmp_path_factory):
    """The folder written with overlays, and what was printed."""
    output = tmp_path_factory.mktemp("out") / "deeper"
    ended = on(run, images, output, "--gradcam")
    assert ended.code == 0, ended.error
    return output, ended.out


def test_the_table_has_the_classes_of_every_image(run, images, explained):
    _, _, model, variables = run
    head, lines = rows(explained[0] / "predictions.csv")
    later = [f"{name}_{i}" for i in (2, 3, 4, 5) for name in ("predicted", "probability")]
    assert head == ["image", "predicted", "probability", "energy", *later]
    assert list(lines) == ["a.png", "b.jpg", "front_cam.png", "in/c.png", "in/ü.png"]
    names = [*NAMES, "5", "6"]
    small = []
    for name in lines:
        with Image.open(images / name) as image:
            small.append(np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR), np.float32) / 255)
    logits = jax.jit(lambda v, x: kdjax.apply(model, v, x)["logits"])
    every = np.asarray(logits(variables, np.stack(small)), np.float64)
    for logits, (predicted, probability, energy, *others) in zip(every, lines.values(), strict=True):
        sure = scipy.special.softmax(logits / TEMPERATURE)
        order = np.argsort(-sure)[:5]
        assert [predicted, *others[::2]] == [names[k] for k in order]
        np.testing.assert_allclose([float(x) for x in (probability, *others[1::2])], sure[order], atol=2e-5)
        assert float(energy) == pytest.approx(-scipy.special.logsumexp(logits), rel=1e-4)
    assert len({line[0] for line in lines.values()}) > 1


def test_overlays_lie_where_their_images_do_and_name_their_class(images, explained):
    output, out = explained
    made = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    cams = {"a_cam.jpg", "b_cam.jpg", "front_cam_cam.jpg", "in/c_cam.jpg", "in/ü_cam.jpg"}
    assert made == cams | {"predictions.csv", "index.html"}
    assert all(pictures.is_ours(output / name) for name in cams)
    sizes = {}
    for name in ("a", "in/c", "in/ü"):
        with Image.open(output / f"{name}_cam.jpg") as overlay:
            sizes[name] = overlay.size
    heights = {"a": (168, 224), "in/c": (224, 224), "in/ü": (1024, 5)}  # and below it the strip
    assert {name: width for name, (width, _) in sizes.items()} == {name: width for name, (width, _) in heights.items()}
    assert all(heights[name][1] + 10 < height < heights[name][1] + 80 for name, (_, height) in sizes.items())
    assert f"classes of 5 images: {output / 'predictions.csv'}" in out
    assert "what speaks for them, Grad-CAM++ at stage_1: NAME_cam.jpg beside it" in out


def test_the_page_shows_the_least_sure_first(explained):
    output, _ = explained
    page = (output / "index.html").read_text(encoding="utf-8")
    _, lines = rows(output / "predictions.csv")
    shown = re.findall(r"· ([^<]+)</figcaption>", page)
    assert shown == sorted(lines, key=lambda name: float(lines[name][1]))
    assert page.count('src="data:image/webp') == 2 * len(lines)
    assert "cat &lt;b&gt;" in page or "cat <b>" not in [line[0] for line in lines.values()]
    assert "cat <b>" not in page
    assert "Grad-CAM++ at stage_1" in page


def test_our_own_is_written_over_and_what_is_not_ours_never(run, images, explained, tmp_path):
    output, _ = explained
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    assert on(run, images, output, "--gradcam").code == 0
    assert {path: path.read_bytes() for path in before} == before
    for name, text in (("predictions.csv", "image;truth\n"), ("index.html", "<html>a site</html>")):
        (tmp_path / name).write_text(text)
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(tmp_path / "a_cam.jpg")
    files = [f"{tmp_path / name}: a file that kdjax did not write" for name in ("predictions.csv", "index.html")]
    refused(on(run, images, tmp_path, "--gradcam"), *files, f"{tmp_path / 'a_cam.jpg'}: a file that kdjax did not")
    assert (tmp_path / "index.html").read_text() == "<html>a site</html>"


def test_overlays_are_no_images_to_predict_but_photographs_of_such_names_are(run, images, explained):
    output, _ = explained
    assert pictures.made(output / "a_cam.jpg")
    assert not pictures.made(images / "front_cam.png")
    assert pictures.made(images / "front_mask.png")


@pytest.mark.long
def test_a_layer_and_a_class_by_name(run, images, tmp_path):
    ended = on(run, images / "a.png", tmp_path, "--gradcam=stages_0_0/conv_1", "--of=bee")
    assert ended.code == 0, ended.error
    assert "what speaks for bee, Grad-CAM++ at stages_0_0/conv_1" in ended.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_cam.jpg", "index.html", "predictions.csv"]
    plain = on(run, images / "a.png", tmp_path / "plain")
    assert plain.code == 0, plain.error
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["index.html", "predictions.csv"]
    assert rows(tmp_path / "plain/predictions.csv") == rows(tmp_path / "predictions.csv")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gradcam=stage_4"], "--gradcam=stage_4: the model has no such layer; did you mean 'stage_1'"),
        (["--gradcam=features"], "--gradcam=features: expected a map [b, h, w, c]"),
        (["--gradcam", "--of=bea"], "--of=bea: no such class; did you mean 'bee'"),
        (["--of=bee"], "--of says which class --gradcam explains; give --gradcam with it"),
        (["--threshold=1"], "of classification, knows no --threshold"),
        (["--gradcam", "stage_1"], "unexpected argument 'stage_1'; flags are written --name=value"),
    ],
)
def test_wrong_flags(run, images, tmp_path, flags, said):
    refused(on(run, images, tmp_path / "out", *flags), said)
    assert not (tmp_path / "out").exists()


def test_other_tasks_explain_no_class():
    flags = ("--config=configs/sam_distill.py:smoke", "--images=docs", "--gradcam")
    refused(command("--mode=predict", *flags), "images, of segmentation, knows no --gradcam")
    refused(command("--mode=predict", "--config=configs/can_distill.py:smoke", "--log=x", "--gradcam"), "no --gradcam")


def test_of_very_many_images_the_page_shows_some_and_says_so():
    ranked = {i: Ranking((f"class {i % 60}", "other"), (0.5 + i / 1000, 0.1)) for i in range(400, 0, -1)}
    answers = [Answer(f"{i}.png", {ALONE: one}) for i, one in ranked.items()]
    first = predictions.first(answers)
    assert [one.name for one in first] == [f"{i}.png" for i in range(1, predictions.MOST + 1)]
    shown = [Shown(one, np.zeros((4, 4, 3), np.uint8)) for one in first]
    page = predictions.render("many", answers, shown, "", "predictions.csv")
    assert page.count("<figure>") == 300
    assert "300 of 400; predictions.csv has all of them." in page
    assert "And 10 classes more." in page
