"""Folders of logs: which are found, what is kept on disk, and what is told."""

import dataclasses
import os
import shutil

import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.data import cache as store
from kdjax.data.can import folders
from kdjax.data.can.folders import Can
from kdjax.data.can.windows import Mapping, graphs
from kdjax.data.graphs.packs import Graphs, joined
from tests.support import can_logs

LOGS = {  # set -> log -> seed
    "train_01_attack_free": {"b": 1, "a": 2},
    "train_02_with_attacks": {"DoS": 3, "a": 2},
    "test_01_known_vehicle_known_attack": {"x": 4, "Y": 5},
    "test_02_unknown_vehicle_known_attack": {"z": 6},
}
SETTINGS = {"window": 20, "cache": ""}


def lay(root, kind: str = "folders", suffix: str = "csv", n: int = 101):
    for name, logs in LOGS.items():
        for stem, seed in logs.items():
            path = root / name / f"{stem}.{suffix}" if kind == "folders" else root / f"{name}__{stem}.{suffix}"
            log = can_logs.messages(seed, n)
            if suffix == "csv":
                can_logs.write(path, can_logs.plain(log))
            else:
                can_logs.parquet(path, log)
    return str(root)


def same(a: Graphs, b: Graphs) -> None:
    for field in dataclasses.fields(Graphs):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


def test_logs_of_candump_are_trained_on(tmp_path):
    can_logs.write(tmp_path / "drive.log", can_logs.candump(can_logs.messages(labelled=False)))
    can_logs.write(tmp_path / "notes.log", "what we did that day")
    found = Can(str(tmp_path), **SETTINGS)
    assert [os.path.basename(path) for path in found.files] == ["drive.log"]
    assert len(found.train) == 14
    assert set(found.train.label) == {-1}


@pytest.mark.parametrize("generation", ["A", "B", "C"])
@pytest.mark.parametrize(("kind", "suffix"), [("folders", "csv"), ("flat", "parquet")])
def test_sets_are_their_logs_in_order(kind, suffix, generation, tmp_path):
    found = Can(lay(tmp_path, kind, suffix), generation, **SETTINGS)
    logs = {name: [can_logs.messages(logs[stem], 101) for stem in sorted(logs)] for name, logs in LOGS.items()}
    training = [*logs["train_01_attack_free"], *logs["train_02_with_attacks"]]
    mapping = Mapping.build(training, generation)
    assert found.mapping == mapping
    assert list(found.test) == ["test_01_known_vehicle_known_attack", "test_02_unknown_vehicle_known_attack"]
    assert [os.path.basename(f).split("__")[-1].split(".")[0] for f in found.files] == [
        *("Y", "x", "z"),
        *("a", "b", "DoS", "a"),
    ]

    def expected(logs, first):
        return joined([graphs(log, generation, 20, 20, mapping, first + k) for k, log in enumerate(logs)])

    same(found.train, expected(training, 3))
    for first, (name, test) in zip((0, 2), found.test.items(), strict=True):
        same(test, expected(logs[name], first))
    assert found.ids == ("hex" if suffix == "csv" else "number")


def test_the_real_set(reference):
    """9,367 graphs: both training sets have the same two logs."""
    found = Can(str(reference / "data" / "can_hcrl_sa"), cache="")
    assert len(found.train) == 9367
    assert (found.train.label == 1).sum() == 1298
    assert [len(test) for test in found.test.values()] == [3994, 1861, 3060, 797]
    assert found.mapping.num_ids == 2032
    assert len(found.files) == 13
    assert found.notes == ()


def test_logs_that_are_left_out_are_named(tmp_path):
    root = lay(tmp_path)
    for name in ("train_01_attack_free/Suppress-1.csv", "test_01_known_vehicle_known_attack/rpm-MASQUERADE.csv"):
        can_logs.write(tmp_path / name, "never read")
    can_logs.write(tmp_path / "notes" / "more.csv", "never read")
    can_logs.write(tmp_path / "train_01_attack_free" / ".hidden.csv", "never read")
    can_logs.write(tmp_path / "train_01_attack_free" / "readme.txt", "never read")
    found = Can(root, **SETTINGS)
    assert len(found.files) == 7
    first, second, *_ = found.notes
    assert "suppress or masquerade in their names: test_01_known_vehicle_known_attack/rpm-MASQUERADE.csv, tra" in first
    assert "in no set whose name begins with train or test: notes/more.csv" in second


def test_logs_without_sets_are_to_train_on(tmp_path):
    for k in range(2):
        can_logs.write(tmp_path / "drive" / f"{k}.csv", can_logs.plain(can_logs.messages(k, 41)))
    found = Can(str(tmp_path), **SETTINGS)
    assert (len(found.train), found.test) == (4, {})


def test_a_set_may_be_one_log(tmp_path):
    for name in ("train", "test_rain"):
        can_logs.write(tmp_path / f"{name}.csv", can_logs.plain(can_logs.messages(1, 41)))
    found = Can(str(tmp_path), **SETTINGS)
    assert (len(found.train), list(found.test)) == (2, ["test_rain"])


def test_notes_of_the_logs_are_told_once(tmp_path):
    root = lay(tmp_path)
    log = can_logs.messages(7, 61)
    text = can_logs.plain(log[np.r_[0:30, 20:61]]).splitlines()
    text.insert(3, "not,a,message,0")
    can_logs.write(tmp_path / "train_01_attack_free" / "c.csv", "\n".join(text))
    can_logs.write(tmp_path / "train_01_attack_free" / "d.csv", can_logs.plain(log[:20]))
    notes = Can(root, **SETTINGS).notes
    assert sum("ids were read as hex" in note for note in notes) == 1
    assert any("c.csv: time runs backwards 1 times, first at line 33" in note for note in notes)
    assert any("c.csv: 1 lines skipped:" in note and "c.csv, line 4: expected a time" in note for note in notes)
    assert any(note.startswith("too few messages for a window: ") and note.endswith("d.csv (20)") for note in notes)
    with pytest.raises(ConfigError, match=r"c\.csv, line 4"):
        Can(root, **SETTINGS, strict=True)


