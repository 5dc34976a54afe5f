import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.report.metrics import neighbours
from kdjax.tasks import task
from kdjax.tasks.contrastive import Contrastive

DATA = Data("digits", copies=2, augment={"crop": 1.0})
TASK = Contrastive.of(DATA)


def groups(n: int = 60, spread: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of three classes that point three ways."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    return (np.eye(5)[labels] + spread * rng.normal(size=(n, 5))).astype(np.float32), labels


def dataset(labels: dict, labelled: np.ndarray) -> types.SimpleNamespace:
    return types.SimpleNamespace(
        labels=lambda split: labels[split], labelled=lambda split: labelled, item="image", fields={}
    )


def test_it_is_a_task():
    assert isinstance(TASK, task.Task)
    term = TASK.terms()["supcon"]
    assert term.reads["student"] == "student:features"
    assert "known" not in term.reads
    assert Contrastive.of(DATA, unlabelled=True).terms()["supcon"].reads["known"] == "batch:class_known"
    assert Contrastive.of(DATA, embedding="neck").terms()["supcon"].reads["student"] == "student:neck"


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ConfigError, match=r"expected data.copies of at least 2, found 1"):
        Contrastive.of(Data("digits"))
    with pytest.raises(ConfigError, match="whole classes, which cutmix would mix"):
        Contrastive.of(Data("digits", copies=2, augment={"cutmix": 0.5}))
    for outputs, found in (({"logits": (4, 3)}, "no 'features'"), ({"features": (4, 2, 2, 3)}, r"\(4, 2, 2, 3\)")):
        shapes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in outputs.items()}
        with pytest.raises(ConfigError, match=f"needs 'features' .b, d., the model gives {found}; name a vector"):
            TASK.check(shapes)


def test_neighbours_are_right_where_classes_lie_apart():
    features, labels = groups()
    predictions = TASK.predict({"features": jnp.asarray(features)}, {})
    predictions = {name: np.asarray(value) for name, value in predictions.items()}
    assert TASK.gathered(predictions, labels) == {"knn": 1.0}
    shuffled = np.random.default_rng(1).permutation(labels)
    assert TASK.gathered(predictions, shuffled)["knn"] < 0.7
    broken = {"features": np.where(np.arange(60)[:, None] == 7, np.nan, features)}
    assert np.isnan(TASK.gathered(broken, labels)["knn"])
    assert TASK.gathered(broken, np.where(np.arange(60) == 7, -1, labels)) == {"knn": 1.0}


def test_the_test_asks_labelled_training_data_alone():
    (train, known), (test, labels) = groups(90), groups(60, seed=1)
    labels = np.where(np.arange(60) < 5, -1, labels)
    wrong = np.where(np.arange(90) < 45, known, (known + 1) % 3)  # what may not be used says something else
    of = dataset({"train": wrong, "test": labels}, np.arange(90) < 45)
    result, table = TASK.test(lambda split: {"features": {"train": train, "test": test}[split]}, of, {})
    assert {name: value["mean"] for name, value in result["metrics"].items()} == {"knn": 1.0, "probe": 1.0}
    assert result["per_image"]["knn"] == [1.0] * 55
    assert table[0] == ["image", "class", "neighbours"]
    voted = neighbours.knn(train[:45], known[:45], test)
    assert table[1:] == [[i, int(t), int(v)] for i, (t, v) in enumerate(zip(labels, voted, strict=True))]


def test_the_report_shows_the_embeddings():
    features, labels = groups()
    of = dataset({"test": labels}, labels >= 0)
    sections = TASK.pictures([task.Tested({"title": "warm", "role": "other"}, of, {"features": features})])
    assert "t-SNE" in sections["Contrastive learning"]
    assert "warm" in sections["Contrastive learning"]
