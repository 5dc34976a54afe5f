"""Graphs in packs: where each node and edge goes, few sizes, whole passes, honest splits."""

import itertools

import jax
import jraph
import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from kdjax.data.fields import GraphsField, readable
from kdjax.data.graphs.packs import Graphs, GraphSet, dealt, joined, pack
from tests.support.graph_packs import nodes_of


def made(count: int, seed: int = 0, first: int = 0) -> Graphs:
    """Some without edges, one of a single node; `x` of a node tells the graph and the place in it."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 9, count)
    links = np.where(rng.random(count) < 0.2, 0, rng.integers(0, 15, count))
    offsets = lambda counts: np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)  # noqa: E731
    of = np.repeat(np.arange(count), sizes) + first
    place = np.concatenate([np.arange(n) for n in sizes])
    ends = [[rng.integers(0, n, e) for n, e in zip(sizes, links, strict=True)] for _ in range(2)]
    return Graphs(
        x=np.stack([of, place, rng.random(len(of))], axis=1).astype(np.float32),
        id=rng.integers(0, 30, len(of)).astype(np.int32),
        name=rng.integers(0, 2048, len(of)),
        senders=np.concatenate(ends[0]).astype(np.int32),
        receivers=np.concatenate(ends[1]).astype(np.int32),
        label=(np.arange(count) % 3 == 0).astype(np.int32),
        file=np.zeros(count, np.int32),
        begin=np.arange(count) * 0.1,
        first_node=offsets(sizes),
        first_edge=offsets(links),
    )


def slowly(graphs: Graphs, chosen, nodes: int, edges: int) -> dict:
    """What `pack` promises, a number at a time."""
    g, n, e = len(chosen), 0, 0
    real = total(graphs, chosen)[0]
    out = {"x": np.zeros((nodes, graphs.x.shape[1])), "id": np.zeros(nodes)}
    out |= {k: np.full(edges, real) for k in ("senders", "receivers")}
    out |= {k: np.zeros(g + 1) for k in ("n_node", "n_edge")}
    for k, i in enumerate(chosen):
        if i < 0:
            continue
        for j in range(graphs.first_edge[i], graphs.first_edge[i + 1]):
            out["senders"][e], out["receivers"][e], e = n + graphs.senders[j], n + graphs.receivers[j], e + 1
            out["n_edge"][k] += 1
        for j in range(graphs.first_node[i], graphs.first_node[i + 1]):
            out["x"][n], out["id"][n], n = graphs.x[j], graphs.id[j], n + 1
            out["n_node"][k] += 1
    out["n_node"][g], out["n_edge"][g] = nodes - n, edges - e
    return out


def flat(graphs: jraph.GraphsTuple) -> dict:
    names = ("senders", "receivers", "n_node", "n_edge")
    return {**graphs.nodes, **{name: getattr(graphs, name) for name in names}}


def total(graphs: Graphs, chosen) -> tuple[int, int]:
    nodes, edges = graphs.sizes()[[i for i in chosen if i >= 0]].sum(axis=0)
    return int(nodes), int(edges)


@pytest.mark.parametrize("seed", range(6))
def test_every_node_and_edge_is_where_it_belongs(seed):
    graphs, rng = made(20, seed), np.random.default_rng(seed)
    chosen = np.where(rng.random(9) < 0.3, -1, rng.integers(0, 20, 9))
    n, e = total(graphs, chosen)
    for nodes, edges in ((n + 1, e), (n + 7, e + 11)):  # the first leaves the one node that is always padding
        found, expected = flat(pack(graphs, chosen, nodes, edges)), slowly(graphs, chosen, nodes, edges)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        assert all(value.dtype == (np.float32 if name == "x" else np.int32) for name, value in found.items())
        assert found["n_node"][-1] > 0


def test_what_does_not_fit_a_pack_is_refused():
    graphs, chosen = made(6), np.arange(6)
    n, e = total(graphs, chosen)
    pack(graphs, chosen, n + 1, e)
    for nodes, edges in ((n, e), (n + 1, e - 1)):
        with pytest.raises(RuntimeError, match=f"n_node {nodes - n}, n_edge {edges - e}"):
            pack(graphs, chosen, nodes, edges)


def test_a_pack_of_nothing_is_padding():
    found = pack(made(3), np.full(4, -1), 5, 3)
    assert found.n_node.tolist() == [0, 0, 0, 0, 5]
    assert found.n_edge.tolist() == [0, 0, 0, 0, 3]
    assert not jraph.get_node_padding_mask(found).any()
    assert jraph.get_graph_padding_mask(found).tolist() == [True] * 4 + [False]
    field = GraphsField(nodes=5, edges=3, graphs=5, features=3)
    jax.tree.map(np.testing.assert_array_equal, field.rows(1), jax.tree.map(lambda x: x[None], found))


def test_joined_graphs_are_the_same_graphs():
    one, two = made(7, 1), made(5, 2, first=7)
    both = joined([one, two])
    assert len(both) == 12
    np.testing.assert_array_equal(both.sizes(), np.concatenate([one.sizes(), two.sizes()]))
    for part, shift in ((one, 0), (two, 7)):
        for i in range(len(part)):
            a, b = (pack(gs, np.array([k]), 9, 15) for gs, k in ((part, i), (both, i + shift)))
            jax.tree.map(np.testing.assert_array_equal, a, b)


# -- sets of graphs --------------------------------------------------------------------------------------------------


def graph_set(graphs: Graphs, parts: int = 1, **options) -> GraphSet:
    own = {k: options.pop(k) for k in ("buckets", "normal_only") if k in options}
    cut = np.split(np.arange(len(graphs)), [int(0.6 * len(graphs)), int(0.8 * len(graphs))])
    where = dict(zip(("train", "val", "test"), cut, strict=True))
    data = Data("can_traffic", **{"batch_size": 8, **options})
    return GraphSet(data, graphs, where, ["test"] * len(where["test"]), parts=parts, **own)


def rows(batch: dict) -> dict:
    """Each graph of a batch, by its place in the split: label, and its nodes and edges by what they hold."""
    found, graphs = {}, batch["graphs"]
    of_node = nodes_of(graphs)
    for p, index in enumerate(batch["index"]):
        assert index[-1] == -1
        for g, i in enumerate(index):
            if i < 0:
                assert not batch["valid"][p, g]
                assert (graphs.n_node[p, g] > 0) == (g == len(index) - 1), "the last has the padding"
                continue
            mine = of_node[p] == g
            links, x = mine[graphs.senders[p]], graphs.nodes["x"][p]
            content = [x[mine].tobytes(), graphs.nodes["id"][p][mine].tobytes()]
            content += [x[end[p][links]].tobytes() for end in (graphs.senders, graphs.receivers)]
            assert int(i) not in found
            found[int(i)] = (int(batch["class"][p, g]), bool(batch["class_known"][p, g]), *content)
    return found


def dealt_out(batch: dict) -> np.ndarray:
    return batch["index"][batch["valid"]]


def test_a_batch_is_what_it_says():
    dataset = graph_set(made(50), parts=2)
    batch = next(iter(dataset.train(8, seed=0)))
    told = dataset.shapes(2)
    assert batch.keys() == told.keys()
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch) == told
    assert batch["graphs"].n_node.shape == batch["valid"].shape == (2, 5)
    names = readable(batch)
    np.testing.assert_array_equal(names["nodes"], nodes_of(batch["graphs"]) < 4)
    assert names.keys() == batch.keys() | {"x", "id", "nodes"}
    assert jax.eval_shape(readable, told)["nodes"].shape == names["x"].shape[:2]
    assert dataset.axis(8) == 2
    for i, (label, labelled, x, *_) in rows(batch).items():
        graph = dataset.graph("train", i)
        assert (label, labelled) == (graph["label"], True)
        assert x == graph["x"].tobytes()
    assert [int(x) for x in dataset.labels("val")] == dataset.graphs.label[30:40].tolist()
    assert dataset.called("test") == ("begin", [f"{begin:.6f}" for begin in dataset.graphs.begin[40:]])


def test_packs_hold_what_one_pack_holds():
    graphs = made(40, 3)
    one, four = graph_set(graphs, 1), graph_set(graphs, 4)
    for a, b in zip(*(itertools.islice(d.train(8, seed=5), 4) for d in (one, four)), strict=True):
        assert rows(a) == rows(b)
        np.testing.assert_array_equal(dealt_out(a), dealt_out(b))


def test_two_processes_share_a_batch_out():
    """Each reads half of the packs, and both pad to the same bucket, which the larger half decides."""
    dataset = graph_set(made(200, 4), parts=4, buckets=3, batch_size=48)

    def read(**share):
        batches = itertools.islice(dataset.train(48, seed=1, **share), 8)
        return [*batches, *dataset.evaluate("val", 48, **share)]

    whole, *halves = read(), *(read(process=i, processes=2) for i in range(2))
    assert len({batch["graphs"].nodes["x"].shape for batch in whole}) > 1, "there is something to decide"
    alone = [[dataset._bucket(dataset._where["train"][half["index"][:, :-1]]) for half in mine[:8]] for mine in halves]
    assert alone[0] != alone[1], "and each would decide otherwise"
    for batch, *mine in zip(whole, *halves, strict=True):
        joint = jax.tree.map(lambda *parts: np.concatenate(parts), *mine)
        jax.tree.map(np.testing.assert_array_equal, joint, batch)


@pytest.mark.parametrize("parts", [1, 4])
def test_evaluation_covers_each_graph_once(parts):
    dataset = graph_set(made(101, 5), parts=parts)
    for split, n in dataset.sizes.items():
        found: dict = {}
        for batch in dataset.evaluate(split, 8):
            some = rows(batch)
            assert not found.keys() & some.keys()
            found |= some
            assert (batch["class"][~batch["valid"]] == -1).all()
            assert not batch["class_known"][~batch["valid"]].any()
        assert sorted(found) == list(range(n))
        for i, (label, _, x, *_) in found.items():
            graph = dataset.graph(split, i)
            assert (label, x) == (graph["label"], graph["x"].tobytes())


def test_a_pass_shows_each_training_graph_once():
    dataset = graph_set(made(100, 6), normal_only=True)
    normal = np.flatnonzero(dataset.labels("train") == 0)
    assert len(normal) == 40
    assert dataset.steps_per_epoch(8) == 5
    for epoch in range(2):
        seen = [dealt_out(b) for b in itertools.islice(dataset.train(8, seed=0, start=5 * epoch), 5)]
        assert sorted(np.concatenate(seen)) == normal.tolist()
    assert {int(x) for b in dataset.evaluate("val", 8) for x in b["class"][b["valid"]]} == {0, 1}
    with pytest.raises(ConfigError, match="normal_only needs windows without an attack"):
        graph_set(made(3), normal_only=True)  # 0, 1, 2, of which the first is an attack and the only one to train on


def test_the_share_of_labels():
    dataset = graph_set(made(200, 7), labelled=0.25)
    seen = [rows(b) for b in itertools.islice(dataset.train(8, seed=0), 15)]
    told = {i: row for some in seen for i, row in some.items()}
    assert len(told) == 120
    known = {i for i, (_, labelled, *_) in told.items() if labelled}
    assert len(known) == 30
    assert all(told[i][0] == dataset.labels("train")[i] for i in known)
    assert {told[i][0] for i in told.keys() - known} == {-1}
    alone = itertools.islice(dataset.train(8, seed=0, labelled_only=True), 8)
    assert set().union(*(rows(b).keys() for b in alone)) <= known
    assert all(labelled for b in dataset.evaluate("val", 8) for _, labelled, *_ in rows(b).values())


def test_graphs_without_a_label_are_not_labelled():
    graphs = made(50, 8)
    graphs.label[::5] = -1
    dataset = graph_set(graphs)
    for batch in itertools.islice(dataset.train(8, seed=0), 4):
        np.testing.assert_array_equal(batch["class_known"], batch["class"] >= 0)
    assert sum(not b["class_known"][b["valid"]].all() for b in itertools.islice(dataset.train(8, seed=0), 4)) > 0


def test_a_pool_is_all_that_is_dealt_out():
    dataset = graph_set(made(60, 9))
    pool = np.array([3, 5, 8, 13, 21, 34])
    seen = [dealt_out(b) for b in itertools.islice(dataset.train(6, seed=0, pool=pool), 3)]
    assert [sorted(some) for some in seen] == [pool.tolist()] * 3


# -- buckets ---------------------------------------------------------------------------------------------------------


def test_a_batch_larger_than_all_buckets_still_fits():
    graphs = made(60, 10)
    dataset = graph_set(graphs, buckets=1)
    assert dataset.buckets == [(64, 128)]
    many = dataset.batch("test", np.tile(np.argmax(graphs.sizes()[48:, 0]), 24))
    assert many["graphs"].n_node[:, :-1].sum() == 24 * graphs.sizes()[48:, 0].max()
    assert many["graphs"].nodes["x"].shape[1] in (128, 192, 320)  # 64, and half as much again, rounded up


@pytest.mark.parametrize("buckets", [1, 2, 4])
def test_traffic_is_well_packed_in_few_sizes(buckets):
    data = Data("can_traffic", batch_size=16, train_windows=400, test_windows=40, buckets=buckets)
    dataset = pipeline.build(data, 2)
    sizes, full = set(), []
    size = lambda batch: (batch["graphs"].nodes["x"].shape[1], batch["graphs"].senders.shape[1])  # noqa: E731
    for batch in itertools.islice(dataset.train(16, seed=0), dataset.steps_per_epoch(16)):
        sizes.add(size(batch))
        full.append(readable(batch)["nodes"].mean())
    for split in ("val", "test"):
        sizes |= {size(b) for b in dataset.evaluate(split, 16)}
    assert len(dataset.buckets) <= buckets
    assert sizes <= set(dataset.buckets), "a size is a compilation"
    assert np.mean(full) >= (0.8 if buckets > 1 else 0.7)
    (note,) = dataset.notes
    assert note.startswith("packs of ")
    assert note.endswith("% full")


# -- splits ----------------------------------------------------------------------------------------------------------


def test_alike_graphs_are_on_one_side_and_shares_about_right():
    graphs = made(1500, 11)
    twice = joined([graphs, graphs])
    shares = (0.6, 0.1, 0.3)
    part = dealt(twice, shares, 0)
    np.testing.assert_array_equal(part[:1500], part[1500:])
    np.testing.assert_allclose(np.bincount(part) / len(part), shares, atol=0.04)
    np.testing.assert_array_equal(dealt(twice, shares, 0), part)
    other = dealt(twice, shares, -1)
    assert 0.2 < (other == part).mean() < 0.7
    np.testing.assert_array_equal(dealt(graphs, shares, 0), part[:1500])  # whatever else there is


def test_a_share_of_nothing_gets_nothing():
    assert set(dealt(made(300), (0.5, 0.5, 0.0), 3)) == {0, 1}


def test_a_source_is_opened_once_and_split():
    data = {"batch_size": 8, "train_windows": 96, "test_windows": 16, "split": (0.7, 0.15, 0.15)}
    one = pipeline.build(Data("can_traffic", **data))
    two = pipeline.build(Data("can_traffic", **data, normal_only=True), 2)
    assert one.sizes == two.sizes
    assert sum(one.sizes[k] for k in ("train", "val")) == 96  # the test sets come with the data
    assert one.sizes["test"] == 64
    assert one.groups[::16] == (
        "known vehicle known attack",
        "unknown vehicle known attack",
        "known vehicle unknown attack",
        "unknown vehicle unknown attack",
    )
    assert one.facts == {"num_ids": one.graphs.id.max() + 1, "features": 10}
    assert one.keepsakes["windows.json"]["generation"] == "B"
    np.testing.assert_array_equal(one.labels("train"), two.labels("train"))
    assert (two.labels("train")[two.trained_on] == 0).all()
    with pytest.raises(ConfigError, match=r"'can_traffic' cannot be used:\n  no option 'bucket' of 'can_traffic'"):
        pipeline.build(Data("can_traffic", bucket=2))
    with pytest.raises(ConfigError, match="no graph is left for val"):
        pipeline.build(Data("can_traffic", **{**data, "train_windows": 8, "split": (0.98, 0.01, 0.01)}))
