"""Windows as graphs: the authors' goldens, and a slow version written from their description."""

import dataclasses

import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.data.can import log as can_log
from kdjax.data.can import windows
from kdjax.data.can.messages import Messages
from kdjax.data.can.windows import Mapping, graphs
from tests.support import can_logs

SETS = {f"test_{k:02d}": f"test{k:02d}" for k in range(1, 5)}


@pytest.fixture(scope="module")
def real(reference):
    """The logs of the survival-analysis set by name, and the mapping of its training logs."""
    paths = sorted((reference / "data" / "can_hcrl_sa").glob("*.parquet"))
    logs = {path.stem: log.messages for path, log in zip(paths, can_log.read_all(paths), strict=True)}
    return logs, Mapping.build([log for name, log in logs.items() if name.startswith("train")])


def test_the_mapping_of_the_real_set(real, reference):
    golden = np.load(reference / "goldens" / "can_hcrl_sa_id_mapping.npz")
    mapping = real[1]
    assert mapping.num_ids == 2032
    np.testing.assert_array_equal(mapping(golden["can_id"]), golden["index"])
    assert mapping(np.array([0x1FFFFFFF])) == golden["oov"]


def test_the_graphs_of_the_vgaes(real, reference):
    """x, ids, edges, labels of the first eight graphs of a log, exactly."""
    logs, mapping = real
    golden = np.load(reference / "goldens" / "can_vgae_first8_graphs.npz")
    log = logs["test_01_known_vehicle_known_attack__DoS-sonata"][:801]
    found = graphs(log, "B", mapping=mapping)
    assert len(found) == 8
    np.testing.assert_array_equal(found.x, golden["x"][:, 1:])
    np.testing.assert_array_equal(found.id, golden["x"][:, 0])
    np.testing.assert_array_equal(np.repeat(np.arange(8), np.diff(found.first_node)), golden["batch"])
    shift = np.repeat(found.first_node[:-1], np.diff(found.first_edge))
    np.testing.assert_array_equal(np.stack([found.senders, found.receivers]) + shift[None, :], golden["edge_index"])
    np.testing.assert_array_equal(found.label, golden["y"])
    assert found.begin[1] == log.time[100]
    assert set(found.name[found.id < mapping.num_ids - 1]) <= set(mapping.ids)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("generation", "window"), [("A", 50), ("B", 100), ("C", 100)])
def test_labels_and_number_of_real_windows(name, generation, window, real, reference):
    logs, mapping = real
    golden = np.load(reference / "goldens" / "can_hcrl_sa.npz")
    parts = [graphs(log, generation, mapping=mapping) for key, log in logs.items() if key.startswith(name)]
    labels = np.concatenate([part.label for part in parts])
    np.testing.assert_array_equal(labels, golden[f"{SETS[name]}_w{window}_labels"])


def slow(log: Messages, generation: str, window: int, stride: int, mapping: Mapping | None) -> list[dict]:
    """Graph by graph with dicts, in float64, from the description of the three generations."""
    index = {int(i): k for k, i in enumerate(mapping.ids)} if mapping else {}
    rows = [
        {"id": int(i), "next": int(j), "bytes": [int(b) for b in d], "attack": int(y)}
        for i, j, d, y in zip(log.id[:-1], log.id[1:], log.data, log.label, strict=False)
    ]
    found = []
    for start in range(0, len(rows) - window + 1, stride):
        part = rows[start : start + window]

        def key(can_id: int) -> int:
            return can_id if generation == "A" else index.get(can_id, len(index))

        nodes = sorted({key(row[k]) for row in part for k in ("id", "next")})
        pairs = sorted({(key(row["id"]), key(row["next"])) for row in part})
        sent = {node: [row for row in part if key(row["id"]) == node] for node in nodes}
        counts = [len(sent[node]) for node in nodes]
        x, ids = [], []
        for node in nodes:
            mine = sent[node]
            mean = [sum(row["bytes"][k] for row in mine) / len(mine) if mine else 0.0 for k in range(8)]
            if generation == "A":
                x.append([float(node if mine else 0), *mean, float(len(mine))])
                ids.append(0)
                continue
            span = max(counts) - min(counts)
            count = (len(mine) - min(counts)) / span if span else 0.0
            last = max((at for at, row in enumerate(part) if key(row["id"]) == node), default=0)
            x.append([*(m / 255 for m in mean), count, last / (window - 1) if window > 1 else 0.0])
            ids.append(node if mine or generation == "C" else 0)
        first = [row["id"] for row in part] + [part[-1]["next"]]
        found.append(
            {
                "x": x,
                "id": ids,
                "name": [next(i for i in first if key(i) == node) for node in nodes],
                "senders": [nodes.index(a) for a, _ in pairs],
                "receivers": [nodes.index(b) for _, b in pairs],
                "label": max(row["attack"] for row in part),
                "begin": log.time[start],
            }
        )
    return found


