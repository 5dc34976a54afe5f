"""A model of image and text that starts from the weights of its parts, and has a price on the energy it takes."""

import jax
import numpy as np
import pytest

from kdjax.config import Data, Experiment, Mesh, Model, Optim, Stage, Task, Term
from kdjax.distill.teachers import build_model
from kdjax.experiment.opening import open_run
from kdjax.train.setup import initial_shapes
from kdjax.weights import safetensors
from tests.support.two_parts import LABELS, LENGTH, SIDE, VOCABULARY

pytestmark = pytest.mark.long

NET = {"widths": (4,), "depths": (1,), "image_size": SIDE}
BERT = {"variant": "tiny", "dim": 8, "depth": 1, "heads": 2, "vocab_size": VOCABULARY, "positions": LENGTH}
OPTIONS = {
    "labels": LABELS,
    "image": {"name": "convnet", "options": NET},
    "text": {"name": "bert", "options": BERT},
    "fusion": "energy_aware_adaptive",
    "dim": 8,
    "heads": 2,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Part -> (its file, its weights); that of images has a head."""
    folder, made = tmp_path_factory.mktemp("files"), {}
    for part, model in {"image": Model("convnet", **NET, num_classes=7), "text": Model("bert", **BERT)}.items():
        rng, shapes = np.random.default_rng(len(part)), initial_shapes(build_model(model))
        weights = jax.tree.map(lambda x, rng=rng: np.abs(rng.normal(0, 0.3, x.shape)).astype(np.float32), shapes)
        safetensors.save(folder / f"{part}.safetensors", weights, safetensors.about(model))
        made[part] = (str(folder / f"{part}.safetensors"), weights)
    return made


def test_parts_start_from_their_files(files, tmp_path):
    stage = Stage(
        task=Task("answers", labels=tuple(LABELS)),
        data=Data("tests.support.two_parts:Records", image_size=SIDE, batch_size=12),
        model=Model("image_text", **OPTIONS),
        epochs=1,
        optim=Optim("adam", lr=1e-2),
        terms={"energy": Term("value", "energy", weight=0.01)},
        parts={part: path for part, (path, _) in files.items()},
        init_skip=("params/image/head/.*",),
    )
    opened = open_run(Experiment(name="parts", stages={"one": stage}, mesh=Mesh(data=1)), tmp_path)
    learner = opened.learners["one"]
    state = learner.start(opened.init(learner.stage), {})[0]
    for part, (_, weights) in files.items():
        given = {k: v for k, v in weights["params"].items() if k != "head"}
        jax.tree.map(np.testing.assert_array_equal, state.params["model"][part], given)
    assert [term.name for term in learner.terms] == ["ce_modality", "ce_location", "energy"]
