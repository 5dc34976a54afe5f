"""A hybrid that starts from the weights of its parts, learns, and is used."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from kdjax.config import ConfigError, Data, Experiment, Log, Lora, Mesh, Model, Optim, Stage
from kdjax.deploy import predict
from kdjax.deploy.evaluate import evaluate
from kdjax.deploy.export import export
from kdjax.distill.teachers import build_model
from kdjax.experiment import run as running
from kdjax.experiment.opening import open_run
from kdjax.train.setup import initial_shapes
from kdjax.weights import safetensors

pytestmark = pytest.mark.long

NET = {"widths": (4, 6), "depths": (1, 1), "image_size": 8}
VIT = {"variant": "vit_ti16", "dim": 8, "depth": 1, "heads": 2, "taps": (0,), "image_size": 8, "patch_size": 4}
HEADS = (r"params/(convolutional|transformer)/head/.*",)  # of other classes
DATA = Data("tests.end_to_end.test_image_runs:Few", image_size=8, num_classes=10, batch_size=32)


def written(path, model):
    """A file of random weights for a model."""
    rng = np.random.default_rng(len(model.name))
    weights = jax.tree.map(
        lambda x: np.abs(rng.normal(0, 0.3, x.shape)).astype(np.float32), initial_shapes(build_model(model))
    )
    safetensors.save(path, weights, safetensors.about(model))
    return weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Submodule -> (its file, its weights), each with a head of 7 classes."""
    folder = tmp_path_factory.mktemp("files")
    models = {
        "convolutional": Model("convnet", **NET, num_classes=7),
        "transformer": Model("vit", **VIT, num_classes=7),
    }
    paths = {part: folder / f"{part}.safetensors" for part in models}
    return {part: (str(path), written(path, models[part])) for part, path in paths.items()}


def experiment(files, **fields):
    parts = {"convolutional": {"name": "convnet", "options": NET}, "transformer": {"name": "vit", "options": VIT}}
    options = {"attention": "cbam", "mix_style": "stage_0", "dim": 16, "head": "cosine", "centres": 2, "scale": 16.0}
    stage = Stage(
        task="classification",
        data=DATA,
        model=Model("hybrid", **parts, **options),
        **{
            "epochs": 1,
            "optim": Optim("adam", lr=1e-2),
            "parts": {part: path for part, (path, _) in files.items()},
            "init_skip": HEADS,
            **fields,
        },
    )
    log = Log(tensorboard=False)
    return Experiment(name="hybrid", stages={"one": stage}, mesh=Mesh(data=1), quick_compile=True, log=log)


def test_parts_start_from_their_files_and_the_rest_is_new(files, tmp_path):
    opened = open_run(experiment(files), tmp_path)
    learner = opened.learners["one"]
    state, _, _ = learner.start(opened.init(learner.stage), {})
    for part, (_, weights) in files.items():
        given = {k: v for k, v in weights["params"].items() if k != "head"}
        jax.tree.map(np.testing.assert_array_equal, state.params["model"][part], given)
    net = files["convolutional"][1]["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, state.collections["model"]["batch_stats"]["convolutional"], net)
    assert np.ptp(state.params["model"]["head"]["centres"]) > 0


def test_files_that_do_not_fit_are_refused_before_training(files, tmp_path):
    one = experiment(files, init_skip=())
    with pytest.raises(ConfigError, match="the weights are of another shape than the model") as error:
        open_run(one, tmp_path)
    text = str(error.value)
    assert "stages.one.parts.convolutional and parts.transformer:" in text
    assert "(they are of convnet with" in text
    assert "unused: params/transformer/head/kernel" in text
    for change, said in [
        ({"init_skip": (*HEADS, "params/transfomer/.*")}, "skip 'params/transfomer/.*' matches nothing"),
        ({"parts": {"transformer": files["convolutional"][0]}}, "unfilled: params/transformer/cls_token"),
        ({"parts": {"transfomer": files["transformer"][0]}}, "unused: params/transfomer/cls_token"),
    ]:
        with pytest.raises(ConfigError) as error:
            open_run(experiment(files, **change), tmp_path)
        assert said in str(error.value)
    with pytest.raises(safetensors.WeightsError, match="no such file of weights"):
        open_run(experiment(files, parts={"transformer": "gone.safetensors"}), tmp_path)


def test_it_trains_with_what_is_learned_beside_it_and_is_used(files, tmp_path):
    """Low-rank pairs, as the original has them, on the transformer; all else of the parts as it came."""
    lora = Lora(rank=8, scale=2.0, targets=((r"transformer/.*(qkv|proj|fc\d)", "all"),))
    frozen = Optim("adam", lr=1e-2, trainable=((r"model/(convolutional|transformer)/.*", False), (r".*", True)))
    one = experiment(files, lora=lora, optim=frozen)
    summary = running.run(one, tmp_path)
    assert 0 <= summary["rows"][0]["metrics"]["accuracy"]["mean"] <= 1
    kept = predict.load(predict.chosen(one, "one")[1], tmp_path, "one", "")
    assert kept.stage.model.options["num_classes"] == 10
    weights = files["transformer"][1]["params"]
    attn, before = kept.whole["params"]["transformer"]["blocks_0"]["attn"], weights["blocks_0"]["attn"]
    assert np.any(attn["qkv"]["kernel"] != before["qkv"]["kernel"])
    np.testing.assert_array_equal(attn["qkv"]["bias"], before["qkv"]["bias"])
    np.testing.assert_array_equal(kept.whole["params"]["transformer"]["cls_token"], weights["cls_token"])
    again = evaluate(one, tmp_path).summary["rows"][0]["metrics"]["accuracy"]
    assert again == summary["rows"][0]["metrics"]["accuracy"]
    assert set(export(one, tmp_path)["files"]) == {"model.safetensors", "model.stablehlo"}

    second = replace(experiment({}, init=f"{tmp_path}:one", init_skip=()).stages["one"], parts={})
    opened = open_run(replace(one, stages={"one": second}), tmp_path / "again")
    state, _, _ = opened.learners["one"].start(opened.init(opened.learners["one"].stage), {})
    jax.tree.map(np.testing.assert_array_equal, dict(state.params["model"]), dict(kept.whole["params"]))