def compare(found: windows.Graphs, expected: list[dict]) -> None:
    assert len(found) == len(expected)
    for i, graph in enumerate(expected):
        nodes, edges = slice(*found.first_node[i : i + 2]), slice(*found.first_edge[i : i + 2])
        np.testing.assert_allclose(found.x[nodes], graph["x"], rtol=1e-6, atol=0)
        for name in ("id", "name"):
            assert getattr(found, name)[nodes].tolist() == graph[name], name
        for name in ("senders", "receivers"):
            assert getattr(found, name)[edges].tolist() == graph[name], name
        assert (found.label[i], found.begin[i]) == (graph["label"], graph["begin"])
    assert found.first_node[-1] == len(found.x) == len(found.id)
    assert found.first_edge[-1] == len(found.senders) == len(found.receivers)


@pytest.mark.parametrize("generation", ["A", "B", "C"])
@pytest.mark.parametrize(("window", "stride"), [(50, 50), (20, 7), (10, 25), (2, 1), (1, 1), (299, 1)])
@pytest.mark.parametrize("block", [windows.BLOCK, 60])
def test_graphs_are_those_of_the_slow_version(generation, window, stride, block, monkeypatch):
    """Some ids are unknown to the mapping; blocks of 60 messages hold one window or a few."""
    monkeypatch.setattr(windows, "BLOCK", block)
    log = can_logs.messages(seed=window, n=300)
    known = Mapping.build([log[:40]], generation)
    mapping = Mapping(known.ids[:-3])
    found = graphs(log, generation, window, stride, mapping)
    compare(found, slow(log, generation, window, stride, mapping))
    assert found.x.dtype == np.float32


def test_a_window_of_one_id_is_a_node_with_a_loop():
    log = dataclasses.replace(can_logs.messages(n=21), id=np.full(21, 7))
    found = graphs(log, "B", 10, mapping=Mapping((3, 7)))
    assert found.first_node.tolist() == found.first_edge.tolist() == [0, 1, 2]
    assert (found.senders.tolist(), found.receivers.tolist(), found.id.tolist()) == ([0, 0], [0, 0], [1, 1])
    assert found.x[:, 8].tolist() == [0, 0]  # counts that are all alike
    assert found.x[:, 9].tolist() == [1, 1]


@pytest.mark.parametrize("generation", ["A", "B"])
@pytest.mark.parametrize("n", [0, 1, 50, 51])
def test_a_log_shorter_than_a_window_has_no_graph(n, generation):
    """The last message is only a target: 50 make no window of 50."""
    found = graphs(can_logs.messages(n=60)[:n], generation, 50, mapping=Mapping((1,)))
    assert len(found) == (n > 50)
    assert len(found.first_node) == len(found.first_edge) == len(found) + 1
    assert found.x.shape[1] == 10


def test_the_generations_own_windows():
    log = can_logs.messages(n=201)
    assert [len(graphs(log, g, mapping=Mapping((1,)))) for g in "ABC"] == [4, 2, 2]


def test_windows_of_an_unlabelled_log():
    log = can_logs.messages(n=101, labelled=False)
    assert graphs(log, "A", file=3).label.tolist() == [-1, -1]
    assert graphs(log, "A", file=3).file.tolist() == [3, 3]
    attacks = dataclasses.replace(log, label=(np.arange(101) == 60).astype(np.int8))
    assert graphs(attacks, "A").label.tolist() == [0, 1]
    last = dataclasses.replace(log, label=(np.arange(101) == 100).astype(np.int8))
    assert graphs(last, "A").label.tolist() == [0, 0]  # it is only a target


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError) as error:
        graphs(can_logs.messages(n=9), "D", -1, -2)
    assert "no generation 'D'" in str(error.value)
    assert "window: expected messages, or 0 for the generation's own, found -1" in str(error.value)
    assert "stride: " in str(error.value)
    with pytest.raises(ConfigError, match="generation B needs a mapping"):
        graphs(can_logs.messages(n=9), "B")


# -- the mapping -----------------------------------------------------------------------------------------------------


def test_the_mapping_counts_what_follows_normal_messages():
    """5 is an attack's id, but follows a normal message; 6 follows an attack alone; the end of a log has no next."""
    one = dataclasses.replace(can_logs.messages(n=5), id=np.array([9, 2, 5, 6, 2]), label=np.int8([0, 0, 1, 1, 0]))
    two = dataclasses.replace(can_logs.messages(n=2), id=np.array([4, 8]), label=np.int8([0, 1]))
    assert Mapping.build([one, two], "B").ids == (9, 2, 4, 5, 8)
    assert Mapping.build([two, one], "B").ids == (4, 9, 2, 8, 5)
    assert Mapping.build([one, two], "C").ids == (2, 4, 5, 6, 8, 9)
    assert Mapping.build([one, two], "A").ids == ()


def test_an_unlabelled_log_counts_whole():
    log = can_logs.messages(n=50, labelled=False)
    assert set(Mapping.build([log]).ids) == set(log.id.tolist())


def test_unknown_ids_have_the_last_index(tmp_path):
    mapping = Mapping((9, 2, 0x1FFFFFFF))
    assert mapping(np.array([2, 9, 3, 0x1FFFFFFF, 0, 0x1FFFFFFE])).tolist() == [1, 0, 3, 2, 3, 3]
    assert mapping.num_ids == 4
    assert Mapping(())(np.array([1, 2])).tolist() == [0, 0]
    mapping.save(tmp_path / "ids.json")
    assert Mapping.load(tmp_path / "ids.json") == mapping
