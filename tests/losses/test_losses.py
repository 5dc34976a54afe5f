"""One battery over every registered loss: it finds them by itself, and asks each for a second formula."""

from collections.abc import Callable
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError
from tests.losses.reference import REFERENCES, Reference

BATCH = 3
LOSSES = registry.names("losses")


def drawn(reference: Reference, seed: int = 0) -> tuple[jax.Array, ...]:
    """(student, target), the student alone, or (student, teacher, labels)."""
    rng = np.random.default_rng(seed)
    student = rng.normal(0, 2, (BATCH, *reference.shape)).astype(np.float32)
    if reference.bounded:
        student = np.tanh(student / 2)
    if reference.alone:
        return (jnp.asarray(student),)
    if reference.classes:
        return jnp.asarray(student), jnp.asarray(rng.integers(0, reference.classes, student.shape[:-1], np.int32))
    target = rng.integers(0, 2, student.shape) if reference.multi_hot else rng.normal(0, 2, student.shape)
    if reference.shares:
        target = np.exp(target) / np.exp(target).sum(-1, keepdims=True)
    both = jnp.asarray(student), jnp.asarray(target.astype(np.float32))
    if reference.labelled:
        return *both, jnp.asarray(rng.integers(0, reference.labelled, student.shape[:-1], np.int32))
    return both


def float64(target) -> np.ndarray:
    target = np.asarray(target)
    return target.astype(np.float64) if target.dtype.kind == "f" else target


class Case(NamedTuple):
    loss: Callable
    formula: Callable
    reference: Reference
    run: Callable  # (student[, target]) -> the loss of each example, and the gradients of their sum; compiled once


@cache
def cases(name: str) -> list[Case]:
    """A case for each reference of `name` and each of its settings."""
    loss = registry.get("losses", name)
    return [
        Case(one := function(loss, args, r.own), partial(r.formula, **args, **own(r)), r, with_gradients(one))
        for r in REFERENCES[name]
        for args in r.args
    ]


def own(reference: Reference) -> dict:
    """The variables of a loss by name."""
    return {k: v for collection in reference.own.values() for k, v in collection.items()}


def function(loss: Any, args: dict, variables: dict) -> Callable:
    """Of the inputs alone; a module is applied to its variables."""
    if not isinstance(loss, type):
        return partial(loss, **args)
    module = loss(**args)
    held = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32 if isinstance(x, int) else jnp.float32), variables)
    return lambda *inputs: module.apply(held, *inputs, mutable=["memory"])[0]


def with_gradients(loss: Callable) -> Callable:
    def total(*inputs):
        values = loss(*inputs)
        return values.sum(), values

    def run(*inputs):
        wrt = (0, 1) if len(inputs) > 1 and inputs[1].dtype == inputs[0].dtype else (0,)
        (_, values), grads = jax.value_and_grad(total, argnums=wrt, has_aux=True)(*inputs)
        return values, grads

    return jax.jit(run)


def by_formula(case: Case, *inputs) -> np.ndarray:
    """The value of each example."""
    inputs = [float64(x) for x in inputs]
    if case.reference.whole:
        return case.formula(*inputs)
    return np.array([case.formula(*one) for one in zip(*inputs, strict=True)])


def slope(case: Case, *inputs, wrt: int, step: float = 1e-6) -> np.ndarray:
    """Central differences of the sum over the batch."""
    inputs = [float64(x) for x in inputs]
    grad = np.zeros(inputs[wrt].shape)
    for index in np.ndindex(grad.shape):
        ends = []
        examples = slice(None) if case.reference.whole else slice(index[0], index[0] + 1)
        for sign in (1, -1):
            moved = [x.copy() for x in inputs]
            moved[wrt][index] += sign * step
            ends.append(by_formula(case, *(x[examples] for x in moved)).sum())
        grad[index] = (ends[0] - ends[1]) / (2 * step)
    return grad


