"""Classes of examples, wherever these lie in a batch."""

import types
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Data, Term
from kdjax.tasks import task
from kdjax.tasks.classification import RIGHT, WRONG, Classification

TASK = Classification.of(Data("citations", num_classes=3))


def made(shape, seed: int = 0) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    label, valid, labelled = rng.integers(0, 3, shape), rng.random(shape) < 0.8, rng.random(shape) < 0.7
    batch = {"class": np.where(labelled & valid, label, -1), "valid": valid}
    batch |= {"class_known": labelled & valid, "index": np.arange(np.prod(shape), dtype=np.int32).reshape(shape)}
    return {"logits": jnp.asarray(rng.normal(size=(*shape, 3)), jnp.float32)}, {
        k: jnp.asarray(v) for k, v in batch.items()
    }


@pytest.mark.parametrize("shape", [(20,), (1, 30), (2, 9)])
def test_accuracy_is_of_the_known(shape):
    out, batch = made(shape)
    known = np.asarray(batch["valid"] & batch["class_known"])
    assert 0 < known.sum() < known.size
    right = (np.asarray(out["logits"]).argmax(-1) == np.asarray(batch["class"]))[known]
    total, count = TASK.measure(out, batch)["accuracy"]
    assert (int(total), int(count)) == (right.sum(), known.sum())
    for where, shows in ((~known, False), (known, True)):
        broken = out["logits"].at[tuple(np.argwhere(where)[0])].set(jnp.nan)
        assert bool(jnp.isnan(TASK.measure({"logits": broken}, batch)["accuracy"][0])) is shows


def test_predictions_are_logits_in_float32_and_a_vector_for_each_example():
    for shape in ((4,), (2, 3)):
        out, batch = made(shape)
        half = out["logits"].astype(jnp.bfloat16)
        predicted = TASK.predict({"logits": half}, batch)
        assert set(predicted) == {"logits"}
        assert predicted["logits"].dtype == jnp.float32
        np.testing.assert_array_equal(predicted["logits"], half.astype(jnp.float32))
        maps, vectors = jnp.ones((*shape, 5, 7)), jnp.ones((*shape, 7), jnp.bfloat16)
        assert set(TASK.predict({"logits": half, "features": maps}, batch)) == {"logits"}
        for name in ("features", "embedding"):
            predicted = TASK.predict({"logits": half, name: vectors}, batch)
            assert (predicted["features"].shape, predicted["features"].dtype) == ((*shape, 7), jnp.float32)


def test_mixed_examples_have_a_soft_target():
    assert TASK.terms() == {"ce": Term("ce", label="class")}
    for augment, mixed in (
        ({"cutmix": 0.5, "hflip": 0.5}, True),
        ({"tokenmix": 0.1}, True),
        ({"cutmix": 0.0, "hflip": 0.5}, False),
    ):
        terms = Classification.of(Data("digits", num_classes=3, augment=augment)).terms()
        assert terms == {"ce": Term("soft_ce", label="target") if mixed else Term("ce", label="class")}


def test_another_number_of_classes_is_refused():
    TASK.check({"logits": jnp.zeros((2, 3))})
    with pytest.raises(ConfigError, match=r"of 3 classes needs .* gives \(1, 9, 7\); set num_classes=3"):
        TASK.check({"logits": jnp.zeros((1, 9, 7))})
    with pytest.raises(ConfigError, match="gives no 'logits'"):
        TASK.check({})


def finished(title: str, role: str, truth: np.ndarray, seed: int = 0, k: int = 3) -> task.Tested:
    rng = np.random.default_rng(seed)
    predicted = {"logits": rng.normal(size=(len(truth), k)) + 3 * np.eye(k)[np.maximum(truth, 0)]}
    predicted |= {"features": rng.normal(size=(len(truth), 6)).astype(np.float32)}
    dataset = types.SimpleNamespace(
        labels=lambda split: truth,
        item="image",
        image_classes=("cat", "dog"),
        fields={"image": None},
        called=lambda split: ("name", [f"picture {i}" for i in range(len(truth))]),
        resized=lambda split, i: {"image": np.full((4, 4, 3), i, np.uint8)},
    )
    return task.Tested({"title": title, "role": role}, dataset, predicted)


