"""Generated traffic: what it is made of, and that detecting its attacks is neither trivial nor hopeless."""

import dataclasses

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from kdjax.config import ConfigError
from kdjax.data.can import traffic
from kdjax.data.can.messages import Messages
from kdjax.data.can.traffic import Traffic, drive, vehicles
from kdjax.data.graphs.packs import Graphs

KNOWN, UNKNOWN = "test_01_known_vehicle_known_attack", "test_04_unknown_vehicle_unknown_attack"
TESTS = [
    KNOWN,
    "test_02_unknown_vehicle_known_attack",
    "test_03_known_vehicle_unknown_attack",
    UNKNOWN,
]


@pytest.fixture(scope="module")
def found() -> Traffic:
    return Traffic(seed=0)


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))


def test_the_sets(found):
    assert isinstance(found.train, Graphs)
    assert len(found.train) == 1600
    assert list(found.test) == TESTS
    assert [len(test) for test in found.test.values()] == [400] * 4
    assert found.files[:3] == (
        "train_01_attack_free/attack_free",
        "train_02_with_attacks/dos",
        "train_02_with_attacks/fuzzing",
    )
    first = found.train.file == 0
    assert not found.train.label[first].any()
    for graphs in (found.train, *found.test.values()):
        assert set(np.unique(graphs.label)) == {0, 1}
        assert graphs.id.max() < found.num_ids
        assert (graphs.sizes() > 0).all()
    for graphs in found.test.values():
        assert 0.3 < graphs.label.mean() < 0.7


@pytest.mark.parametrize(("generation", "window"), [("A", 50), ("B", 100), ("C", 100)])
def test_windows_are_as_many_as_asked_for(generation, window):
    found = Traffic(train_windows=21, test_windows=9, generation=generation)
    assert [len(found.train), *map(len, found.test.values())] == [21, 9, 9, 9, 9]
    assert len(found.logs["train_01_attack_free/attack_free"]) == 11 * window + 1
    assert (found.num_ids == 0) == (generation == "A")
    close = Traffic(train_windows=20, test_windows=8, generation=generation, window=30, stride=10)
    assert [len(close.train), *map(len, close.test.values())] == [20, 8, 8, 8, 8]


def test_the_seed_says_all(found):
    again, other = Traffic(seed=0), Traffic(seed=1, train_windows=40, test_windows=8)
    assert same(found.train, again.train)
    assert all(same(found.test[name], again.test[name]) for name in TESTS)
    assert found.mapping == again.mapping
    assert not set(vehicles(0)[0]) & set(vehicles(1)[0])
    assert other.mapping != found.mapping
    logs = list(found.logs.values())
    assert not any(same(a, b) for k, a in enumerate(logs) for b in logs[:k] if len(a) == len(b))


def test_a_set_does_not_change_with_another():
    one, other = Traffic(train_windows=40, test_windows=16), Traffic(train_windows=80, test_windows=16)
    assert all(same(one.logs[name], other.logs[name]) for name in one.logs if name.startswith("test"))


def test_two_vehicles_share_some_ids():
    one, two = vehicles(3)
    assert len(one) == len(two) == len({s.id for s in one}) == len({s.id for s in two}) == traffic.IDS
    shared = {s.id for s in one} & {s.id for s in two}
    assert len(shared) == traffic.COMMON
    assert len(set(one) & set(two)) == traffic.COMMON // 2  # those that mean the same in both
    periods = [{s.id: s.period for s in vehicle if s.id in shared} for vehicle in (one, two)]
    assert periods[0] == periods[1]


def calm(attack: str = "", seed: int = 0, n: int = 20_000) -> tuple[tuple, Messages]:
    vehicle = vehicles(0)[0]
    return vehicle, drive(np.random.default_rng(seed), vehicle, attack, n)


def test_ids_are_periodic_and_the_bus_carries_one_message_at_a_time():
    vehicle, log = calm()
    assert (np.diff(log.time) >= traffic.FRAME - 1e-9).all()
    assert not log.label.any()
    for sender in vehicle:
        gaps = np.diff(log.time[log.id == sender.id])
        assert np.mean(gaps) == pytest.approx(sender.period, rel=0.03)
        assert gaps.std() < 0.2 * sender.period + 4 * traffic.FRAME
    assert {s.id for s in vehicle} == set(log.id.tolist())


