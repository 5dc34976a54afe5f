"""One graph whose nodes are the examples."""

import itertools

import jax
import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from kdjax.data.fields import readable
from kdjax.data.graphs.citations import Citations

SMALL = {"nodes": 200, "fields": 3, "words": 40}


def build(parts: int = 1, **changes):
    return pipeline.build(Data("citations", **{"num_classes": 3, "batch_size": 200, **SMALL, **changes}), parts)


def test_a_batch_is_the_whole_graph_with_a_node_of_padding():
    dataset, source = build(), Citations(**SMALL)
    told = dataset.shapes(1)
    for batch in (next(dataset.train(200, seed=0)), next(iter(dataset.evaluate("val", 200)))):
        assert batch.keys() == told.keys()
        assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch) == told
        graphs = batch["graphs"]
        np.testing.assert_array_equal(graphs.nodes["x"][0, :-1], source.x)
        np.testing.assert_array_equal(graphs.senders[0], source.senders)
        np.testing.assert_array_equal(graphs.receivers[0], source.receivers)
        assert (graphs.nodes["x"][0, -1] == 0).all()
        assert readable(batch)["nodes"][0].tolist() == [True] * 200 + [False]
        assert graphs.n_node[0].tolist() == [200, 1]
    assert dataset.facts == {"features": 40, "num_classes": 3}
    assert (dataset.steps_per_epoch(200), dataset.axis(200), dataset.item) == (1, 1, "node")


def test_all_nodes_are_valid_in_training_and_few_labelled():
    dataset, source = build(), Citations(**SMALL)
    one, two = itertools.islice(dataset.train(200, seed=0), 2)
    jax.tree.map(np.testing.assert_array_equal, one, two)  # the same graph each time
    assert one["valid"][0].tolist() == [True] * 200 + [False]
    train = source.where["train"]
    assert np.flatnonzero(one["class_known"][0]).tolist() == train.tolist()
    np.testing.assert_array_equal(one["class"][0, train], source.classes[train])
    assert (np.delete(one["class"][0], train) == -1).all(), "no label of another split is in the batch"


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_evaluation_counts_the_nodes_of_the_split(split):
    dataset, source = build(), Citations(**SMALL)
    (batch,) = dataset.evaluate(split, 200)
    nodes = source.where[split]
    for name in ("valid", "class_known"):
        assert np.flatnonzero(batch[name][0]).tolist() == nodes.tolist()
    assert batch["index"][0, nodes].tolist() == list(range(len(nodes)))
    assert (np.delete(batch["index"][0], nodes) == -1).all()
    assert dataset.sizes[split] == len(nodes)
    np.testing.assert_array_equal(dataset.labels(split), source.classes[nodes])
    np.testing.assert_array_equal(batch["class"][0, nodes], source.classes[nodes])


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match=r"'citations' is one graph, which does not divide: set mesh\.data=1"):
        build(parts=2)
    with pytest.raises(ConfigError, match=r"classes 0 to 2 do not fit num_classes=2"):
        build(num_classes=2)
    with pytest.raises(ConfigError, match="no option 'node' of 'citations'; did you mean 'nodes'"):
        pipeline.build(Data("citations", node=3))