def test_ids_are_decided_for_all_logs(tmp_path):
    root = lay(tmp_path)
    text = "timestamp,arbitration_id,data_field,attack\n" + "".join(f"{k},316,00,0\n" for k in range(30))
    can_logs.write(tmp_path / "test_03" / "digits.csv", text)
    assert set(Can(root, "A", **SETTINGS).test["test_03"].name) == {0x316}
    assert set(Can(root, "A", **SETTINGS, ids="hex").test["test_03"].name) == {0x316}


def test_roots_that_are_refused(tmp_path):
    def fault(root, **options) -> str:
        with pytest.raises(ConfigError) as error:
            Can(str(root), **SETTINGS | options)
        return str(error.value)

    assert "expected a folder of CAN logs, found no such folder" in fault(tmp_path / "nowhere")
    can_logs.write(tmp_path / "a" / "file.txt", "")
    assert "expected a folder of CAN logs, found a file" in fault(tmp_path / "a" / "file.txt")
    expected = "expected training logs (.csv or .parquet or .log) such as train_01/x.csv or train_01__x.parquet, found "
    assert f"{expected}none" in fault(tmp_path / "a")
    can_logs.write(tmp_path / "a" / "test_01" / "x.csv", can_logs.plain(can_logs.messages()))
    assert f"{expected}test_01/x.csv" in fault(tmp_path / "a")
    can_logs.write(tmp_path / "a" / "train.csv", can_logs.plain(can_logs.messages(n=20)))
    assert "no training log is longer than a window" in fault(tmp_path / "a")
    can_logs.parquet(tmp_path / "a" / "test_01" / "x.parquet", can_logs.messages())
    assert "one log in two files" in fault(tmp_path / "a")
    assert "no generation 'b'" in fault(lay(tmp_path / "b"), generation="b")


# -- kept on disk ----------------------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch):
    """How often graphs were built."""
    count = []
    build = folders._build
    monkeypatch.setattr(folders, "_build", lambda *args: (count.append(1), build(*args))[1])
    return count


def everything(found: Can):
    return found.mapping, found.notes, found.files, found.ids, list(found.test)


def test_graphs_are_built_once_for_the_same_files_and_settings(tmp_path, built):
    root, options = lay(tmp_path / "logs"), {"window": 20, "cache": str(tmp_path / "cache")}
    first, second = Can(root, **options), Can(root, **options)
    assert len(built) == 1
    same(first.train, second.train)
    for name in first.test:
        same(first.test[name], second.test[name])
    assert everything(first) == everything(second)
    for k, other in enumerate(({"window": 10}, {"stride": 5}, {"generation": "A"}, {"ids": "hex"}, {"strict": True})):
        Can(root, **options | other)
        assert len(built) == 2 + k
    path = tmp_path / "logs" / "train_01_attack_free" / "a.csv"
    when = path.stat()
    text = path.read_text()
    path.write_text(text.replace("0\n", "1\n", 1))  # of the same size and time
    os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    changed = Can(root, **options)
    assert len(built) == 7
    assert (changed.train.label != first.train.label).sum() <= 1
    path.write_text(text)
    Can(root, **options)
    assert len(built) == 7
    shutil.move(path, path.with_name("aa.csv"))
    Can(root, **options)
    assert len(built) == 8
    assert not list((tmp_path / "cache").glob("*.part"))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_built_again(damage, tmp_path, built):
    root, options = lay(tmp_path / "logs"), {"window": 20, "cache": str(tmp_path / "cache")}
    first = Can(root, **options)
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    (x, *_) = (test.x for test in first.test.values())
    at = whole.index(x.tobytes()) + 100
    kept.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "flip": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
            "empty": b"",
            "other": b"something else",
        }[damage]
    )
    second = Can(root, **options)
    assert len(built) == 2
    same(first.train, second.train)
    assert len(kept.read_bytes()) == len(whole)
    Can(root, **options)
    assert len(built) == 2


def test_what_is_not_written_whole_is_not_there(tmp_path, monkeypatch):
    root, cache = lay(tmp_path / "logs"), tmp_path / "cache"

    def full(file, **_):
        file.write(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr(store.np, "savez", full)
    found = Can(root, window=20, cache=str(cache))
    assert len(found.train) == 20
    assert found.notes[-1] == f"the graphs could not be kept in {cache} (no space left)"
    assert not list(cache.iterdir())


def test_where_graphs_are_kept(tmp_path, monkeypatch):
    root = lay(tmp_path / "logs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    Can(root, window=20, cache="")
    assert not (tmp_path / "xdg").exists()
    Can(root, window=20)
    assert len(list((tmp_path / "xdg" / "kdjax" / "graphs").iterdir())) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Can(root, window=20)
    assert len(list((tmp_path / "home" / ".cache" / "kdjax" / "graphs").iterdir())) == 1


def test_logs_of_unknown_ids_alone_are_named(tmp_path):
    root = lay(tmp_path)
    log = can_logs.messages(7, 101)
    path = tmp_path / "test_02_unknown_vehicle_known_attack" / "other.csv"
    can_logs.write(path, can_logs.plain(dataclasses.replace(log, id=log.id + 0x10000)))
    assert Can(root, **SETTINGS).notes[-1] == f"no id of these logs is known from the training logs: {path}"
