"""Scores of a model of images and captions, on other records, read with the tokenizer beside its weights."""

import csv
import json

import pytest

from kdjax.config import ConfigError
from kdjax.deploy import answer as answering
from kdjax.deploy import evaluate
from kdjax.deploy.predict import chosen, load
from tests.support import tiny_records
from tests.support.command import command, refused
from tests.support.tiny_records import CLASSES, TOKENIZER


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(a run, the table of its test data)"""
    root = tmp_path_factory.mktemp("run")
    table = tiny_records.table(root, ("test",) * 8 + ("train",) * 2 + ("val",) * 2)
    return tiny_records.run(root / "work", table=str(table)), table


def test_other_records_are_read_by_the_tokenizers_and_with_the_labels_of_training(run, tmp_path):
    made, table = run
    loaded = load(chosen(made.experiment, "")[1], made.workdir, "student", "")
    for place in (str(table), f"records:{table}"):
        data = evaluate.records_at(place, loaded)
        assert (data.source, data.options["table"], data.split) == ("records", str(table), (0.0, 0.0, 1.0))
        assert data.options["labels"] == {label: tuple(names) for label, names in CLASSES.items()}
        assert data.options["tokenizers"] == {"student": {"path": str(made.folder / TOKENIZER)}}
        assert data.options["missing"] == "text"
    data = evaluate.records_at("medpix:some/where", loaded)
    assert (data.source, data.options["root"], data.options["images"]) == ("medpix", "some/where", True)
    with pytest.raises(ConfigError, match="expected records, as records:PLACE or medpix:PLACE"):
        evaluate.records_at(f"folder:{tmp_path}", loaded)

    class Other:
        label_classes = {"modality": ("MR", "CT"), "location": tuple(CLASSES["location"])}

    with pytest.raises(ConfigError, match="modality: expected CT, MR, found MR, CT"):
        evaluate.refuse_other_labels(loaded, Other(), "medpix:x")


def test_flags_of_classifiers_are_refused(run, tmp_path):
    flags = ("--mode=eval", f"--workdir={run[0].workdir}", "--tta=hflip", f"--outside={tmp_path}")
    refused(
        command(*flags), "--tta, --outside: expected a stage that learns classification, 'student' learns 'answers'"
    )


@pytest.mark.long
def test_the_scores_are_those_of_what_predict_answers(run, tmp_path):
    made, table = run
    rows = [*csv.DictReader(table.read_text().splitlines())][:8]
    lines = [{"image": row["image"] or None, "text": row["text"] or None} for row in rows]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    where = str(table.parent), str(tmp_path / "captions.jsonl"), tmp_path / "out"
    answering.answer(made.experiment, made.workdir, "", "", *where)
    answers = [*csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines())][:8]
    right = {label: [a[label] == r[label] for a, r in zip(answers, rows, strict=True) if r[label]] for label in CLASSES}
    for asked in (evaluate.Asked(), evaluate.Asked(place=f"records:{table}")):
        summary = evaluate.evaluate(made.experiment, made.workdir, asked=asked).summary
        (row,) = summary["rows"]
        assert row["test_images"] == 8
        assert row["unlabelled"] == {"modality": 0, "location": 1}
        for label, hits in right.items():
            measured = row["metrics"][f"{label}_accuracy"]
            assert measured["n"] == len(hits)
            assert measured["mean"] == pytest.approx(sum(hits) / len(hits))
