"""A look at records, images with captions, before anything is trained."""

import pytest

from kdjax.config import Data, Stage, Task
from kdjax.data import pipeline
from kdjax.experiment import look as looking
from kdjax.report import look as page
from tests.support import tiny, tiny_records
from tests.support.command import command
from tests.support.tiny_records import CLASSES


def looked(table, **options) -> str:
    of_records = {"labels": CLASSES, "missing": "text", "cache": "", **options}
    data = Data("records", table=str(table), **of_records, image_size=16, num_classes=None, split=(0.0, 0.0, 1.0))
    stage = Stage(task=Task("answers", labels=tuple(CLASSES)), data=data, model=tiny.model(), epochs=1)
    return page.render(looking.seen("x", stage, pipeline.build(data), seed=0))


def test_the_page_counts_labels_and_tokens_and_shows_captions(tmp_path):
    table = tiny_records.table(tmp_path)
    tokenizers = {words: {"path": tiny_records.saved(tmp_path)} for words in ("teacher", "student")}
    html = looked(table, tokenizers=tokenizers)
    assert "8 records, 2 classes of modality and 3 classes of location." in html
    counts = {"CT": 4, "MR": 4, "Abdomen": 3, "Head &lt;b&gt;": 3, "Thorax": 1}  # the third has no place
    for name, count in counts.items():
        line = html.split(f'<th scope="row">{name}</th>')[1].split("</tr>")[0]
        assert line.endswith(f"<td>{count}</td>")
    for words in tokenizers:
        assert f"{words}</th><td>test</td><td>7</td><td>6.0</td><td>6</td>" in html.replace(' scope="row"', "")
    assert "ct of the head" in html
    assert "1 of 8 records have no location." in html
    assert html.count("data:image/webp") == 7


def test_captions_alone_need_no_image(tmp_path):
    lines = [f"{word} of the head,{m},{p}" for word, m, p in (("ct", "CT", "Thorax"), ("mr", "MR", "Abdomen"))]
    (tmp_path / "texts.csv").write_text("\n".join(["text,modality,location", *lines]))
    html = looked(tmp_path / "texts.csv", tokenizers={"": {"path": tiny_records.saved(tmp_path)}})
    assert "webp" not in html
    assert "pixels as the student sees them" not in html
    assert "mr of the head" in html
    assert "the only one" in html


@pytest.mark.long
def test_the_command_shows_generated_scans(tmp_path):
    ended = command("--mode=look", "--config=configs/medpix_distill.py:smoke", f"--workdir={tmp_path}")
    assert ended.code == 0, ended.error
    html = (tmp_path / "look.html").read_text()
    assert "on the right as the first epoch augments it" in html
    assert "Reproductive and Urinary System" in html
