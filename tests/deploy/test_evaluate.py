"""What a finished classifier is worth: alone, on several views, with other runs, and on images of no class."""

import csv
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax

from kdjax.config import Data, Experiment, Model, Stage
from kdjax.data import pipeline
from kdjax.deploy import ensemble, evaluate
from kdjax.distill.teachers import build_model
from kdjax.experiment.saved import to_json
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors
from tests.support import folders
from tests.support.command import command, refused

CLASSES = ("cat", "dog")
VIEWS = ("hflip", "rot90")


def run(folder: Path, root: Path, size: int, seed: int, classes=CLASSES, temperature: str = "", stage: str = "only"):
    """The working directory of a run with a model of its own size, its parameters random."""
    data = Data("classes", root=str(root), num_classes=len(classes), image_size=size, batch_size=8)
    options = {"widths": (6,), "depths": (1,), "image_size": size, "num_classes": len(classes)}
    model = Model("convnet", **options)
    experiment = Experiment(
        name=folder.name, stages={stage: Stage(task="classification", data=data, model=model, epochs=1)}
    )
    variables = jax.tree.map(np.array, initialiser(build_model(model))(jax.random.key(seed)))
    variables["params"]["head"]["kernel"] *= 20
    about = {"num_classes": str(len(classes)), "image_classes": json.dumps(classes)}
    about |= {"temperature": temperature} if temperature else {}
    place = folder / "stages" / stage
    place.mkdir(parents=True)
    safetensors.save(place / "model.safetensors", variables, safetensors.about(model) | about)
    (folder / "config.json").write_text(to_json(experiment))
    return experiment, variables


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with images of two classes, of three others, and of none; and runs on them."""
    top = tmp_path_factory.mktemp("evaluate")
    folders.classes(top / "images", n=24)
    folders.classes(top / "swapped", n=6)
    (top / "swapped" / "dog").rename(top / "swapped" / "aardvark")
    folders.unlabelled(top / "far", n=10)
    run(top / "own", top / "images", 8, 0, temperature="2.5")
    run(top / "other", top / "images", 12, 1, stage="last")
    run(top / "strange", top / "images", 8, 2, ("cat", "dog", "owl"))
    run(top / "turned", top / "images", 8, 3, ("dog", "cat"))
    return top


def on(place, *flags):
    return command("--mode=eval", f"--workdir={place / 'own'}", *flags)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tta=hflip,rot9"], ["--tta: no view 'rot9'; did you mean 'rot90'"]),
        (["--ensemble=nowhere"], ["--ensemble: expected WORKDIR or WORKDIR:STAGE of a run, found 'nowhere'"]),
        (["--ensemble={}/images"], ["no config.json in it"]),
        (["--ensemble={}/other:lst"], ["--ensemble=", "--stage=lst: no such stage; did you mean 'last'"]),
        (
            ["--ensemble={}/other,{}/strange,{}/turned"],
            [
                "--ensemble: expected models of the same classes in the same order",
                "2 classes (cat, dog)",
                "strange/stages/only/model.safetensors: 3 classes (cat, dog, owl)",
                "turned/stages/only/model.safetensors: 2 classes (dog, cat)",
            ],
        ),
        (["--data={}/swapped"], ["expected the classes of", "2 classes (cat, dog)", "found 2 classes (aardvark, cat)"]),
        (["--outside={}/nothing"], ["the data 'unlabelled' cannot be used", "no such folder"]),
        (["--output={}/images"], ["expected an empty folder, or that of an evaluation, found cat, dog"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_computed(place, flags, said, monkeypatch):
    monkeypatch.setattr(ensemble, "evaluate", lambda *given, **named: pytest.fail("computed"))
    refused(on(place, *(flag.replace("{}", str(place)) for flag in flags)), *said)
    assert not (place / "own" / "evaluation").exists()


def test_what_only_classifiers_know(place):
    with pytest.raises(
        evaluate.ConfigError, match="--tta, --outside: expected a stage that learns classification, 's'"
    ):
        evaluate.Asked(views=("hflip",), outside="far").refuse_for("s", "segmentation")
    evaluate.Asked(place="x", command="y").refuse_for("s", "segmentation")


# -- whole evaluations -----------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def logits(place: Path, name: str, images: list[np.ndarray]) -> np.ndarray:
    """Of square images by the model of a run, by nothing but its view and itself."""
    stage = next((place / name / "stages").iterdir())
    variables, about = safetensors.load(stage / "model.safetensors")
    model = build_model(safetensors.model_in(about))
    view = model.inputs["image"].view(jnp.asarray(np.stack(images), jnp.float32) / 255)
    outputs = model.apply(variables, view)
    return np.asarray(outputs["logits"], np.float64)


def seen(place: Path, size: int, split: str) -> tuple[list[np.ndarray], np.ndarray]:
    dataset = pipeline.build(Data("classes", root=str(place / "images"), num_classes=2, image_size=size))
    return [np.array(dataset.resized(split, i)["image"]) for i in range(dataset.sizes[split])], dataset.labels(split)


def views_of(image: np.ndarray) -> list[np.ndarray]:
    picture = Image.fromarray(image)
    turns = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90)
    return [image, *(np.asarray(picture.transpose(turn)) for turn in turns)]


@pytest.mark.long
def test_models_at_their_own_sizes_and_views_vote_together(place):
    """Against the models applied one by one to images turned by Pillow."""
    ended = on(place, f"--tta={','.join(VIEWS)}", f"--ensemble={place}/other:last", f"--outside={place}/far")
    assert ended.code == 0, ended.error
    assert "mean of 2 models × 3 views" in ended.out
    folder = place / "own" / "evaluation"
    assert f"report: {folder}/evaluation.html" in ended.out
    p = []
    for name, size in (("own", 8), ("other", 12)):
        images, labels = seen(place, size, "test")
        p += [softmax(logits(place, name, [views_of(i)[v] for i in images]), axis=1) for v in range(3)]
    mean = np.mean(p, axis=0)
    told = json.loads((folder / "metrics.json").read_text())
    row = told["models"]["mean of 2 models × 3 views"]
    assert row["accuracy"] == (mean.argmax(1) == labels).mean()
    assert row["nll"] == pytest.approx(-np.log(mean[np.arange(len(labels)), labels]).mean(), rel=1e-4)
    scaled = softmax(np.log(mean) / row["temperature"], axis=1)
    lines = read(folder / "predictions.csv")
    np.testing.assert_allclose([float(line["probability"]) for line in lines], scaled.max(1), atol=1e-4)
    assert [line["class"] for line in lines] == [CLASSES[label] for label in labels]
    assert set(told["outside"]) >= {"energy", "mahalanobis", "vim"}
    outside = read(folder / "outside.csv")
    assert [line["set"] for line in outside] == ["test"] * len(labels) + ["outside"] * 10
    assert [line["mahalanobis"] for line in outside[: len(labels)]] == [line["mahalanobis"] for line in lines]


@pytest.mark.long
def test_one_model_is_what_it_is_alone(place, tmp_path):
    """Its temperature is the one in its file, the energies those of its logits; twice the same, byte for byte."""
    output = tmp_path / "out"
    for _ in range(2):
        ended = on(place, f"--output={output}")
        assert ended.code == 0, ended.error
        table = (output / "predictions.csv").read_bytes()
    images, _ = seen(place, 8, "test")
    its = logits(place, "own", images)
    lines = read(output / "predictions.csv")
    np.testing.assert_allclose(
        [float(line["probability"]) for line in lines], softmax(its / 2.5, axis=1).max(1), atol=1e-4
    )
    energies = -np.log(np.exp(its).sum(1))
    np.testing.assert_allclose([float(line["energy"]) for line in lines], energies, rtol=1e-4)
    assert (output / "predictions.csv").read_bytes() == table
    assert json.loads((output / "metrics.json").read_text())["models"]["only"]["temperature"] == 2.5
    assert "accuracy" in (place / "own" / evaluate.RESULTS).read_text()
    assert not (output / "outside.csv").exists()


@pytest.mark.long
def test_another_folder_is_scored_without_a_temperature_that_nobody_told(place, tmp_path):
    ended = command(
        "--mode=eval", f"--workdir={place / 'other'}", f"--data={place / 'images'}", f"--output={tmp_path / 'out'}"
    )
    assert ended.code == 0, ended.error
    assert "48 test images" in ended.out
    assert "No temperature is known" in (tmp_path / "out" / "evaluation.html").read_text()
