"""Classes of examples, wherever these lie in a batch."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.tasks.classification import Classification

TASK = Classification.of(Data("citations", num_classes=3))


def made(shape, seed: int = 0) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    label, valid, labelled = rng.integers(0, 3, shape), rng.random(shape) < 0.8, rng.random(shape) < 0.7
    batch = {"class": np.where(labelled & valid, label, -1), "valid": valid, "labelled": labelled}
    return {"logits": jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32)}, {
        k: jnp.asarray(v) for k, v in batch.items()
    }


@pytest.mark.parametrize("shape", [(20,), (1, 30), (2, 9)])
def test_accuracy_is_of_the_known(shape):
    out, batch = made(shape)
    known = np.asarray(batch["valid"] & batch["labelled"])
    assert 0 < known.sum() < known.size
    right = (np.asarray(out["logits"]).argmax(-1) == np.asarray(batch["class"]))[known]
    total, count = TASK.measure(out, batch)["accuracy"]
    assert (int(total), int(count)) == (right.sum(), known.sum())
    for where, shows in ((~known, False), (known, True)):
        broken = out["logits"].at[tuple(np.argwhere(where)[0])].set(jnp.nan)
        assert bool(jnp.isnan(TASK.measure({"logits": broken}, batch)["accuracy"][0])) is shows


def test_predictions_are_logits_in_float32():
    out, batch = made((4,))
    half = out["logits"].astype(jnp.bfloat16)
    found = TASK.predict({"logits": half}, batch)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, half.astype(jnp.float32))
    assert TASK.calibrate(np.asarray(found), None) == {}


def test_another_number_of_classes_is_refused():
    TASK.check({"logits": jnp.zeros((2, 3))})
    with pytest.raises(ConfigError, match=r"of 3 classes needs .* gives \(1, 9, 7\); set num_classes=3"):
        TASK.check({"logits": jnp.zeros((1, 9, 7))})
    with pytest.raises(ConfigError, match="gives no 'logits'"):
        TASK.check({})


def test_a_tested_model():
    truth = np.array([0, 2, 1, 1, 0])
    logits = np.eye(3)[[0, 2, 2, 1, 1]] * 5
    dataset = types.SimpleNamespace(labels=lambda split: truth, item="node", sizes={"test": 5})
    result, table = TASK.test({"test": logits}.__getitem__, dataset, {})
    assert result["per_image"] == {"accuracy": [1.0, 1.0, 0.0, 1.0, 0.0]}
    found = result["metrics"]["accuracy"]
    assert (found["mean"], found["n"]) == (0.6, 5)
    assert found["std"] == pytest.approx(np.sqrt(0.6 * 0.4))
    assert table == [["node", "class", "predicted"], [0, 0, 0], [1, 2, 2], [2, 1, 2], [3, 1, 1], [4, 0, 1]]
    assert TASK.words(dataset) == {"over": "5 test nodes"}
