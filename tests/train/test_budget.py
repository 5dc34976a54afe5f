"""The batch size that fits a budget: exact where bytes grow in proportion, never too large, after few compilations."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from kdjax.config import ConfigError, Data, Experiment, Mesh, Model, Task, Teacher, Term
from kdjax.data import pipeline
from kdjax.experiment.resolve import resolved
from kdjax.experiment.run import compiling
from kdjax.train import budget as memory
from kdjax.train import sharding
from kdjax.train.budget import fitting
from kdjax.train.setup import initial, prepare
from tests.support import tiny

BIG = tiny.model(dim=64, depth=3)


@pytest.fixture(autouse=True)
def quick():
    """What is compared here is compiled alike."""
    with compiling(quick=True):
        yield


class Counted:
    """A function of a size that remembers what it was asked."""

    def __init__(self, made_of: Callable[[int], Any]):
        self.made_of, self.asked = made_of, []

    def __call__(self, size: int) -> Any:
        self.asked.append(size)
        return self.made_of(size)


@pytest.mark.parametrize("seed", range(40))
def test_in_proportion_it_is_exact(seed):
    rng = np.random.default_rng(seed)
    base, each, unit = int(rng.integers(0, 5000)), int(rng.integers(1, 900)), int(rng.integers(1, 9))
    most, budget = int(rng.integers(unit, 300 * unit)), int(rng.integers(base + each * unit, 200_000))
    measure = Counted(lambda size: base + each * size)
    sizes = [k * unit for k in range(1, most // unit + 1)]
    assert fitting(measure, budget, unit, most) == max(s for s in sizes if base + each * s <= budget)
    assert len(measure.asked) <= 4
    assert len(measure.asked) == len(set(measure.asked))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_the_growth_it_fits(seed):
    """With steps, as buckets make them, and bent."""
    rng = np.random.default_rng(100 + seed)
    step, bend, base = int(rng.integers(1, 30)), rng.uniform(0.7, 1.6), int(rng.integers(0, 2000))
    grows = lambda size: base + int(40 * (step * -(-size // step)) ** bend)  # noqa: E731
    measure, budget = Counted(grows), int(grows(4) * rng.uniform(1, 50))
    found = fitting(measure, budget, 4, 800)
    assert found % 4 == 0
    assert found in measure.asked
    assert grows(found) <= budget
    assert len(measure.asked) <= memory.TRIES
    best = max(s for s in range(4, 801, 4) if grows(s) <= budget)
    assert found >= 0.75 * best


def test_all_of_it_fits():
    assert fitting(Counted(lambda size: size), 10**9, 8, 100) == 96
    assert fitting(Counted(lambda size: 5), 5, 8, 100) == 96
    assert fitting(Counted(lambda size: size), 8, 8, 8) == 8


def test_what_cannot_fit_is_refused():
    with pytest.raises(ConfigError, match=r"a batch of 8 takes 8,000 bytes, and 7,999 are allowed; .*remat=True"):
        fitting(Counted(lambda size: 1000 * size), 7999, 8, 100)
    with pytest.raises(ConfigError, match="expected batches of 8 at least, found at most 7"):
        fitting(Counted(lambda size: size), 100, 8, 7)


def of_size(data: Data, size: int) -> Data:
    data = copy.copy(data)
    data.batch_size = size
    return data


def learner(size: int, mesh: Mesh | None = None, **fields):
    stage = tiny.stage(data=of_size(tiny.DATA, size), **fields)
    return tiny.learner(stage, mesh, earlier={"big": BIG})


def of_graphs(size: int, **fields):
    """Made ready for batches of so many windows."""
    data = of_size(Data("can_traffic", train_windows=64, test_windows=8), size)
    dataset = pipeline.build(data)
    stage = resolved(tiny.stage(data=data, **fields), dataset.facts)
    experiment = Experiment(name="x", stages={"s": stage}, mesh=Mesh(data=1))
    return prepare("s", stage, experiment, sharding.make_mesh(experiment.mesh), dataset, {})


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_what_is_counted_is_what_runs():
    """The state that training begins with, to the last leaf; and the batch grows by its images and more."""
    of = learner(8)
    state, fixed, _ = of.start({}, {})
    key = jax.random.key(0)
    assert shapes(jax.eval_shape(of.begin, key, jax.eval_shape(partial(initial, of.model), key))[0]) == shapes(state)
    held = sum(x.nbytes for x in jax.tree.leaves((state, fixed, sharding.global_batch(tiny.batch(of), of.mesh))))
    assert held < memory.step_bytes(of) < 100 * held
    assert memory.step_bytes(learner(16)) - memory.step_bytes(of) > 8 * 16 * 16 * 3


def test_a_teacher_counts():
    taught = {"teachers": {"t": Teacher("big")}, "terms": {"kl": Term("binary_kl", teacher="t:logits")}}
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(tiny.weights(BIG)))
    assert memory.step_bytes(learner(8, **taught)) > memory.step_bytes(learner(8)) + weights


def test_devices_share_a_batch():
    assert memory.step_bytes(learner(64, Mesh(data=8))) < 0.5 * memory.step_bytes(learner(64))


@pytest.mark.long
def test_the_batch_size_of_a_stage_of_graphs():
    model = Model("can_gat", hidden=4, heads=2, num_ids=None)
    build = Counted(lambda size: of_graphs(size, task="detection", model=model))
    budget = 2 * memory.step_bytes(build.made_of(16))
    found = memory.fit(build, budget, 8, 1000, safety=0.9)
    assert 16 < found < 40
    assert found in build.asked


@pytest.mark.long
def test_an_agent_counts_what_it_remembers():
    """Of the fusion, whose step is another one."""
    part = {"variant": "c_small", "num_ids": None}
    parts = {name: {"name": f"can_{name}", "options": part} for name in ("vgae", "gat")}
    model = Model("can_fusion", **parts, agent={"variant": "small"})
    of = of_graphs(16, task=Task("fusion", replay=200_000), model=model)
    transitions = 200_000 * 4 * (2 * 15 + 4)
    assert transitions < memory.step_bytes(of) < 3 * transitions
