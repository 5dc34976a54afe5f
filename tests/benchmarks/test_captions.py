"""The benchmark of tokenizing: both sides make the same tokens, and its table."""

import json

import numpy as np
import pytest

from benchmarks import captions

pytestmark = pytest.mark.long


def test_it_writes_a_table_and_its_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KDJAX_REFERENCE", str(tmp_path / "nowhere"))
    path = tmp_path / "results" / "captions.json"
    captions.main(["--captions=1500", "--rounds=2", f"--out={path}"])
    measured = json.loads(path.read_text())
    assert (measured["captions"], measured["kind"]) == (1500, "made up, repeated")
    for side in measured["sides"].values():
        assert len(side["seconds"]) == 2
        assert side["captions_per_s"] == pytest.approx(1500 / np.median(side["seconds"]))
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| captions to tokens", "| kept tokens read back"]


def test_tokens_that_differ_are_refused(tmp_path, monkeypatch):
    work = captions.fast
    wrong = lambda *given: lambda texts, width: tuple(x + 1 for x in work(*given)(texts, width))  # noqa: E731
    monkeypatch.setattr(captions, "fast", wrong)
    with pytest.raises(AssertionError):
        captions.measure(50, 1)
