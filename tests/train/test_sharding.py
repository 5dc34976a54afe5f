"""One device, eight, and eight that share the parameters compute the same."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from kdjax import config
from kdjax.config import ConfigError, Lora, Mesh, Teacher, Term
from kdjax.train import sharding
from tests.support import tiny
from tests.train.test_step import replace_data

TEACHER = tiny.model(size=32, patch=8, dim=16)
MESHES = {
    "data 8": Mesh(data=8),
    "data 4, fsdp 2": Mesh(data=4, fsdp=2),
    "fsdp 8": Mesh(data=1, fsdp=8),
    "model 2": Mesh(data=2, fsdp=2, model=2),
}
STEPS = 4


def everything():
    """BatchNorm, dropout, augmentation, an adapter with BatchNorm, LoRA beside trained parameters, micro-batches."""
    return tiny.stage(
        model=tiny.model(dropout=0.2),
        data=replace_data(batch_size=16, augment={"hflip": 0.5, "rotate": 0.5, "gamma": 0.5}),
        teachers={"t": Teacher(model=TEACHER, weights="file")},
        terms={
            "kl": Term("binary_kl", teacher="t:logits"),
            "features": Term("mse", student="features", teacher="t:block_0", adapter="conv_bn_relu"),
        },
        lora=Lora(rank=4, targets=((r"blocks_0/qkv", "q_v"),)),
        optim=tiny.with_optim(
            accumulate=2, ema=0.5, clip=1.0, trainable=((r"model/blocks_0/.*", False), (r".*", True))
        ),
    )


@functools.cache
def run(mesh):
    """Parameters, statistics, averages and measures after some steps."""
    learner = tiny.learner(everything(), MESHES.get(mesh, Mesh(data=1)))
    state, fixed, _ = learner.start({"": tiny.weights(learner.stage.model, 1)}, {"t": tiny.weights(TEACHER, 2)})
    placed = jax.tree.map(lambda x: x.sharding, state)
    step = jax.jit(learner.step.train, donate_argnums=0, out_shardings=(placed, sharding.replicated(learner.mesh)))
    seen = []
    for i in range(STEPS):
        batch = sharding.global_batch(tiny.batch(learner, seed=i, labelled=9, valid=13), learner.mesh)
        state, measures = step(state, fixed, learner.knobs, batch)
        seen.append(jax.device_get(measures))
    assert step._cache_size() == 1, "compiled more than once"
    assert jax.tree.map(lambda x: x.sharding, state) == placed
    return state, fixed, seen


@pytest.mark.parametrize(
    "mesh", [pytest.param(mesh, marks=() if mesh == "data 4, fsdp 2" else pytest.mark.long) for mesh in MESHES]
)
def test_every_mesh_computes_the_same(mesh):
    (one, _, seen_one), (other, _, seen) = run("one"), run(mesh)
    for part in ("params", "collections", "ema"):
        assert tiny.largest_difference(getattr(other, part), getattr(one, part)) < 1e-5, part
    assert tiny.largest_difference(seen, seen_one) < 1e-5


@pytest.mark.long
def test_the_steps_did_something():
    """The first batch, augmented as it was, costs less after them."""
    state, fixed, seen = run("one")
    learner = tiny.learner(everything())
    first, _, _ = learner.start({"": tiny.weights(learner.stage.model, 1)}, {"t": tiny.weights(TEACHER, 2)})
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params, first.params)
    assert min(jax.tree.leaves(moved)) > 1e-5
    batch = sharding.global_batch(tiny.batch(learner, seed=0, labelled=9, valid=13), learner.mesh)
    _, again = jax.jit(learner.step.train)(state, fixed, learner.knobs, batch)
    assert again["loss"][0] < seen[0]["loss"][0]


def test_large_arrays_are_split_over_fsdp():
    state, fixed, _ = run("fsdp 8")
    split = {
        "frozen kernel": fixed["frozen"]["model"]["blocks_0"]["qkv"]["kernel"],
        "embedding": state.params["model"]["embed"]["kernel"],
        "its momentum": state.opt_state[2].trace["model"]["embed"]["kernel"],
        "its average": state.ema["model"]["embed"]["kernel"],
    }
    for name, leaf in split.items():
        shards = {shard.data.size for shard in leaf.addressable_shards}
        assert shards == {leaf.size // 8}, name
    assert state.params["model"]["head"]["bias"].sharding.spec == P(), "small ones are copied"


def test_the_largest_axis_that_divides_is_split():
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=4))
    leaves = {"a": np.zeros((6, 512)), "b": np.zeros((512, 516)), "c": np.zeros((513, 9)), "d": np.zeros((4, 8))}
    found = sharding.shardings(
        {**leaves, "kept": {"e": np.zeros((64, 64))}}, mesh, (("kept/.*", "replicate"), (".*", "fsdp"))
    )
    assert {k: v.spec for k, v in found.items() if k != "kept"} == {
        "a": P(None, "fsdp"),
        "b": P(None, "fsdp"),
        "c": P(),
        "d": P(),
    }
    assert found["kept"]["e"].spec == P()
    with pytest.raises(ConfigError, match=r"mesh\.rules: expected 'fsdp' or 'replicate' for a, found 'fdsp'"):
        sharding.shardings(leaves, mesh, ((".*", "fdsp"),))


def test_placed_and_fetched_arrays_are_whole():
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=4))
    value = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    placed = sharding.place({"a": value}, sharding.shardings({"a": value}, mesh, ((".*", "fsdp"),)))
    assert {s.data.shape for s in placed["a"].addressable_shards} == {(16, 32)}
    np.testing.assert_array_equal(sharding.to_host(placed)["a"], value)


@pytest.mark.parametrize(
    ("size", "accumulate", "mesh", "good"), [(12, 1, Mesh(data=8), 16), (16, 4, Mesh(data=4, fsdp=2), 32)]
)
def test_a_batch_that_does_not_divide_names_the_next_good_size(size, accumulate, mesh, good):
    stage = tiny.stage(data=replace_data(batch_size=size), optim=tiny.with_optim(accumulate=accumulate))
    with pytest.raises(
        ConfigError, match=rf"stages\.student\.data\.batch_size {size} does not divide.*such as {good}$"
    ):
        tiny.learner(stage, mesh)


@pytest.mark.parametrize("mesh", [Mesh(data=16), Mesh(data=3, fsdp=3), Mesh(data=-1, fsdp=3), Mesh(data=-1, fsdp=-1)])
def test_a_mesh_that_does_not_fit_is_refused(mesh):
    with pytest.raises(ConfigError, match=r"does not fit 8 device\(s\)"):
        sharding.make_mesh(mesh)


def test_a_rest_takes_what_is_left():
    assert dict(sharding.make_mesh(Mesh()).shape) == {"data": 8, "fsdp": 1, "model": 1}
    assert dict(sharding.make_mesh(config.Mesh(data=2, fsdp=-1)).shape) == {"data": 2, "fsdp": 4, "model": 1}
    assert dict(sharding.make_mesh(Mesh(data=1)).shape) == {"data": 1, "fsdp": 1, "model": 1}, (
        "fewer devices than there are"
    )
