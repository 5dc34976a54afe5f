"""A stage that takes the options of its model from the file of weights that it starts from."""

import pytest

from kdjax.config import ConfigError, Experiment, Log, Mesh
from kdjax.experiment.opening import open_run
from kdjax.weights import safetensors
from tests.support import tiny

pytestmark = pytest.mark.long


def opened(folder, path, **fields):
    stage = tiny.stage(model=tiny.model(dim=24, classes=1), init=str(path), **fields)
    experiment = Experiment(name="tiny", stages={"one": stage}, mesh=Mesh(data=1), log=Log(tensorboard=False))
    return open_run(experiment, folder).learners["one"]


@pytest.fixture
def file(tmp_path):
    made_for = tiny.model(dim=16, depth=2)
    safetensors.save(tmp_path / "other.safetensors", tiny.weights(made_for), safetensors.about(made_for))
    return tmp_path / "other.safetensors"


def test_the_model_is_that_of_the_file(tmp_path, file):
    learner = opened(tmp_path / "run", file, adopt=True)
    assert learner.stage.model.options == {"dim": 16, "depth": 2}
    assert (learner.model.dim, learner.model.depth) == (16, 2)


def test_without_it_another_size_is_refused(tmp_path, file):
    with pytest.raises(ConfigError, match=r"stages\.one\.init: the weights are of another shape.*'dim': 16"):
        opened(tmp_path / "run", file)
