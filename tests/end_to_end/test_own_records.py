"""A table of one's own with captions and one label, for which a plain classifier of texts is enough."""

import csv
import itertools

import pytest

from kdjax.config import Data, Experiment, Mesh, Model, Optim, Stage
from kdjax.experiment import run as running

pytestmark = pytest.mark.long

SEEN = {"lung": ("nodule", "effusion"), "skull": ("fracture", "haematoma")}  # class -> what its captions speak of


@pytest.fixture
def table(tmp_path):
    rows = [
        {"text": f"{view} image {i} shows a {word}", "class": name, "split": split}
        for split, count in {"train": 12, "val": 4, "test": 4}.items()
        for (name, words), view, i in itertools.product(SEEN.items(), ("axial", "frontal"), range(count))
        for word in [words[i % 2]]
    ]
    rows[0]["class"] = ""  # one nobody has looked at
    path = tmp_path / "reports.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_classifier_of_texts_learns_from_a_table(table, tmp_path, capsys):
    reader = Model(
        "bert",
        variant="tiny",
        dim=16,
        depth=1,
        heads=2,
        vocab_size=None,
        vocabulary=None,
        num_classes=None,
        pool="mean",
    )
    stage = Stage(
        task="classification",
        data=Data(
            "records",
            table=str(table),
            labels={"class": tuple(SEEN)},
            tokenizers={"": {"train": 200}},
            length=16,
            batch_size=8,
            num_classes=None,
        ),
        model=reader,
        optim=Optim("adam", lr=1e-2),
        epochs=5,
    )
    made = Experiment(name="reports", stages={"reader": stage}, mesh=Mesh(data=1), quick_compile=True)
    made.log.tensorboard = False
    (row,) = running.run(made, tmp_path / "run")["rows"]
    assert row["metrics"]["accuracy"] == {"mean": 1.0, "std": 0.0, "n": 16}
    assert "note     records: 1 of 80 records have no class" in capsys.readouterr().out