def test_payloads_hold_what_their_bytes_are():
    vehicle, log = calm()
    seen = set()
    for sender in vehicle:
        mine = log[log.id == sender.id]
        assert set(mine.length.tolist()) == {len(sender.bytes)}
        assert not mine.data[:, len(sender.bytes) :].any()
        for k, what in enumerate(sender.bytes):
            values = mine.data[:, k].astype(int)
            seen.add(what)
            if what == "constant":
                assert len(set(values)) == 1
            elif what == "switch":
                assert len(set(values)) <= 2
            elif what == "counter":
                assert set(np.diff(values) % (16 if sender.of[k] % 2 else 256)) == {1}
            elif what == "checksum":
                np.testing.assert_array_equal(values, np.bitwise_xor.reduce(mine.data[:, :k], 1) ^ (sender.id & 255))
            elif what == "signal":
                steepest = 256 * np.pi / 1.5  # a second, of a wave over the whole range that takes 1.5 s
                assert np.abs(np.diff(values)).max() < steepest * (1.5 * sender.period + 1 / traffic.SAMPLES) + 1
    assert seen == set(traffic.BYTES)


@pytest.mark.parametrize("attack", traffic.ATTACKS)
def test_attacks_come_in_bursts(attack):
    vehicle, log = calm(attack)
    bad = log.time[log.label == 1]
    pauses = np.diff(bad)[np.diff(bad) > 0.2]
    assert 3 < len(pauses) < 3 * log.time[-1]
    assert 0.02 < log.label.mean() < 0.7
    normal = log[log.label == 0]
    assert {s.id for s in vehicle} == set(normal.id.tolist())


def test_dos_is_a_flood_of_the_first_id():
    _, log = calm("dos")
    assert set(log.id[log.label == 1].tolist()) == {0}
    assert 0 not in log.id[log.label == 0]


def test_fuzzing_has_ids_and_payloads_of_any_kind():
    vehicle, log = calm("fuzzing")
    bad, own = log[log.label == 1], {s.id for s in vehicle}
    inside = np.isin(bad.id, list(own)).mean()
    assert 0.35 < inside < 0.65
    assert len(set(bad.id.tolist()) - own) > 40
    counts = np.bincount(bad.data.ravel(), minlength=256)
    assert counts.min() > 0
    assert counts.std() < 1.3 * np.sqrt(counts.mean())


def test_spoofing_is_of_an_id_of_the_vehicle_with_another_value():
    vehicle, log = calm("spoofing")
    bad, senders = log[log.label == 1], {s.id: s for s in vehicle}
    for i in set(bad.id.tolist()):
        sender, mine = senders[i], bad[bad.id == i]
        k = sender.bytes.index("signal")
        assert set(mine.data[:, k].tolist()) <= {0, 5, 250, 255}
        assert np.median(np.diff(mine.time)) < sender.period


def test_replay_is_what_was_sent_at_another_time():
    _, log = calm("replay")
    bad, normal = log[log.label == 1], log[log.label == 0]

    def content(part: Messages) -> set:
        return {(int(i), d.tobytes()) for i, d in zip(part.id, part.data, strict=True)}

    assert len(content(bad) & content(normal)) > 0.75 * len(content(bad))  # some is from after the end of the log
    gaps = np.diff(bad.time)
    assert len(set(np.round(gaps, 5))) > 50


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ConfigError) as error:
        Traffic(train_windows=7, known=("dos", "fuzz"), unknown=())
    for text in (
        "train_windows: expected at least 8, found 7",
        "known: no 'fuzz'; did you mean 'fuzzing'",
        "unknown: expected one attack or more",
    ):
        assert text in str(error.value)
    with pytest.raises(ConfigError, match="no generation 'E'"):
        Traffic(generation="E")


def statistics(graphs: Graphs) -> np.ndarray:
    first = graphs.first_node[:-1]
    sizes = graphs.sizes()
    mean = np.add.reduceat(graphs.x, first) / sizes[:, :1]
    spread = np.add.reduceat(graphs.x**2, first) / sizes[:, :1] - mean**2
    return np.concatenate([sizes, mean, spread], axis=1)


def test_detection_is_neither_trivial_nor_hopeless(found):
    """By a forest on a few statistics of each window: good where it was trained, poor elsewhere."""
    forest = RandomForestClassifier(60, min_samples_leaf=3, random_state=0)
    forest.fit(statistics(found.train), found.train.label)
    area = {
        name: roc_auc_score(test.label, forest.predict_proba(statistics(test))[:, 1])
        for name, test in found.test.items()
    }
    assert 0.8 < area[KNOWN] < 0.99
    assert 0.6 < area[TESTS[2]] < 0.97
    assert area[UNKNOWN] < area[KNOWN] - 0.1
