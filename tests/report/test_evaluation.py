"""The page of an evaluation and the files beside it, from made-up predictions."""

import csv
import dataclasses
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from kdjax.report import evaluation
from kdjax.report.metrics import classification, outside

K, N = 7, 60


@pytest.fixture(scope="module")
def made():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, N)
    logits = rng.normal(size=(N, K)) + 2.0 * np.eye(K)[labels]
    labels[:4] = -1
    measures = classification.measure(logits, labels) | {"ece_scaled": 0.01, "nll_scaled": 0.5}
    row = {"title": "small <1>", "role": "student", "temperature": 0.5, "ms_per_image": 0.25, "parameters": 9}
    row["metrics"] = {name: {"mean": value, "std": np.nan, "n": 56} for name, value in measures.items()}
    energy = outside.energy(logits)
    return evaluation.Evaluation(
        summary={"name": "m on d", "item": "image", "over": "56 test images", "warnings": [], "rows": [row]},
        names=[f"kind & {i}" for i in range(K)],
        examples=[f"a,{i}" for i in range(N)],
        labels=labels,
        logits=logits,
        scaled=logits / 0.5,
        energy=energy,
        outside=evaluation.Outside("far", ["x", "y"], {"energy": (energy, np.array([0.0, np.inf]))}),
        facts={"Temperature": "0.5", "Command": ""},
        mistakes="<p>oops</p>",
    )


@pytest.fixture(scope="module")
def files(made):
    return evaluation.files(made)


def read(text):
    return list(csv.reader(text.splitlines()))


def test_what_is_written(files):
    pictures = {f"{name}.svg" for name in ("confusions", "reliability", "energies", "outside_energy", "outside_roc")}
    tables = {"metrics.json", "predictions.csv", "classification_report.csv", "outside.csv"}
    assert set(files) == pictures | tables | {evaluation.PAGE}
    for name in pictures:
        root = ET.fromstring(files[name])
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "var(" not in files[name]


def test_predictions_are_probabilities_after_scaling(made, files):
    head, *lines = read(files["predictions.csv"])
    assert head[:6] == ["name", "class", "predicted", "probability", "probability_of_class", "energy"]
    assert head[6:8] == ["predicted_2", "probability_2"]
    assert len(lines) == N
    exponentials = np.exp(made.logits / 0.5)
    p = exponentials / exponentials.sum(1, keepdims=True)
    for i, line in enumerate(lines):
        named = dict(zip(head, line, strict=True))
        assert named["name"] == f"a,{i}"
        assert named["predicted"] == made.names[p[i].argmax()]
        assert float(named["probability"]) == pytest.approx(p[i].max(), abs=1e-6)
        assert float(named["probability_2"]) == pytest.approx(np.sort(p[i])[-2], abs=1e-6)
        assert float(named["energy"]) == pytest.approx(-np.log(np.exp(made.logits[i]).sum()), rel=1e-5)
        known = made.labels[i] >= 0
        assert named["class"] == (made.names[made.labels[i]] if known else "")
        assert named["probability_of_class"] == (f"{p[i, made.labels[i]]:.6f}" if known else "")


def test_numbers_are_json_that_anything_reads(made, files):
    told = json.loads(files["metrics.json"], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["models"]["small <1>"]["accuracy"] == made.row["metrics"]["accuracy"]["mean"]
    assert told["models"]["small <1>"]["temperature"] == 0.5
    assert (told["images"], told["labelled"]) == (N, 56)
    apart = outside.told_apart(*made.outside.scores["energy"])
    assert told["outside"] == {"place": "far", "images": 2, "energy": apart}
    assert sum(map(sum, told["confusion"])) == 56
    assert told["classes"]["kind & 2"]["support"] == int((made.labels == 2).sum())
    broken = dataclasses.replace(made, logits=np.full((N, K), np.nan), scaled=None, outside=None)
    assert json.loads(evaluation.files(broken)["metrics.json"])["classes"]["kind & 0"]["f1"] is None
    assert read(evaluation.files(broken)["predictions.csv"])[1][1:4] == ["", "kind & 0", "nan"]


def test_tables_of_classes_and_of_what_is_outside(made, files):
    report = read(files["classification_report.csv"])
    assert report[0] == ["class", "precision", "recall", "f1", "support"]
    assert [line[0] for line in report[1:]] == [*made.names, "mean over classes", "mean over examples"]
    lines = read(files["outside.csv"])
    assert lines[0] == ["set", "name", "energy"]
    assert [line[:2] for line in lines[-2:]] == [["outside", "x"], ["outside", "y"]]
    assert len(lines) == 1 + N + 2


def test_the_page_shows_all_of_it(made, files):
    page = files[evaluation.PAGE]
    for text in ("small &lt;1&gt;", "kind &amp; 6", "0.5, the temperature", "<p>oops</p>", "AUROC", "95 % interval"):
        assert text in page
    assert "small <1>" not in page
    assert page.count("<svg") == 5
    low, high = (made.row["metrics"]["accuracy"]["mean"] + sign * 0.13 for sign in (-1, 1))
    assert 0 < low < high < 1
    unscaled = evaluation.page(
        dataclasses.replace(made, scaled=None, outside=None, mistakes=""), evaluation.pictures(made)
    )
    assert "No temperature is known" in unscaled
    assert "<h2>Outside" not in unscaled
    assert "<h2>Most confident" not in unscaled
