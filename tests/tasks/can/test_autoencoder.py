"""What an autoencoder of graphs is trained on, judged by and alarmed by."""

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.data.fields import GraphsField
from kdjax.tasks import task as finished
from kdjax.tasks.can.autoencoder import NEEDED, Autoencoder
from tests.support.graph_packs import nodes_of
from tests.tasks import test_detection

TASK = Autoencoder.of(Data("can_traffic"))


def outputs(seed: int = 0, packs: int = 2, graphs: int = 4, nodes: int = 12) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    of = np.sort(rng.integers(0, graphs + 1, (packs, nodes)), axis=1)  # the last are padding
    of[:, -1] = graphs
    label = rng.integers(-1, 2, (packs, graphs))
    out = {k: jnp.asarray(rng.gamma(2, size=(packs, nodes)), jnp.float32) for k in ("feature_error", "neighbour_error")}
    out["anomaly_parts"] = jnp.asarray(rng.random((packs, graphs + 1, 3)), jnp.float32)
    out["embedding"] = jnp.asarray(rng.normal(size=(packs, graphs + 1, 5)), jnp.float32)
    label = np.pad(label, ((0, 0), (0, 1)), constant_values=-1)
    n_node = np.stack([np.bincount(row, minlength=graphs + 1) for row in of]).astype(np.int32)
    empty = GraphsField(nodes, 1, graphs + 1, 1).rows(packs)
    return out, {"graphs": empty._replace(n_node=n_node), "class": jnp.asarray(label, jnp.int32)}


@pytest.mark.parametrize("seed", range(3))
def test_fit_is_minus_the_mean_error_of_nodes_that_no_attack_has(seed):
    out, batch = outputs(seed)
    errors = []
    for p in range(2):
        for n, g in enumerate(nodes_of(batch["graphs"])[p]):
            if g < 4 and batch["class"][p, g] != 1:
                errors.append(float(out["feature_error"][p, n] + out["neighbour_error"][p, n]))
    assert 0 < len(errors) < int(batch["graphs"].n_node[:, :-1].sum()), "some nodes are of attacks"
    total, count = TASK.measure(out, batch)["fit"]
    assert int(count) == len(errors)
    assert float(total) == pytest.approx(-np.sum(errors), rel=1e-5)


def test_padding_and_attacks_may_hold_anything():
    out, batch = outputs()
    of_node = nodes_of(batch["graphs"])
    left = (of_node == 4) | np.take_along_axis(np.asarray(batch["class"]) == 1, of_node, 1)
    wild = {k: jnp.where(left, jnp.nan, out[k]) for k in ("feature_error", "neighbour_error")}
    assert TASK.measure({**out, **wild}, batch) == TASK.measure(out, batch)
    seen = tuple(np.argwhere(~left)[0])
    broken = {**out, "feature_error": out["feature_error"].at[seen].set(jnp.nan)}
    assert np.isnan(TASK.measure(broken, batch)["fit"][0])


def test_the_anomaly_is_the_originals_sum():
    """The worst node's feature error, 20 times the worst neighbour error, 0.3 times the share of wrong ids."""
    out, batch = outputs()
    found = TASK.predict(out, batch)
    worst, neighbour, wrong_ids = np.moveaxis(np.asarray(out["anomaly_parts"]), -1, 0)
    np.testing.assert_allclose(found["score"], worst + 20 * neighbour + 0.3 * wrong_ids, rtol=1e-6)
    np.testing.assert_array_equal(found["embedding"], out["embedding"])


def test_a_model_that_lacks_something_is_refused():
    whole = dict.fromkeys(NEEDED)
    TASK.check(whole)
    for name in NEEDED:
        with pytest.raises(ConfigError, match=f"the model has no {name}$"):
            TASK.check({k: v for k, v in whole.items() if k != name})


def test_its_terms_are_of_nodes_and_need_no_labels():
    terms = TASK.terms()
    assert {term.over for term in terms.values()} == {"nodes"}
    assert {term.label for term in terms.values()} == {"x", "id", ""}
    assert not any(term.label == "class" for term in terms.values())
    assert {k: term.weight for k, term in terms.items() if term.weight != 1} == {"kl": 0.1}


def test_alarms_and_pictures():
    result, table, scores = test_detection.run(TASK, width=4)
    assert result == test_detection.run(width=4)[0], "judged like any score"
    assert len(table) == 10
    made = [finished.Tested({"title": "VGAE", "role": "teacher", **result}, test_detection.Sets(), scores)]
    assert list(TASK.pictures(made)) == ["Anomalies", "Example graphs"]
    assert TASK.words(test_detection.Sets())["group"] == "test set"
