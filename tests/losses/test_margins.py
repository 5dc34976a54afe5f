"""What margins remember, whose margin a mixed example has, and the ends of the cosine."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.losses.contrastive import SupCon
from kdjax.losses.labels import evidential
from kdjax.losses.margins import AdaFace, CurricularFace, arcface, cosface
from tests.losses import reference

pytestmark = pytest.mark.long  # values and gradients of each are compared in test_losses.py

B, K, D = 6, 4, 5
RNG = np.random.default_rng(3)
COSINES = np.tanh(RNG.normal(size=(B, K)))
FEATURES = RNG.normal(size=(B, D)) * 3
CLASSES = RNG.integers(0, K, B)
OWN = (CLASSES + 1) % K
SHARES = RNG.dirichlet(np.ones(K), B)
WHERE = np.arange(B) < 4


def array(x):
    return None if x is None else jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32)


def agree(found, expected):
    """By the largest: of 64 times a difference of cosines little is left where a class is sure."""
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def applied(loss, memory, *inputs, **options):
    held = {"memory": jax.tree.map(jnp.float32, memory)}
    options = {name: jnp.asarray(value) for name, value in options.items()}
    value, new = jax.jit(partial(loss.apply, mutable=["memory"]))(held, *map(array, inputs), **options)
    return value, new["memory"]


@pytest.mark.parametrize(("target", "own"), [(SHARES, None), (SHARES, OWN), (CLASSES, OWN)])
def test_a_mixed_example_has_the_margin_of_each_class_or_of_the_one_named(target, own):
    rows = zip(COSINES, target, [None] * B if own is None else own, strict=True)
    expected = np.array([[reference.arcface(*row), reference.cosface(*row)] for row in rows])
    for i, loss in enumerate((arcface, cosface)):
        agree(jax.jit(loss)(*map(array, (COSINES, target, own))), expected[:, i])
    found, _ = applied(AdaFace(), {"mean": 5.0, "spread": 2.0}, COSINES, FEATURES, target, own)
    expected = reference.adaface(COSINES, FEATURES, target, 5.0, 2.0, own)
    agree(found, expected)
    found, memory = applied(CurricularFace(momentum=0.8), {"t": 0.3}, COSINES, target, own)
    expected = reference.curricularface(COSINES, target, 0.3, own, momentum=0.8)
    agree(found, expected)
    whose = target if own is None else own
    shares = np.eye(K)[whose] if whose.ndim == 1 else whose
    np.testing.assert_allclose(memory["t"], 0.8 * 0.3 + 0.2 * (COSINES * shares).sum(1).mean(), rtol=1e-5)


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_padding_does_not_move_what_a_margin_remembers(variant):
    wild = np.where(WHERE[:, None], FEATURES, 1e6), np.where(WHERE[:, None], COSINES, 0.999)
    loss, start = AdaFace(variant=variant, momentum=0.7), {"mean": 5.0, "spread": 2.0}
    found, memory = applied(loss, start, wild[1], wild[0], CLASSES, where=WHERE)
    lengths = np.linalg.norm(FEATURES[:4], axis=1)
    np.testing.assert_allclose(memory["mean"], 0.7 * 5 + 0.3 * lengths.mean(), rtol=1e-5)
    np.testing.assert_allclose(memory["spread"], 0.7 * 2 + 0.3 * lengths.std(ddof=1), rtol=1e-5)
    alone = applied(loss, start, COSINES[:4], FEATURES[:4], CLASSES[:4])[0]
    agree(found[:4], alone)
    assert applied(loss, start, COSINES, FEATURES, CLASSES, where=np.zeros(B, bool))[1] == start

    loss, start = CurricularFace(variant=variant, momentum=0.7), {"t": 0.25}
    found, memory = applied(loss, start, wild[1], CLASSES, where=WHERE)
    alone, same = applied(loss, start, COSINES[:4], CLASSES[:4])
    np.testing.assert_allclose(memory["t"], same["t"], rtol=1e-6)
    agree(found[:4], alone)
    expected = reference.curricularface(COSINES, CLASSES, 0.25, momentum=0.7, variant=variant, where=WHERE)
    agree(found[:4], expected[:4])
    assert applied(loss, start, COSINES, CLASSES, where=np.zeros(B, bool))[1] == start


def test_margins_begin_as_published():
    """Making one ready remembers nothing of the shapes that it is made with."""
    ones = jnp.ones((B, K))
    assert AdaFace().init(jax.random.key(0), ones, ones, array(CLASSES))["memory"] == {"mean": 20.0, "spread": 100.0}
    assert CurricularFace().init(jax.random.key(0), ones, array(CLASSES))["memory"] == {"t": 0.0}
    assert all(loss.mixes for loss in (AdaFace, CurricularFace, SupCon))


def test_the_ends_of_the_cosine_have_finite_slopes():
    """And a class that already agrees by its whole angle is still pulled to the side where the others are not."""
    ends = jnp.asarray([[1.0, -1.0, 1.0, 0.2], [-1.0, 1.0, 0.1, -1.0], [1.0000001, 0.0, -1.0000001, 1.0]])
    classes = jnp.asarray([0, 0, 2])
    memories = {"mean": jnp.float32(2.0), "spread": jnp.float32(0.1)}, {"t": jnp.float32(0.5)}
    losses = [arcface, cosface]
    for variant in ("paper", "code"):
        ada, curricular = AdaFace(variant=variant), CurricularFace(variant=variant)
        losses += [
            lambda c, y, m=ada: m.apply({"memory": memories[0]}, c, 2 * c, y, mutable=["memory"])[0],
            lambda c, y, m=curricular: m.apply({"memory": memories[1]}, c, y, mutable=["memory"])[0],
        ]
    for loss in losses:
        values, grad = jax.jit(jax.value_and_grad(lambda c, loss=loss: loss(c, classes).sum()))(ends)
        assert np.isfinite(values).all()
        assert np.isfinite(grad).all()
    assert (np.diff([float(arcface(jnp.asarray([[c, 0.0]]), jnp.asarray([0]))[0]) for c in (-1, -0.9, -0.8)]) < 0).all()


def test_a_class_that_is_none_shows_and_so_does_a_wrong_variant():
    cosines, labels = jnp.zeros((3, K)), jnp.asarray([-1, K, 1])
    for loss in (arcface, cosface, evidential):
        np.testing.assert_array_equal(np.isnan(loss(cosines, labels)), [True, True, False])
    for loss in (AdaFace(variant="papr"), CurricularFace(variant="papr"), SupCon(variant="papr")):
        given = (cosines, cosines, labels) if isinstance(loss, AdaFace) else (cosines, labels)
        with pytest.raises(ConfigError, match="did you mean 'paper'"):
            loss.init(jax.random.key(0), *given)
    with pytest.raises(ConfigError, match="no variant 'papr' of evidential; did you mean 'paper'"):
        evidential(cosines, labels, variant="papr")