def test_a_tested_model():
    truth = np.array([0, 2, 1, 1, 0, -1])
    logits = np.eye(3)[[0, 2, 2, 1, 1, 0]] * 5
    dataset = types.SimpleNamespace(labels=lambda split: truth, item="node", sizes={"val": 0})
    result, table = TASK.test(lambda split: {"logits": logits}, dataset, {})
    assert result["per_image"] == {"accuracy": [1.0, 1.0, 0.0, 1.0, 0.0]}
    accuracy = result["metrics"]["accuracy"]
    assert (accuracy["mean"], accuracy["n"]) == (0.6, 5)
    assert accuracy["std"] == pytest.approx(np.sqrt(0.6 * 0.4))
    assert set(result["metrics"]) == {"accuracy", "macro_f1", "ece", "nll"}
    assert result["metrics"]["macro_f1"]["mean"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert result["confusion"] == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert table == [["node", "class", "predicted"], [0, 0, 0], [1, 2, 2], [2, 1, 2], [3, 1, 1], [4, 0, 1], [5, -1, 0]]
    assert TASK.words(dataset) == {"over": "5 test nodes"}


def test_certainty_is_measured_before_and_after_temperature_scaling():
    rng = np.random.default_rng(0)
    truth = {split: rng.integers(0, 3, 90) for split in ("val", "test")}
    logits = {split: 9 * (rng.normal(size=(90, 3)) + np.eye(3)[of]) for split, of in truth.items()}
    dataset = SimpleNamespace(labels=lambda split: truth[split], item="image", sizes={"val": 90})
    predictions = lambda split: {"logits": logits[split]}  # noqa: E731
    calibrated = TASK.calibrate(predictions("val"), dataset)
    result, _ = TASK.test(predictions, dataset, calibrated)
    assert result["temperature"] == calibrated["temperature"] > 3
    for name in ("ece", "nll"):
        assert result["metrics"][f"{name}_scaled"]["mean"] < 0.5 * result["metrics"][name]["mean"]
    assert TASK.test(predictions, dataset, {})[0] == result, "a file that tells no temperature is given one"


def test_how_many_classes_the_top_is():
    task = Classification.of(Data("citations", num_classes=9), top=[3, 5])
    logits = np.arange(9.0)[None].repeat(4, 0)
    dataset = SimpleNamespace(labels=lambda split: np.array([8, 6, 4, 0]), item="image", sizes={"val": 0})
    measured = task.test(lambda split: {"logits": logits}, dataset, {})[0]["metrics"]
    assert [measured[name]["mean"] for name in ("accuracy", "top3", "top5")] == [0.25, 0.5, 0.75]
    assert measured["top3"]["std"] == 0.5
    with pytest.raises(ConfigError, match="top: expected whole numbers above 1"):
        Classification.of(Data("citations", num_classes=9), top=(1,))


def test_a_diverged_model_has_no_accuracy():
    dataset = types.SimpleNamespace(labels=lambda split: np.array([0, 0]), item="image", sizes={"val": 2})
    result, _ = TASK.test(lambda split: {"logits": np.full((2, 3), np.nan)}, dataset, {})
    assert np.isnan(result["metrics"]["accuracy"]["mean"])
    assert result["per_image"]["accuracy"] == [0.0, 0.0]


def test_pictures_show_models_of_the_same_test_data():
    truth = np.arange(40) % 3
    stages = [finished("large", "teacher", truth), finished("elsewhere", "other", truth[:30])]
    stages += [finished("small", "student", truth, 1), finished("alone", "control", truth, 2)]
    wrong = int((stages[2].predicted["logits"].argmax(1) != truth).sum())
    classes, certainty, mistakes = TASK.pictures(stages).values()
    assert mistakes.count("<figure") == wrong > 0
    assert (classes.count("<figure"), classes.count("<table"), certainty.count("<figure")) == (2, 1, 2)
    titles = ("large", "small", "alone", "elsewhere")
    assert [title in classes for title in (*titles, "dog")] == [True] * 3 + [False, True]
    assert [title in certainty for title in titles] == [True] * 3 + [False]
    assert "after temperature scaling" not in certainty
    stages[2].row["temperature"] = 2.0
    del stages[0].predicted["features"], stages[2].predicted["features"]
    stages[2].dataset.fields = {"nodes": None}
    classes, certainty = TASK.pictures([stages[0], stages[2]]).values()
    assert classes.count("<figure") == 1
    assert "after temperature scaling" in certainty


def test_the_report_shows_the_most_confident_mistakes_of_the_last_student():
    truth = np.arange(12) % 3
    stages = [finished("large", "teacher", truth), finished("small <1>", "student", truth, 1)]
    stages[1].predicted["logits"] = np.eye(3)[truth] * 5
    assert set(TASK.pictures(stages)) == {"Classes", "Certainty"}
    stages[1].predicted["logits"][4] = (0, 0, 8)  # a dog
    stages[1].row["temperature"] = 8 / np.log(8)
    sections = TASK.pictures(stages)
    shown = sections["Most confident mistakes: small &lt;1&gt;"]
    assert "<b>2: 80 %</b>is dog: 10 %<br>picture 4" in shown
    assert shown.count("<figure>") == 1


def test_sketches_frame_images_by_whether_they_are_recognised():
    grey = np.full((6, 6, 3), 99, np.uint8)
    dataset = SimpleNamespace(
        fields={"image": None},
        sizes={"val": 2},
        labels=lambda split: np.array([0, 0]),
        resized=lambda split, i: {"image": grey},
    )
    shown = Classification(2).sketches({"logits": np.eye(2, dtype=np.float32)}, dataset, "val")
    assert [tuple(image[0, 3]) for image in shown.values()] == [RIGHT, WRONG]
    assert all((image[1:-1, 1:-1] == 99).all() for image in shown.values())
    assert Classification(2).sketches({}, SimpleNamespace(fields={"nodes": None}), "val") == {}
