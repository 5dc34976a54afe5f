"""Votes of views and of models, as numbers."""

import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.deploy import ensemble


def test_views_are_exact_turns():
    """Each pixel goes where the view says, and comes back."""
    image = np.arange(2 * 5 * 5 * 3, dtype=np.uint8).reshape(2, 5, 5, 3)
    last = 4
    goes = {  # (row, column) -> where it comes to lie
        "hflip": lambda r, c: (r, last - c),
        "vflip": lambda r, c: (last - r, c),
        "rot90": lambda r, c: (last - c, r),
        "rot180": lambda r, c: (last - r, last - c),
        "rot270": lambda r, c: (c, last - r),
    }
    assert set(goes) == set(ensemble.VIEWS)
    batch = {"image": image, "class": np.array([0, 1])}
    for view, place in goes.items():
        turned = ensemble.turning(view, ["image"])(batch)
        assert turned["class"] is batch["class"]
        assert turned["image"].flags.c_contiguous
        for r in range(5):
            for c in range(5):
                np.testing.assert_array_equal(turned["image"][:, *place(r, c)], image[:, r, c])
    assert ensemble.turning(ensemble.AS_IT_IS, ["image"])(batch) == batch


def test_votes_are_means_of_probabilities():
    rng = np.random.default_rng(0)
    votes = [{"logits": 3 * rng.normal(size=(7, 4)).astype(np.float32), "features": np.ones((7, 2))} for _ in range(3)]
    exponentials = [np.exp(vote["logits"].astype(np.float64)) for vote in votes]
    mean = sum(e / e.sum(1, keepdims=True) for e in exponentials) / 3
    pooled = ensemble.together(votes)
    assert set(pooled) == {"logits", "energy"}
    np.testing.assert_allclose(pooled["logits"], np.log(mean), rtol=1e-12)
    np.testing.assert_allclose(pooled["energy"], -sum(np.log(e.sum(1)) for e in exponentials) / 3, rtol=1e-12)


def test_votes_are_finite_at_extremes_and_tell_what_diverged():
    sure = np.array([[1e4, -1e4]], np.float32)
    assert np.isfinite(ensemble.mean_probability([sure, sure])).all()
    np.testing.assert_allclose(np.exp(ensemble.mean_probability([sure, -sure])), [[0.5, 0.5]])
    broken = np.array([[np.inf, 0.0]], np.float32)
    assert np.isnan(ensemble.mean_probability([sure, broken])).all()


def test_unknown_views_are_refused():
    ensemble.refuse_unknown_views(tuple(ensemble.VIEWS))
    with pytest.raises(ConfigError, match="--tta: no view 'rot9'; did you mean 'rot90'"):
        ensemble.refuse_unknown_views(("hflip", "rot9"))
