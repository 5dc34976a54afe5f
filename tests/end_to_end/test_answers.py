"""A whole run with two labels: a model of an image and a text, distilled, and what summary and report say of it."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest

from kdjax.config import ConfigError, Task
from kdjax.deploy import predict
from kdjax.experiment import run as running
from kdjax.report import tables, verdict
from kdjax.weights import safetensors
from tests.support import two_parts

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(working directory, summary)"""
    workdir = tmp_path_factory.mktemp("two_parts")
    return workdir, running.run(two_parts.experiment(), workdir)


def test_the_short_table_has_the_mean_and_each_label(run):
    _, summary = run
    assert tables.header(summary)[2:5] == ["macro F1", "modality accuracy", "location accuracy"]
    for row in summary["rows"]:
        means = {name: value["mean"] for name, value in row["metrics"].items()}
        assert means["macro_f1"] == pytest.approx((means["modality_macro_f1"] + means["location_macro_f1"]) / 2)
        assert np.mean(row["per_image"]["macro_f1"]) == pytest.approx(means["macro_f1"])
        assert sum(map(sum, row["confusions"]["location"])) == row["metrics"]["location_auc"]["n"]
        assert row["unlabelled"] == {"modality": 0, "location": two_parts.TEST - row["metrics"]["location_auc"]["n"]}
    assert summary["rows"][0]["metrics"]["modality_accuracy"]["mean"] > 0.8, "the teacher has learned"
    low, high = verdict.interval(summary, *summary["rows"][1:])
    assert low < verdict.difference(summary, *summary["rows"][1:]) < high


def test_both_parts_and_each_alone(run):
    """With both the measures are those of the test, and each part alone is another test."""
    for row in run[1]["rows"]:
        for heading, values in row["robustness"].items():
            name = next(name for name in row["metrics"] if tables.heading(name) == heading)
            assert values["image and text"] == pytest.approx(row["metrics"][name]["mean"], abs=1e-6), heading
        assert len({json.dumps([of[reads] for of in row["robustness"].values()]) for reads in values}) > 1
    assert set(row["robustness"]) >= {"macro F1", "location accuracy"}


def test_disagreements_stand_in_the_summary_file(run):
    lines = json.loads((run[0] / "summary.json").read_text())["disagreements"]
    assert [(line["first"], line["second"], line["measure"]) for line in lines] == [
        (first, second, f"{label}_accuracy")
        for first, second in (("small", "large"), ("small", "small, no teacher"))
        for label in two_parts.LABELS
    ]
    for line in lines:
        rows = {row["title"]: row["metrics"][line["measure"]] for row in run[1]["rows"]}
        gain = rows[line["first"]]["mean"] - rows[line["second"]]["mean"]
        assert (line["only_first"] - line["only_second"]) / line["n"] == pytest.approx(gain)


def test_the_report_has_all_sections_and_the_weights_their_temperatures(run):
    workdir, summary = run
    page = (workdir / "report.html").read_text()
    for heading in (
        "Modality",
        "Location",
        "One part of the input alone",
        "How image and text are weighed",
        "Examples",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "Where they disagree" in page
    _, about = safetensors.load(workdir / "stages/student/model.safetensors")
    temperatures = predict.calibrated(about)
    assert set(temperatures) == {"temperature_modality", "temperature_location"}
    assert {name: summary["rows"][1][name] for name in temperatures} == temperatures
    head, *rows = csv.reader((workdir / "stages/student/test.csv").read_text().splitlines())
    assert head[1:] == ["modality", "modality_predicted", "location", "location_predicted"]
    assert len(rows) == two_parts.TEST


def test_a_label_that_the_data_lack_is_refused_before_training(tmp_path):
    experiment = two_parts.experiment()
    student = experiment.stages["student"]
    experiment.stages = {"student": replace(student, teachers={}, terms={}, task=Task("answers", labels=("plane",)))}
    experiment.stages["student"].model.options["labels"] = {"plane": 2}
    with pytest.raises(ConfigError, match="plane"):
        running.run(experiment, tmp_path)
    assert not (tmp_path / "stages").exists()
