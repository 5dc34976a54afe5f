"""Cora, as it lies on disk and as its form is generated."""

import re

import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.data.graphs.citations import Citations
from kdjax.data.graphs.cora import Cora, sum_to_one, with_loops
from kdjax.data.graphs.nodes import NodeSource

N = 1640 + 20  # twenty nodes belong to no split


def arrays(**changes) -> dict:
    rng = np.random.default_rng(0)
    told = {"features": (rng.random((N, 12)) < 0.2).astype(np.float32), "labels": rng.integers(0, 7, N)}
    return {**told, "edge_index": rng.integers(0, N, (2, 3 * N)), **changes}


def written(folder, **changes) -> str:
    kept = {k: v for k, v in arrays(**changes).items() if v is not None}
    np.savez(folder / "cora.npz", **kept)
    return str(folder)


def test_it_is_read_with_the_standard_split(tmp_path):
    source = Cora(written(tmp_path))
    assert isinstance(source, NodeSource)
    given = arrays()
    np.testing.assert_array_equal(source.classes, given["labels"])
    where = {split: (int(nodes[0]), int(nodes[-1]), len(nodes)) for split, nodes in source.where.items()}
    assert where == {"train": (0, 139, 140), "val": (140, 639, 500), "test": (N - 1000, N - 1, 1000)}
    total, words = source.x.sum(axis=1), given["features"].sum(axis=1)
    assert (words == 0).any()
    np.testing.assert_allclose(total, words > 0, rtol=1e-6)
    np.testing.assert_allclose(source.x * words[:, None], given["features"], atol=1e-6)


def test_edges_go_both_ways_once_and_every_node_has_its_own():
    edges = np.array([[0, 1, 3, 2, 2], [1, 0, 4, 2, 3]])
    senders, receivers = with_loops(edges, 6)
    pairs = list(zip(senders.tolist(), receivers.tolist(), strict=True))
    both = {(0, 1), (1, 0), (3, 4), (4, 3), (2, 3), (3, 2)}
    assert sorted(pairs) == sorted(both | {(i, i) for i in range(6)})
    assert (np.diff(receivers) >= 0).all()
    again = with_loops(np.stack([senders, receivers]), 6)
    np.testing.assert_array_equal(again, (senders, receivers))


def test_a_row_without_words_stays_without():
    np.testing.assert_array_equal(sum_to_one(np.array([[0, 0], [1, 3]], np.float32)), [[0, 0], [0.25, 0.75]])


def test_the_real_cora(reference):
    """Sizes and homophily that the literature has, and what pytorch-GAT reads from the same file."""
    source = Cora(str(reference / "data/cora"))
    given = np.load(reference / "data/cora/cora.npz")
    assert source.x.shape == (2708, 1433)
    assert np.bincount(source.classes).tolist() == [351, 217, 418, 818, 426, 298, 180]
    assert np.bincount(source.classes[source.where["train"]]).tolist() == [20] * 7
    assert source.where["test"].tolist() == list(range(1708, 2708))
    mine = set(zip(source.senders.tolist(), source.receivers.tolist(), strict=True))
    assert mine == set(map(tuple, given["edge_index"].T.tolist()))
    assert len(mine) == 2 * 5278 + 2708
    apart = source.senders != source.receivers
    same = source.classes[source.senders] == source.classes[source.receivers]
    assert same[apart].mean() == pytest.approx(0.81, abs=0.001)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "expected arrays features, labels and edge_index, but: .*labels"),
        ({"features": arrays()["features"][:99]}, "expected a row for each of at least 1640 nodes, found (99, 12)"),
        ({"features": -arrays()["features"]}, "features: expected counts of words, found negative"),
        ({"labels": np.zeros(3, int)}, "labels: expected a class from 0 for each row, found int64 (3,)"),
        ({"labels": arrays()["labels"] - 1}, "labels: expected a class from 0"),
        ({"edge_index": np.zeros((3, 4), int)}, "edge_index: expected whole numbers [2, e], found int64 (3, 4)"),
        ({"edge_index": np.zeros((2, 4))}, "edge_index: expected whole numbers [2, e], found float64 (2, 4)"),
        ({"edge_index": np.full((2, 1), N)}, f"edge_index: expected nodes 0 to {N - 1}, found {N} to {N}"),
    ],
)
def test_what_is_not_cora_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message).replace(r"\.\*", ".*")):
        Cora(written(tmp_path, **changes))


def test_all_faults_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"is not Cora:\n  labels: .*\n  edge_index: "):
        Cora(written(tmp_path, labels=np.zeros(3, int), edge_index=np.full((2, 1), N)))


def test_no_file_and_a_broken_one(tmp_path):
    with pytest.raises(ConfigError, match=r"cora\.npz: .* found no such file; set root"):
        Cora(str(tmp_path))
    np.save(tmp_path / "other.npy", np.zeros(3))
    for content in ((tmp_path / "other.npy").read_bytes(), b"", b"PK\x03\x04 and then nothing", b"words"):
        (tmp_path / "cora.npz").write_bytes(content)
        with pytest.raises(ConfigError, match=r"cora\.npz: expected arrays features"):
            Cora(str(tmp_path))


def test_nothing_in_a_file_is_executed(tmp_path):
    hostile = np.array([print], dtype=object)
    np.savez(tmp_path / "cora.npz", **{**arrays(), "labels": hostile})
    with pytest.raises(ConfigError, match="allow_pickle"):
        Cora(str(tmp_path))


# -- generated -------------------------------------------------------------------------------------------------------


def test_everything_follows_from_the_seed():
    one, same, other = (Citations(seed, nodes=300) for seed in (3, 3, 4))
    assert isinstance(one, NodeSource)
    for name in ("x", "senders", "receivers", "classes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
    assert not np.array_equal(one.x, other.x)


def test_the_splits_share_no_node():
    source = Citations(nodes=410, fields=4)
    nodes = np.concatenate(list(source.where.values()))
    assert sorted(nodes) == list(range(410))
    assert np.bincount(source.classes[source.where["train"]]).tolist() == [20] * 4
    assert len(source.where["test"]) == 2 * len(source.where["val"])


def test_citations_follow_fields_and_words_do_more_weakly():
    def told(**options):
        source = Citations(nodes=2000, fields=5, **options)
        hot = np.eye(5)[source.classes]
        apart = source.senders != source.receivers
        near = (hot[source.senders] * hot[source.receivers]).sum(axis=1)[apart].mean()
        half = np.arange(2000) % 2 == 0  # words of a field, from half of its papers, tell the others' field
        words = hot[half].T @ source.x[half] / hot[half].sum(axis=0)[:, None]
        found = (source.x[~half] @ np.log(words + 1e-5).T).argmax(axis=1)
        return near, (found == source.classes[~half]).mean(), apart.mean() * len(apart) / 2000

    near, words, links = told()
    assert near == pytest.approx(0.81, abs=0.02)
    assert links == pytest.approx(4, abs=0.1)
    assert 0.5 < words < 0.9
    near, words, _ = told(homophily=0.2, focus=0.0)
    assert near == pytest.approx(0.2, abs=0.03)
    assert words < 0.3


def test_what_cannot_be_generated_is_refused():
    with pytest.raises(ConfigError) as error:
        Citations(nodes=99, fields=7, words=3, cites=0.0, homophily=1.5)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "nodes",
        "words",
        "cites",
        "homophily",
    ]
