"""Runs beside each other, with seeds folded into one line, in the terminal and as a page."""

import copy
import json
from dataclasses import replace

import pytest

from kdjax.config import Data, Experiment, Model, Stage
from kdjax.experiment.saved import from_json, to_json
from kdjax.report import comparison
from tests.report.conftest import SUMMARY
from tests.support.command import command, refused


def run(folder, seed=0, lr=1e-3, up=0.0, without=""):
    """A finished run whose measures are those of SUMMARY and so much more for the student."""
    stage = Stage(task="segmentation", data=Data("ultrasound"), model=Model("tinyusfm_seg"), epochs=1)
    stage.optim = replace(stage.optim, lr=lr)
    folder.mkdir()
    (folder / "config.json").write_text(to_json(Experiment(name="x", stages={"student": stage}, seed=seed)))
    summary = copy.deepcopy(SUMMARY) | {"seed": seed}
    summary["rows"][1]["metrics"]["dice"]["mean"] += up
    summary["rows"] = [row for row in summary["rows"] if row["stage"] != without]
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


@pytest.fixture
def runs(tmp_path):
    folders = [run(tmp_path / f"base-{seed}", seed, up=seed / 100) for seed in range(3)]
    (tmp_path / "unfinished").mkdir()
    return [*folders, run(tmp_path / "other", lr=1e-2), tmp_path / "unfinished"]


def test_seeds_are_folded_and_other_configs_are_not(runs, tmp_path):
    ended = command("--mode=compare", *runs, f"--output={tmp_path / 'all.html'}")
    assert ended.code == 0, ended.error
    lines = [line.split("  ") for line in ended.out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert cells[0] == ["run", "seeds", "model", "params", "Dice", "IoU", "HD95", "over control"]
    assert cells[1][:2] == [f"{tmp_path}/base", "0, 1, 2"]
    assert cells[2] == [
        "student, distilled",
        "412,345",
        "0.894 ± 0.010",
        "0.804 ± 0.000",
        "3.5 ± 0.0",
        "+0.041 ± 0.010",
    ]
    assert cells[4][:2] == [f"{tmp_path}/other", "0"]
    assert cells[5] == ["student, distilled", "412,345", "0.884", "0.804", "3.5", "+0.031"]
    assert f"{tmp_path}/other against {tmp_path}/base: stages.student.optim.lr: 0.001 and 0.01" in ended.out
    assert f"left out: {tmp_path}/unfinished holds no finished run" in ended.out
    page = (tmp_path / "all.html").read_text()
    assert "0.894 ± 0.010" in page
    assert "stages.student.optim.lr: 0.001 and 0.01" in page
    assert "http" not in page, "it needs nothing else"
    assert f'<tr class="run"><th scope="row">{tmp_path}/base<small>seeds 0, 1, 2</small></th><td></td>' in page
    assert f"{tmp_path}/other<small>seed 0</small>" in page
    assert ">4 runs of 2 configs</h1>" in page


def test_the_words_of_the_command_are_the_folders(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("compare", *runs[:2]).out.endswith("also in compare.html\n")


def test_a_seed_whose_gate_skipped_a_stage_has_a_value_less(tmp_path):
    folders = [run(tmp_path / "a0", 0), run(tmp_path / "a1", 1, without="student")]
    folded = comparison.fold([json.loads((folder / "summary.json").read_text()) for folder in folders])
    values = {row["stage"]: row["dice"]["values"] for row in folded["rows"]}
    assert {stage: len(found) for stage, found in values.items()} == {"teacher": 2, "student": 1, "student_control": 2}
    assert len(folded["gain_over_control"]["student"]["values"]) == 1


def test_folders_without_a_run_are_refused(tmp_path):
    refused(command("compare", tmp_path), f"expected working directories of finished runs, found {tmp_path}")
    refused(command("--mode=compare"), "expected working directories of finished runs, found none")


def test_what_a_teacher_from_a_file_has_over_the_control_is_not_the_gain(tmp_path):
    folder = run(tmp_path / "a")
    summary = json.loads((folder / "summary.json").read_text())
    summary["rows"][0] |= {"stage": "student", "from_file": "sam"}
    (folder / "summary.json").write_text(json.dumps(summary))
    folded = comparison.fold([summary])
    assert folded["gain_over_control"]["student"]["values"] == [pytest.approx(0.031)]
    assert [cells[-1] for _, cells in comparison.cells({"a": folded})] == ["", "+0.031", ""]


def test_a_stage_that_one_run_lacks_is_told_in_a_word(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    experiment = from_json((second / "config.json").read_text())
    experiment.stages["more"] = experiment.stages["student"]
    (second / "config.json").write_text(to_json(experiment))
    ended = command("compare", first, second, f"--output={tmp_path / 'all.html'}")
    assert f"{second} against {first}: stages.more: None and {{...}}" in ended.out
    assert "<li>stages.more: None and {...}</li>" in (tmp_path / "all.html").read_text()
