"""Losses that compare the examples of a batch: padding, equal examples, and what each of them does not see."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.losses.contrastive import infonce
from kdjax.losses.projected import Projected
from kdjax.losses.relations import mmd, rkd_angle, rkd_distance
from tests.losses import reference


def projected(student, teacher, *, where):
    map = {"kernel": jnp.asarray(KERNEL, jnp.float32), "bias": jnp.zeros(3)}
    return Projected(loss="mmd", args={"bandwidths": [1.0, 2.0]}).apply({"memory": map}, student, teacher, where=where)


KERNEL = np.random.default_rng(5).normal(size=(5, 3))
ONE_WIDTH = {"infonce": (infonce, reference.infonce), "mmd": (mmd, reference.mmd)}
RKD = {"distance": (rkd_distance, reference.rkd_distance), "angle": (rkd_angle, reference.rkd_angle)}
ANY_WIDTH = {
    f"rkd_{name}, {variant}": (partial(loss, variant=variant), partial(formula, variant=variant))
    for name, (loss, formula) in RKD.items()
    for variant in ("paper", "code")
}
PROJECTED = {"projected": (projected, lambda s, t: reference.mmd(s, t @ KERNEL, (1.0, 2.0)))}
LOSSES = ONE_WIDTH | ANY_WIDTH | PROJECTED
STUDENT, TEACHER = (np.random.default_rng(i).normal(size=(5, 3 + 2 * i)) for i in range(2))
ROWS = np.arange(5)


def read(name, student, teacher):
    return student, teacher[:, :3] if name in ONE_WIDTH else teacher


def each(student, teacher, where):
    return {name: loss(*read(name, student, teacher), where=where) for name, (loss, _) in LOSSES.items()}


_values = jax.jit(each)
_slopes = jax.jit(jax.jacrev(lambda *x: {name: values.sum() for name, values in each(*x).items()}))


def given(student, teacher, where):
    return *(jnp.asarray(x, jnp.float32) for x in (student, teacher)), jnp.asarray(where)


def values(student, teacher, where=ROWS < 5):
    """name -> the value of each example; compiled once for all that follows."""
    return {name: np.asarray(x) for name, x in _values(*given(student, teacher, where)).items()}


def agrees(name, found, student, teacher):
    expected = LOSSES[name][1](*read(name, student, teacher))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)


def padded(wild):
    where = np.array([True, False, True, True, False])
    return where, *(np.where(where[:, None], x, wild) for x in (STUDENT, TEACHER))


@pytest.mark.parametrize("wild", [np.nan, 1e30, 0.0])
def test_padding_changes_nothing_whatever_stands_there(wild):
    where, *both = padded(wild)
    for name, found in values(*both, where).items():
        agrees(name, found[where], STUDENT[where], TEACHER[where])
        np.testing.assert_array_equal(found[~where], 0, err_msg=name)


EQUAL = [x[rows] for x, rows in ((STUDENT, [0, 0, 2, 3, 4]), (TEACHER, [0, 1, 2, 2, 4]))]
FLAT = np.broadcast_to(STUDENT[:1], STUDENT.shape)
DEGENERATE = [
    (*EQUAL, ROWS < 5),
    (FLAT, TEACHER, ROWS < 5),
    (FLAT, 0 * TEACHER, ROWS < 5),
    (STUDENT, TEACHER, ROWS < 1),
    (STUDENT, TEACHER, ROWS < 0),
]


def test_equal_examples_and_batches_of_one_or_none():
    for name, found in values(*EQUAL).items():
        agrees(name, found, *EQUAL)
    for case in DEGENERATE:
        assert all(np.isfinite(found).all() for found in values(*case).values())
    alone = values(STUDENT, TEACHER, ROWS < 1)
    assert all((alone[name] == 0).all() for name in ("infonce", *ANY_WIDTH)), "it lies among no others"


@pytest.mark.long
def test_slopes():
    """Of padding they are 0, of degenerate batches finite, and else those of the formulas, by central differences."""
    where, *both = padded(np.nan)
    for name, slope in _slopes(*given(*both, where)).items():
        np.testing.assert_array_equal(slope[~where], 0, err_msg=name)
        assert (np.abs(slope[where]).max(axis=1) > 1e-4).all(), name
    for case in DEGENERATE:
        assert all(np.isfinite(slope).all() for slope in _slopes(*given(*case)).values())
    for name, slope in _slopes(*given(STUDENT, TEACHER, ROWS < 5)).items():
        expected = np.zeros_like(STUDENT)
        for at in np.ndindex(expected.shape):
            moved = [STUDENT.copy() for _ in range(2)]
            moved[0][at] += 1e-6
            moved[1][at] -= 1e-6
            high, low = (LOSSES[name][1](*read(name, s, TEACHER)).sum() for s in moved)
            expected[at] = (high - low) / 2e-6
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max(), err_msg=name)


def test_what_a_relation_does_not_see():
    """Where everything lies, how large it is, and how it is turned."""
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    plain, scaled, turned = (values(STUDENT, t) for t in (TEACHER, 7 * TEACHER, TEACHER @ turn))
    moved = values(STUDENT, TEACHER + 3)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for name in ANY_WIDTH:
        close(turned[name], plain[name])
        close(scaled[name], plain[name])
        assert np.allclose(moved[name], plain[name], rtol=1e-4) == ("paper" in name)
    close(scaled["infonce"], plain["infonce"])
    assert not np.allclose(scaled["mmd"], plain["mmd"], rtol=1e-2)


def test_mmd_compares_two_sets():
    """It is their discrepancy by definition, 0 for one set in another order, and who belongs to whom is not asked."""
    pairs = [(a, b) for a in range(5) for b in range(5)]
    near = lambda x, y: np.mean([np.exp(-np.sum((x - y) ** 2) / (2 * w**2)) for w in (0.2, 0.5, 1, 2, 5)])  # noqa: E731
    s, t = STUDENT, TEACHER[:, :3]
    squared = np.mean([near(s[a], s[b]) + near(t[a], t[b]) - 2 * near(s[a], t[b]) for a, b in pairs])
    order = np.array([3, 0, 4, 1, 2])
    for teacher in (TEACHER, TEACHER[order]):
        assert values(STUDENT, teacher)["mmd"].mean() == pytest.approx(squared, rel=1e-5)
    padded = np.concatenate([STUDENT[order], TEACHER[:, 3:]], axis=1)
    again = values(STUDENT, padded)
    assert abs(again["mmd"].mean()) < 1e-7
    assert again["infonce"].mean() > 0.1


def test_what_does_not_fit_is_refused():
    flat, maps = jnp.ones((2, 3)), jnp.ones((2, 4, 4, 3))
    for loss in (infonce, mmd, rkd_distance, rkd_angle):
        with pytest.raises(ConfigError, match=r"a vector for each example \[b, d\], found \[2, 4, 4, 3\]; name an"):
            loss(maps, maps)
    for loss in (rkd_distance, rkd_angle):
        with pytest.raises(ConfigError, match=f"no variant 'papers' of {loss.__name__}; did you mean 'paper'"):
            loss(flat, flat, variant="papers")
    for widths in ((), (1.0, 0.0)):
        with pytest.raises(ConfigError, match="bandwidths: expected numbers above 0"):
            mmd(flat, flat, bandwidths=widths)
    assert all(loss.mixes for loss in (infonce, mmd, rkd_distance, rkd_angle))
