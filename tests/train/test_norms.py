"""BatchNorms of frozen layers, ours and Flax's, beside the same layers in evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import Optim
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.train import norms


class Norms(nn.Module):
    """One of each kind after the other; what Flax's takes as a field the second takes in the call."""

    @nn.compact
    def __call__(self, x, train=False):
        x = BatchNorm(jnp.float32, name="ours")(x, train)
        x = nn.BatchNorm(use_running_average=not train, name="field")(x)
        return nn.BatchNorm(name="call")(x, use_running_average=not train)


@pytest.fixture(scope="module")
def made():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (16, 4))
    variables = Norms().init(jax.random.key(1), x)
    variables["batch_stats"] = jax.tree.map(lambda v: v + 0.5, variables["batch_stats"])
    return variables, x


def run(made, paths, train=True):
    variables, x = made
    with norms.standing(frozenset(paths)):
        return Norms().apply(variables, x, train=train, mutable=["batch_stats"])


def test_those_that_stand_still_go_by_what_they_remember(made):
    told, changed = run(made, ("ours", "field", "call"))
    known, _ = run(made, (), train=False)
    np.testing.assert_allclose(told, known, rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], made[0]["batch_stats"])


@pytest.mark.parametrize("name", ["ours", "field", "call"])
def test_each_stands_still_alone(made, name):
    _, changed = run(made, (name,))
    for other, stats in changed["batch_stats"].items():
        moved = not np.array_equal(stats["mean"], made[0]["batch_stats"][other]["mean"])
        assert moved is (other != name), other


def test_what_is_frozen_stands_still_unless_asked_otherwise(made):
    rules = ((r"model/ours/.*", False), (r"model/field/scale", False), (r".*", True))
    assert norms.frozen(Optim(trainable=rules), made[0]) == {"ours"}
    assert norms.frozen(Optim(trainable=rules, statistics="all"), made[0]) == set()
    assert norms.frozen(Optim(), made[0]) == set()
    assert norms.frozen(Optim(trainable=((r".*", False),)), made[0]) == {"ours", "field", "call"}
