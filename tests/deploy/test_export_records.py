"""The export of a model of images with captions: what its signature says is enough to answer a record without kdjax."""

import json

import numpy as np
import pytest
import scipy.special
from PIL import Image

from kdjax.deploy import answer as answering
from kdjax.deploy import export as exporting
from kdjax.deploy.predict import chosen, keepsakes_in, load
from kdjax.weights import stablehlo
from tests.support import tiny_records
from tests.support.tiny_records import CLASSES, LENGTH, SIDE, TOKENIZER

CAPTION = "Axial CT of the head shows a mass of the chest"


def test_the_signature_tells_what_is_read_and_the_tokenizer_is_a_keepsake(tmp_path):
    run = tiny_records.run(tmp_path / "work")
    (run.folder / "tokenizer_teacher.json").write_text("{}")
    (run.folder / "tokenizer_config.json").write_text("{}")
    assert set(keepsakes_in(run.folder)) == {TOKENIZER, "tokenizer_teacher.json"}
    told = exporting.signature(load(chosen(run.experiment, "")[1], run.workdir, "student", ""))
    assert {name: told["input"][name]["shape"] for name in run.model.inputs} == {
        "image": ["b", SIDE, SIDE, 3],
        "image_there": ["b"],
        "input_ids": ["b", LENGTH],
        "attention_mask": ["b", LENGTH],
        "text_there": ["b"],
    }
    assert told["output"]["logits_location"] == {"label": "location", "classes": CLASSES["location"], "temperature": 2}
    scope: dict = {}
    (tmp_path / TOKENIZER).write_text((run.folder / TOKENIZER).read_text())
    code = "\n".join(told["code"]).replace(TOKENIZER, str(tmp_path / TOKENIZER))
    exec(code, scope)
    assert scope["tokens"](CAPTION)[0].tolist() == [[2, 5, 6, 8, 9, 3]]
    assert [rows.tolist() for rows in scope["tokens"]("")] == [[[2, 3, 0, 0, 0, 0]], [[1, 1, 0, 0, 0, 0]]]


@pytest.mark.long
@pytest.mark.parametrize("parts", [("image", "text"), ("text",)])
def test_an_export_answers_as_predict_does(tmp_path, monkeypatch, parts):
    """With and without an image, by the code that the signature has."""
    run = tiny_records.run(tmp_path / "work", parts)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    lines = [{"image": "a" if "image" in parts else None, "text": CAPTION}, {"text": "mr chest"}]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    images = str(tmp_path / "images") if "image" in parts else ""
    out = tmp_path / "out"
    answering.answer(run.experiment, run.workdir, "", "", images, str(tmp_path / "captions.jsonl"), out)
    expected = [line.split(",") for line in (out / "predictions.csv").read_text().splitlines()[1:]]

    exported = exporting.export(run.experiment, run.workdir)
    files = {"model.safetensors", "model.stablehlo", TOKENIZER}
    assert set(exported["files"]) == files  # and nothing of PyTorch, as there is no original
    exporting.export(run.experiment, run.workdir)  # over the earlier one
    monkeypatch.chdir(exported["folder"])
    told = json.loads((exported["folder"] / "signature.json").read_text())
    scope: dict = {}
    exec("\n".join(told["code"]), scope)
    program = stablehlo.load(exported["folder"] / "model.stablehlo")
    for there, line, row in zip((True, False), lines, expected, strict=True):
        ids, mask = scope["tokens"](line["text"])
        given = {"input_ids": ids, "attention_mask": mask, "text_there": np.array([True])}
        if "image" in parts:
            image = scope["read"](tmp_path / "images" / "a.png")
            given |= {"image": image * there, "image_there": np.array([there])}
        answers = program(*(given[name] for name in run.model.inputs))
        for i, label in enumerate(CLASSES):
            output = told["output"][f"logits_{label}"]
            sure = scipy.special.softmax(np.asarray(answers[f"logits_{label}"][0], np.float64) / output["temperature"])
            assert row[2 + 2 * i] == output["classes"][sure.argmax()]
            assert float(row[3 + 2 * i]) == pytest.approx(sure.max(), abs=2e-5)
        assert ("shares" in answers) == ("image" in parts)