def agree(found, expected, relative=1e-5):
    np.testing.assert_allclose(found, expected, rtol=relative, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_formula(name):
    for case in cases(name):
        inputs = drawn(case.reference)
        found, grads = case.run(*inputs)
        assert found.shape == (BATCH,)
        assert found.dtype == jnp.float32
        agree(found, by_formula(case, *inputs))
        for wrt, grad in enumerate(grads):
            if wrt and case.reference.still:
                np.testing.assert_array_equal(grad, 0)
            elif not (case.reference.multi_hot and wrt):  # a formula of yes and no has no slope in between
                agree(grad, slope(case, *inputs, wrt=wrt))


@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_extremes(name):
    for _, _, reference, run in cases(name):
        student, *targets = (np.asarray(x) for x in drawn(reference))
        signs = np.where(student > 0, 1, -1)
        arrays = [np.zeros_like(student), np.ones_like(student), 1e4 * signs, np.full_like(student, -1e4)]
        arrays += [-1e4 * signs, 1e-30 * student]
        ids = range(2 if reference.multi_hot else reference.classes or reference.labelled)
        of_ids = [t.dtype.kind != "f" or reference.multi_hot for t in targets]
        others = [np.eye(student.shape[-1])[: len(student)]] if reference.shares else arrays
        held = [[np.full_like(t, c) for c in ids] if i else others for t, i in zip(targets, of_ids, strict=True)]
        for s in arrays:
            for t in [targets, *product(*held)][: None if targets else 1]:
                inputs = [s, *t]
                values, grads = run(
                    *(jnp.asarray(x, d.dtype) for x, d in zip(inputs, [student, *targets], strict=True))
                )
                assert np.isfinite(values).all()
                assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_arrays_cost_nothing(name):
    for _, _, reference, run in cases(name):
        if not (reference.classes or reference.alone or reference.multi_hot) and reference.zero_at_equal:
            x, other, *labels = drawn(reference)
            values, grads = run(x, x, *labels)
            for zero in (values, *grads):
                np.testing.assert_allclose(zero, 0, atol=1e-6)
            assert run(x, other, *labels)[0].min() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_examples_keep_their_place(name):
    order = np.array([2, 0, 1])
    for _, _, reference, run in cases(name):
        inputs = drawn(reference)
        straight, mixed = run(*inputs), run(*(x[order] for x in inputs))
        close = (1e-5, 1e-5) if reference.whole else (1e-6, 1e-7)  # another order of summing rounds otherwise
        for a, b in zip(jax.tree.leaves(straight), jax.tree.leaves(mixed), strict=True):
            np.testing.assert_allclose(b, a[order], *close)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_is_computed_in_float32(name):
    loss, _, reference, run = cases(name)[0]
    narrow = [x if x.dtype.kind == "i" else x.astype(jnp.bfloat16) for x in drawn(reference)]
    wide = [x if x.dtype.kind == "i" else x.astype(jnp.float32) for x in narrow]
    found = jax.jit(loss)(*narrow)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, run(*wide)[0], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_vmap_changes_nothing(name):
    loss, _, reference, run = cases(name)[-1]
    batches = [drawn(reference, seed) for seed in range(2)]
    stacked = (jnp.stack(x) for x in zip(*batches, strict=True))
    expected = jnp.stack([run(*batch)[0] for batch in batches])
    np.testing.assert_allclose(jax.jit(jax.vmap(loss))(*stacked), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("factor", [1.001, -1.0])
def test_the_battery_would_notice(factor):
    case = cases("mse")[0]
    student, target = drawn(case.reference)
    with pytest.raises(AssertionError):
        agree(factor * np.square(student - target).mean(-1), by_formula(case, student, target))


def test_known_values():
    def loss(name, *inputs, **args):
        return jax.jit(partial(registry.get("losses", name), **args))(*inputs)

    far, zero = jnp.array([[1e4, 0.0, 0.0, 0.0]]), jnp.zeros((1, 4))
    np.testing.assert_allclose(loss("kl", zero, far, temperature=1.0), np.log(4), rtol=1e-6)
    np.testing.assert_allclose(loss("cosine", far, -far), 2.0, rtol=1e-6)
    np.testing.assert_allclose(loss("cosine", far, zero), 1.0)
    half, empty, full = jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2), int), jnp.ones((1, 2, 2), int)
    np.testing.assert_allclose(loss("bce", half, empty), np.log(2), rtol=1e-6)
    for sure, mask, expected in [(-1e4, empty, 0.0), (1e4, full, 0.0), (1e4, empty, 1.0), (-1e4, full, 1.0)]:
        np.testing.assert_allclose(loss("dice", half + sure, mask), expected, atol=1e-5)
    np.testing.assert_array_equal(loss("ce", jnp.ones((1, 2, 2, 3)), empty + 255, ignore=255), 0.0)


