"""Labels of new images with captions: how they are paired, what is refused, the table and the page."""

import csv
import json
import re
import shutil

import jax
import numpy as np
import pytest
import scipy.special
from PIL import Image

import kdjax
from kdjax.deploy import answer as answering
from kdjax.deploy import predict
from tests.support import folders, tiny_records
from tests.support.command import command, refused
from tests.support.tiny_records import CLASSES, LENGTH, SIDE, TEMPERATURES, TOKENIZER, WORDS

LINES = (
    {"image": "a", "Description": {"Caption": "Axial CT of the head shows a mass & more"}},  # longer than six tokens
    {"image": "in/c.png", "Description": {"Caption": "MR <i>chest"}},
    {"image": None, "Description": {"Caption": "CT of the chest"}},
    {"image": "./b.jpg", "Description": {"Caption": "  "}},
)
TOKENS = {  # [CLS] is 2, [SEP] 3, an unknown word 1, the first word 5
    "a.png": [2, 5, 6, 8, 9, 3],
    "in/c.png": [2, 7, 1, 1, 1, 3],  # "<", "i" and ">" are words of their own
    "line 3": [2, 6, 8, 9, 11, 3],
    "b.jpg": [2, 3],
    "in/d.png": [2, 3],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_records.run(tmp_path_factory.mktemp("run") / "work")


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    return tiny_records.run(tmp_path_factory.mktemp("text_run") / "work", parts=("text",))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(a folder of images, a table of captions)"""
    root = tmp_path_factory.mktemp("given")
    rng = np.random.default_rng(0)
    for name, size in {"a.png": (40, 30), "b.jpg": (33, 61), "in/c.png": (16, 16), "in/d.png": (20, 50)}.items():
        (root / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC).save(root / "images" / name)
    (root / "captions.jsonl").write_text("\n".join(map(json.dumps, LINES)) + "\n")
    return root / "images", root / "captions.jsonl"


def on(run, output, images="", captions="", *flags):
    where = (f"--workdir={run.workdir}", f"--images={images}", f"--captions={captions}", f"--output={output}")
    return command("--mode=predict", *where, *flags)


@pytest.fixture(scope="module")
def answered(run, given, tmp_path_factory):
    """(the folder written, what was printed, the table by record)"""
    output = tmp_path_factory.mktemp("out") / "deeper"
    ended = on(run, output, *given)
    assert ended.code == 0, ended.error
    return output, ended.out, rows(output)


def rows(output):
    head, *lines = csv.reader((output / "predictions.csv").read_text(encoding="utf-8").splitlines())
    return {line[0]: dict(zip(head, line, strict=True)) for line in lines}


def image_of(folder, name):
    if not (folder / name).is_file():
        return np.zeros((SIDE, SIDE, 3), np.float32)
    with Image.open(folder / name) as image:
        small = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float32) / 255


def test_the_table_has_what_the_model_says_of_every_record(run, given, answered):
    _, _, lines = answered
    assert list(lines) == list(TOKENS)
    ids = np.zeros((len(lines), LENGTH), np.int32)
    for row, tokens in zip(ids, TOKENS.values(), strict=True):
        row[: len(tokens)] = tokens
    inputs = {
        "image": np.stack([image_of(given[0], name) for name in lines]),
        "image_there": np.array([name != "line 3" for name in lines]),
        "input_ids": ids,
        "attention_mask": (ids > 0).astype(np.int32),
        "text_there": np.array([bool(line["caption"]) for line in lines.values()]),
    }
    out = jax.jit(lambda v, *x: kdjax.apply(run.model, v, *x))(run.variables, *(inputs[k] for k in run.model.inputs))
    for label, names in CLASSES.items():
        sure = scipy.special.softmax(np.asarray(out[f"logits_{label}"], np.float64) / TEMPERATURES[label], axis=-1)
        assert [line[label] for line in lines.values()] == [names[k] for k in sure.argmax(-1)]
        found = [float(line[f"{label}_probability"]) for line in lines.values()]
        np.testing.assert_allclose(found, sure.max(-1), atol=2e-5)
    shares = [[float(line["image_share"]), float(line["text_share"])] for line in lines.values()]
    np.testing.assert_allclose(shares, out["shares"], atol=2e-5)
    assert [shares[2], shares[3], shares[4]] == [[0, 1], [1, 0], [1, 0]]
    assert lines["a.png"]["caption"] == LINES[0]["Description"]["Caption"]
    assert lines["b.jpg"]["caption"] == lines["in/d.png"]["caption"] == ""


def test_what_records_lack_is_counted(answered):
    _, out, _ = answered
    assert "2 of 4 images have no caption and are read alone" in out
    assert "1 of 4 captions have no image and are read alone" in out
    assert "2 of 5 captions are longer than 6 tokens and are cut" in out
    assert "labels of 5 records" in out


def test_the_page_shows_the_least_sure_first(answered):
    output, _, lines = answered
    page = (output / "index.html").read_text(encoding="utf-8")
    shown = re.findall(r"<figure>.*?</figure>", page)
    least = [min(float(line[f"{label}_probability"]) for label in CLASSES) for line in lines.values()]
    for name, figure in zip([name for _, name in sorted(zip(least, lines, strict=True))], shown, strict=True):
        assert name in figure
        assert figure.count("data:image/webp") == (name != "line 3")
        assert f"modality: {lines[name]['modality']}," in figure
    assert "MR &lt;i&gt;chest" in page
    assert "<i>chest" not in page
    assert "Head <b>" not in page
    assert "6 tokens and are cut" in page


def test_everything_wrong_is_said_at_once_before_anything_is_written(run, given, tmp_path):
    shutil.copytree(given[0], tmp_path / "images")
    (tmp_path / "images" / "no.png").write_text("no image")
    folders.picture(tmp_path / "images" / "a.bmp", 1)
    faulty = ['{"image": "a", "text": "ct"}', '{"image": "x.png", "text": "mr"}', "{no", '{"image": "", "text": " "}']
    (tmp_path / "faulty.jsonl").write_text("\n".join([*faulty, '{"image": "in/c", "text": ["ct"]}']))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.csv").write_text("image;truth\n")
    table = tmp_path / "faulty.jsonl"
    refused(
        on(run, tmp_path / "out", tmp_path / "images", table),
        f"{table}, line 1: expected one image 'a' in {tmp_path}/images, found a.bmp, a.png; name it with its suffix",
        f"{table}, line 2: expected one image 'x.png' in {tmp_path}/images, found none",
        f"{table}, line 3: expected JSON, found none",
        f"{table}, line 4: expected an image or a caption, found neither",
        f"{table}, line 5: expected an image and a caption as texts, found ['ct']",
        f"{tmp_path}/images/no.png: expected an image, but it cannot be read",
        f"{tmp_path}/out/predictions.csv: a file that kdjax did not write",
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.csv"]


def test_tables_that_cannot_be_read_are_refused(run, given, tmp_path):
    refused(on(run, tmp_path, given[0], tmp_path / "none.csv"), "none.csv: expected a table, .jsonl or .csv, found no")
    (tmp_path / "other.csv").write_text("image,remark\na.png,ct\n")
    refused(on(run, tmp_path, given[0], tmp_path / "other.csv"), "expected a column text or caption, found image, re")


def test_a_tokenizer_that_is_missing_or_of_other_words_is_refused(run, given, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "work")
    moved = run._replace(workdir=tmp_path / "work")
    swapped = tiny_records.tokenizer((*WORDS[::-1],))
    (moved.folder / TOKENIZER).write_text(json.dumps(swapped.keepsake()))
    refused(
        on(moved, tmp_path / "out", *given),
        f"{moved.folder / TOKENIZER}: expected the tokenizer of",
        f"found one of 15 tokens of the vocabulary {swapped.vocabulary}, which are other words",
    )
    (moved.folder / TOKENIZER).unlink()
    refused(on(moved, tmp_path / "out", *given), f"expected {TOKENIZER} beside it", "copy it from the run")
    assert not (tmp_path / "out").exists()


def test_a_model_takes_only_what_it_reads(run, text_run, given, tmp_path):
    images, captions = given
    refused(on(run, tmp_path), "the model reads images with captions; give --images, --captions or both")
    refused(on(text_run, tmp_path, images, captions), "the model reads text alone", "--captions=FILE and no --images")
    refused(on(text_run, tmp_path, images), "the model reads text alone")
    refused(on(run, tmp_path, *given, "--gradcam", "--threshold=1"), "records, of answers, knows no --threshold, --gr")
    flags = ("--config=configs/sam_distill.py:smoke", "--images=docs", "--captions=docs")
    refused(command("--mode=predict", *flags), "images, of segmentation, knows no --captions")
    assert not list(tmp_path.iterdir())


def test_captions_are_cut_where_the_model_ends(run, tmp_path):
    shutil.copytree(run.workdir, tmp_path / "work")
    moved = run._replace(workdir=tmp_path / "work")
    (moved.folder / TOKENIZER).write_text(json.dumps(tiny_records.tokenizer(length=50).keepsake()))
    loaded = predict.load(predict.chosen(run.experiment, "")[1], moved.workdir, "student", "")
    reader = answering.records.reader_of(loaded, run.model)
    inputs, cut = reader.read(["ct " * 20, "ct"])
    assert inputs["input_ids"].tolist() == [[2, 6, 6, 6, 6, 6, 6, 3], [2, 6, 3, 0, 0, 0, 0, 0]]
    assert inputs["attention_mask"].sum(1).tolist() == [8, 3]
    assert cut == 1


@pytest.mark.long
def test_captions_alone_are_enough_for_a_model_of_text(text_run, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text('image,caption\nx.png,"CT, of the head"\n,mr chest\n')
    ended = on(text_run, tmp_path / "out", "", table)
    assert ended.code == 0, ended.error
    lines = rows(tmp_path / "out")
    assert list(lines) == ["x.png", "line 3"]
    assert lines["x.png"]["caption"] == "CT, of the head"
    assert "image_share" not in lines["x.png"]
    assert "webp" not in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.long
def test_images_alone_are_records_without_captions(run, given, answered, tmp_path):
    ended = on(run, tmp_path / "out", given[0])
    assert ended.code == 0, ended.error
    assert "4 of 4 images have no caption" in ended.out
    lines = rows(tmp_path / "out")
    assert list(lines) == ["a.png", "b.jpg", "in/c.png", "in/d.png"]
    assert all(lines[name] == answered[2][name] for name in ("b.jpg", "in/d.png"))
    assert lines["a.png"]["text_share"] == "0.000000"
