"""A layer that is set into a model."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.models.inputs import ArrayInput
from kdjax.models.layers.inserted import inserted, path_of


class Stage(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="last")(x)


class Net(nn.Module):
    remat: bool = False
    inputs = {"x": ArrayInput((4,))}
    endpoints = ("stage_0", "stage_1", "twice")

    @nn.compact
    def __call__(self, x, train=False):
        stage = nn.remat(Stage) if self.remat else Stage
        first = stage(name="stages_0")(x)
        second = stage(name="stages_1")(nn.Dropout(0.5, deterministic=True, name="drop")(first))
        return {"stage_0": first, "stage_1": second, "twice": 2 * second}


def test_all_that_follows_sees_what_the_layer_makes():
    net, x = Net(), jnp.ones((1, 4))
    variables = net.init(jax.random.key(0), x)
    assert path_of(net, "stage_0") == ("stages_0",)  # neither the Dense in it nor the dropout that passes it on
    with inserted(path_of(net, "stage_0"), lambda y: y + 1):
        out = net.apply(variables, x)
    plain = net.apply(variables, x)
    last = variables["params"]["stages_1"]["last"]
    np.testing.assert_allclose(out["stage_0"], plain["stage_0"] + 1, rtol=1e-6)
    np.testing.assert_allclose(out["stage_1"], out["stage_0"] @ last["kernel"] + last["bias"][None], rtol=1e-5)


def test_an_endpoint_that_no_module_returns_is_refused():
    for net, endpoint in ((Net(), "twice"), (Net(remat=True), "stage_0")):
        with pytest.raises(ConfigError, match=f"Net: expected a module that returns '{endpoint}', .* found none"):
            path_of(net, endpoint)
