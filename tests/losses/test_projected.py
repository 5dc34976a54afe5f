"""The teacher in the student's width: what is drawn, what is trained, and which losses may follow."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Term
from kdjax.distill import terms
from kdjax.losses.projected import Projected

STUDENT, TEACHER = (jnp.asarray(np.random.default_rng(i).normal(size=(4, 3 + 2 * i)), jnp.float32) for i in range(2))


def variables(**options):
    return Projected(**options).init(jax.random.key(9), STUDENT, TEACHER)


SHAPES = {"kernel": (5, 3), "bias": (3,)}


def test_a_frozen_map_is_no_parameter():
    for frozen, collection in ((True, "memory"), (False, "params")):
        drawn = jax.eval_shape(lambda frozen=frozen: variables(frozen=frozen))
        assert jax.tree.map(lambda x: x.shape, drawn) == {collection: SHAPES}


@pytest.mark.long
def test_a_frozen_map_is_drawn_from_its_seed():
    options = {"plain": {}, "infonce": {"loss": "infonce"}, "other": {"seed": 1}, "trained": {"frozen": False}}
    drawn = jax.jit(lambda: {name: variables(**of) for name, of in options.items()})()
    kernel, bias = (np.asarray(drawn["plain"]["memory"][name]) for name in SHAPES)
    flat = np.append(kernel, bias)
    assert 0.8 * 5**-0.5 < np.abs(flat).max() <= 5**-0.5, "as PyTorch's Linear begins"
    assert flat.min() < 0 < flat.max()
    np.testing.assert_array_equal(drawn["infonce"]["memory"]["kernel"], kernel)
    for name, collection in (("other", "memory"), ("trained", "params")):
        assert (drawn[name][collection]["kernel"] != kernel).all()


@pytest.mark.long
def test_nothing_is_remembered_of_a_batch():
    drawn = {"memory": {"kernel": jnp.ones((5, 3)), "bias": jnp.arange(3.0)}}
    each, after = jax.jit(partial(Projected().apply, mutable=["memory"]))(drawn, STUDENT, TEACHER)
    target = np.asarray(TEACHER).sum(1, keepdims=True) + np.arange(3)
    np.testing.assert_allclose(each, np.square(np.asarray(STUDENT) - target).mean(1), rtol=1e-5)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, drawn, after))


def test_an_inner_loss_may_be_a_module():
    """Its variance is trained, the map is not."""
    drawn = jax.eval_shape(lambda: variables(loss="vid", args={"variance": 2.0}))
    assert jax.tree.map(lambda x: x.shape, drawn["params"]) == {"inner": {"a": (3,)}}
    assert drawn["memory"].keys() == {"kernel", "bias"}


@pytest.mark.parametrize(
    ("loss", "mixes"), [("mse", False), ("vid", False), ("infonce", True), ("mmd", True), ("supcon", True)]
)
def test_it_mixes_examples_where_the_inner_loss_does(loss, mixes):
    reads = {"student": "student:x", "teacher": "t:x"}
    assert terms.find("x", Term("projected", reads=reads, args={"loss": loss})).mixes is mixes
    within = {"loss": "projected", "args": {"loss": loss}}
    assert terms.find("x", Term("projected", reads=reads, args=within)).mixes is mixes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "infonse"}, "no losses entry 'infonse'; did you mean 'infonce'"),
        ({"args": {"temperature": 1.0}}, "the loss 'mse' takes no argument 'temperature'"),
        ({"loss": "infonce", "args": {"temprature": 1.0}}, "'infonce' takes no argument 'temprature'; did you mean"),
        ({"loss": "vid", "args": {"varience": 1.0}}, "'vid' takes no argument 'varience'; did you mean 'variance'"),
        ({"loss": "dkd"}, "'dkd' reads 'student' and 'teacher' and 'labels'"),
        ({"loss": "ce"}, "alone, such as 'mse' or 'infonce'; 'ce' reads 'logits' and 'labels'"),
        ({"loss": "supcon"}, "'supcon' reads 'student'"),
    ],
)
def test_a_loss_that_cannot_follow_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda: variables(**options))
