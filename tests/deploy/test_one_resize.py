"""One rule brings an image to the size of a model: in training, in predict, in Python and beside an export."""

import json
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image

import kdjax
from kdjax.config import Data, Experiment, Mesh
from kdjax.data import pipeline
from kdjax.data.images.resize import resize
from kdjax.deploy import export as exporting
from kdjax.deploy import pictures
from kdjax.deploy import predict as predicting
from kdjax.models.layers.resize import resize as resize_on_device
from kdjax.train import sharding
from kdjax.train.evaluation import evaluate
from kdjax.train.setup import prepare
from kdjax.weights import safetensors, stablehlo
from tests.support import folders, tiny

SIDE = 32


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(experiment, its folder, a photograph of 1,200 x 900 speckled pixels that lies on its side)."""
    root = tmp_path_factory.mktemp("one_resize")
    for split in ("train", "val", "test"):
        folders.picture(root / "data" / split / "img" / "x.png", len(split))
        folders.blob(root / "data" / split / "label" / "x.png")
    rng = np.random.default_rng(0)
    slow = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((1200, 900)))
    speckled = (slow * rng.exponential(0.5, (900, 1200, 1))).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photograph = root / "data" / "test" / "img" / "x.png"
    Image.fromarray(speckled).save(photograph, exif=exif)
    Image.fromarray(np.zeros((1200, 900), np.uint8)).save(root / "data" / "test" / "label" / "x.png")
    data = Data("layout", root=str(root / "data"), image_size=SIDE, batch_size=1)
    stage = tiny.stage(data=data, model=tiny.model(size=SIDE, norm=False))
    experiment = Experiment(name="tiny", stages={"student": stage}, mesh=Mesh(data=1))
    (root / "work" / "stages" / "student").mkdir(parents=True)
    variables = tiny.weights(stage.model)
    variables["params"]["embed"]["kernel"] *= 3
    safetensors.save(
        root / "work" / "stages" / "student" / "model.safetensors", variables, safetensors.about(stage.model)
    )
    return experiment, root / "work", photograph


@pytest.mark.long
def test_training_predict_apply_and_the_export_make_the_same_mask(run, tmp_path):
    experiment, workdir, photograph = run
    stage = experiment.stages["student"]
    path, plain, variables, *_ = predicting.load(predicting.chosen(experiment, "")[1], workdir, "student", "")
    upright = np.rot90(np.asarray(Image.open(photograph)), 3)[None]

    learner = prepare("student", plain, experiment, sharding.make_mesh(experiment.mesh), pipeline.build(stage.data), {})
    trained = evaluate(learner, learner.place(variables), "test")[1]["classes"][0]
    program = predicting.compiled(pictures.network_of(plain, variables))
    with ThreadPoolExecutor(1) as pool:
        (seen,) = pictures.going_through([photograph], plain, experiment, variables, program, pool)
    predicted = seen.rows["logits"]
    model = kdjax.build("tests.support.tiny:build", **plain.model.options)
    applied = np.asarray(kdjax.apply(model, kdjax.load(model, path), upright)["logits"])[0]
    exported = exporting.export(experiment, workdir, output=str(tmp_path / "export"))
    told = json.loads((tmp_path / "export" / "signature.json").read_text())
    scope: dict = {}
    exec("\n".join(told["code"]), scope)  # as the signature tells a program to do it
    program = stablehlo.load(exported["folder"] / "model.stablehlo")
    alone = np.asarray(program(scope["read"](photograph))["logits"])[0]

    assert 0.1 < trained.mean() < 0.9
    np.testing.assert_array_equal(predicted[..., 0] > 0, trained)
    np.testing.assert_array_equal(alone[..., 0] > 0, trained)
    large = predicting.classes(predicted, (1200, 900))
    # Two programs round differently: of a million pixels one may lie so near to 0 that they disagree.
    sure = np.abs(resize(predicted, (1200, 900))[..., 0]) > 1e-5
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(scope["mask"](alone, 1200, 900)[sure], large[sure])
    # apply does not round to 8 bits on the way, and these random weights answer near 0 nearly everywhere.
    assert ((applied[..., 0] > 0) != trained).mean() < 0.005
    assert (scope["mask"](applied, 1200, 900) != large).mean() < 0.005


@pytest.mark.parametrize("size", [(11, 9), (40, 30), (7, 64)])
def test_host_device_and_torch_resize_alike(size):
    """Smaller, larger, and both: on bytes within the rounding of Pillow, on floats without."""
    image = np.random.default_rng(0).integers(0, 256, (30, 25, 3), np.uint8)
    floats = image.astype(np.float32)
    on_device = np.asarray(resize_on_device(jnp.asarray(floats)[None], size, antialias=True))[0]
    torchs = F.interpolate(torch.tensor(floats).movedim(-1, 0)[None], size, mode="bilinear", antialias=True)
    np.testing.assert_allclose(on_device, torchs[0].movedim(0, -1).numpy(), atol=1e-3)
    np.testing.assert_allclose(resize(floats, size), on_device, atol=1e-3)
    np.testing.assert_allclose(resize(image, size).astype(float), on_device, atol=1.1)
