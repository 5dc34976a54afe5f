"""The benchmark of preprocessing: both sides make the same graphs, and its table."""

import json

import numpy as np
import pytest
import torch

from benchmarks import can_preprocessing
from kdjax.data.can import log as can_log
from kdjax.data.can import windows
from kdjax.data.can.windows import Mapping

pytestmark = pytest.mark.long


def test_both_sides_make_the_same_graphs(tmp_path):
    paths = can_preprocessing.write(tmp_path, 1500)
    logs = [log.messages for log in can_log.read_all(paths)]
    mapping = Mapping(Mapping.build(logs).ids[:-2])  # some are unknown
    mine = windows.joined([windows.graphs(log, mapping=mapping) for log in logs])
    theirs = can_preprocessing.looped([can_preprocessing.read(path) for path in paths], mapping)
    assert len(theirs) == 10
    can_preprocessing.same(mine, theirs)
    theirs[3].edge_index = torch.flip(theirs[3].edge_index, [0])
    with pytest.raises(AssertionError):
        can_preprocessing.same(mine, theirs)


def test_it_writes_a_table_and_its_numbers(tmp_path, capsys):
    path = tmp_path / "results" / "found.json"
    can_preprocessing.main(["--messages=1500", "--rounds=2", f"--out={path}"])
    found = json.loads(path.read_text())
    assert (found["messages"], found["logs"], found["window"]) == (1500, 5, 100)
    for side in found["sides"].values():
        assert len(side["seconds"]) == 2
        assert side["messages_per_s"] == pytest.approx(1500 / np.median(side["seconds"]))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == [
        "| CSV to graphs",
        "| messages to graphs",
        "| CSV to messages",
        "| kept graphs read back",
    ]