def test_a_class_that_is_none_shows():
    mask = np.zeros((4, 2, 2), np.int32)
    mask[:3, 0, 0] = -1, 3, 255
    for name, k in [("bce", 1), ("dice", 1), ("focal", 1), ("ce", 3), ("dice", 3), ("focal", 3)]:
        found = jax.jit(registry.get("losses", name))(jnp.ones((4, 2, 2, k)), jnp.asarray(mask))
        np.testing.assert_array_equal(np.isnan(found), [True, True, True, False], err_msg=f"{name}, {k} channels")


def test_arrays_that_do_not_belong_together():
    loss = partial(registry.get, "losses")
    one, four = jnp.ones((2, 3, 3, 1)), jnp.ones((2, 3, 3, 4))
    mask = jnp.zeros((2, 3, 3), int)
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        loss("kl")(four, four, variant="meen")
    with pytest.raises(ValueError, match="'bce' takes a single logit"):
        loss("ce")(one, mask)


def test_an_unknown_label_of_three_shows():
    found = jax.jit(registry.get("losses", "dkd"))(jnp.ones((4, 3)), jnp.zeros((4, 3)), jnp.array([-1, 3, 255, 2]))
    np.testing.assert_array_equal(np.isnan(found), [True, True, True, False])


def test_of_two_classes_dkd_is_kl():
    """There is one class besides the label, and nothing to tell about it."""
    rng = np.random.default_rng(1)
    s, t = (jnp.asarray(rng.normal(0, 3, (6, 2)), jnp.float32) for _ in range(2))
    labels = jnp.asarray(rng.integers(0, 2, 6))
    for alpha in (1.0, 0.3):
        found = registry.get("losses", "dkd")(s, t, labels, temperature=2.0, alpha=alpha)
        np.testing.assert_allclose(found, alpha * registry.get("losses", "kl")(s, t, temperature=2.0), rtol=1e-4)


def test_of_a_single_logit_kl_is_that_of_two_classes():
    rng = np.random.default_rng(0)
    s, t = (jnp.asarray(rng.normal(0, 3, (4, 5, 1)), jnp.float32) for _ in range(2))
    found = registry.get("losses", "kl")(s, t, temperature=2.0)
    np.testing.assert_array_equal(found, registry.get("losses", "binary_kl")(s, t, temperature=2.0))
    two = [jnp.concatenate([jnp.zeros_like(z), z], -1) for z in (s, t)]
    np.testing.assert_allclose(found, registry.get("losses", "kl")(*two, temperature=2.0), rtol=1e-5)


@pytest.mark.parametrize(("name", "k"), [("ce", 3), ("bce", 1)])
def test_class_weights_multiply_the_positions_of_a_class(name, k):
    rng, loss = np.random.default_rng(0), registry.get("losses", name)
    logits = jnp.asarray(rng.normal(size=(4, 6, k)), jnp.float32)
    labels = rng.integers(0, max(k, 2), (4, 6))
    weights = (0.5, 2.0, 3.0)[: max(k, 2)]
    each = np.stack([loss(logits[:, i : i + 1], jnp.asarray(labels[:, i : i + 1])) for i in range(6)], 1)
    expected = (each * np.asarray(weights)[labels]).mean(1)
    np.testing.assert_allclose(loss(logits, jnp.asarray(labels), class_weights=weights), expected, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"class_weights: expected \d, one for each class, found 4"):
        loss(logits, jnp.asarray(labels), class_weights=(1.0,) * 4)
