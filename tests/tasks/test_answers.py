"""Several labels of an example: each is measured over those that have it, and what counts is their mean macro F1."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from kdjax.config import ConfigError, Data, Term
from kdjax.report.answers import examples
from kdjax.report.metrics import classification as metrics
from kdjax.tasks import task as finished
from kdjax.tasks.answers import Answers, answer_of
from kdjax.tasks.classification import RIGHT, WRONG
from kdjax.train.setup import _check_classes

LABELS = ("modality", "location")
TASK = Answers.of(Data("medpix"), labels=LABELS)
CLASSES = {"modality": ("CT", "MR"), "location": ("Abdomen", "Head", "Thorax", "Spine and <Muscles>")}


def drawn(n: int = 90, seed: int = 0, sure: float = 2.0) -> dict[str, np.ndarray]:
    """Predictions of which most are right; every third has no location."""
    rng = np.random.default_rng(seed)
    made = {}
    for label, names in CLASSES.items():
        k = len(names)
        truth = np.arange(n) % k
        made[f"logits_{label}"] = rng.normal(size=(n, k)).astype(np.float32) + sure * np.eye(k, dtype=np.float32)[truth]
        made[label] = truth.astype(np.int32)
    made["location"][::3] = -1
    return made


@dataclasses.dataclass
class Stub:
    """Records of a test, of which the first has no image and the second no caption."""

    n: int = 90
    item: str = "record"

    @property
    def sizes(self):
        return {"train": self.n, "val": self.n, "test": self.n}

    @property
    def fields(self):
        return {"image": None}

    label_classes = CLASSES

    def called(self, split):
        return "name", [f"record {i}" for i in range(self.n)]

    def caption(self, split, i):
        return "" if i == 1 else f"a caption of {i} & <more>"

    def resized(self, split, i):
        return {"image": np.full((6, 6, 3), 90, np.uint8)}

    def batch(self, split, indices, share):
        images = np.full((len(indices), 6, 6, 3), 90, np.uint8)
        return {"image": images, "image_there": indices != 0, "valid": indices >= 0}


def predictions(test, val=None):
    return {"test": test, "val": drawn(seed=1) if val is None else val}.__getitem__


def batch(n: int = 12, seed: int = 0) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    outputs, of_batch = {}, {"valid": rng.random(n) < 0.8}
    for label, names in CLASSES.items():
        known = (rng.random(n) < 0.6) & of_batch["valid"]
        outputs[f"logits_{label}"] = jnp.asarray(rng.normal(size=(n, len(names))), jnp.bfloat16)
        of_batch |= {label: np.where(known, rng.integers(0, len(names), n), -1), f"{label}_known": known}
    return outputs, {k: jnp.asarray(v) for k, v in of_batch.items()}


# -- what it reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "labels", "said"),
    [
        (Data("medpix"), (), r"names of the labels to learn, each once.*found \(\)"),
        (Data("medpix"), ("a", "b", "a"), r"each once.*found \('a', 'b', 'a'\)"),
        (Data("medpix", augment={"mixup": 0.5}), LABELS, "whole classes, which the mixing in data.augment would mix"),
    ],
)
def test_options_that_mean_nothing_are_refused(data, labels, said):
    with pytest.raises(ConfigError, match=said):
        Answers.of(data, labels=labels)


def test_each_label_has_a_term_and_logits_of_its_own():
    assert TASK.terms() == {
        "ce_modality": Term("ce", "logits_modality", label="modality"),
        "ce_location": Term("ce", "logits_location", label="location"),
    }
    assert Answers.of(Data("medpix"), labels=list(LABELS)) == TASK, "hashable, as a student and its control share it"
    outputs, _ = batch()
    TASK.check(outputs)
    with pytest.raises(
        ConfigError, match=r"needs logits_location \[examples, classes\], the model gives logits_modality"
    ):
        TASK.check({"logits_modality": outputs["logits_modality"], "logits_location": jnp.zeros((2, 3, 4))})


def test_another_number_of_classes_than_the_data_have_is_refused():
    outputs, _ = batch()
    _check_classes(outputs, {"modality": 2, "location": 4, "plane": 3})
    with pytest.raises(ConfigError, match=r"'logits_location' of 5 classes, as many as the data have.*gives 4; leave"):
        _check_classes(outputs, {"modality": 2, "location": 5})


def test_predictions_hold_the_labels_that_are_known():
    outputs, of_batch = batch()
    predicted = TASK.predict(outputs, of_batch)
    assert set(predicted) == {"logits_modality", "logits_location", "modality", "location"}
    for label in LABELS:
        assert predicted[f"logits_{label}"].dtype == jnp.float32
        known = np.asarray(of_batch[f"{label}_known"])
        np.testing.assert_array_equal(predicted[label], np.where(known, of_batch[label], -1))
        assert 0 < known.sum() < known.size
    assert "shares" in TASK.predict({**outputs, "shares": jnp.ones((12, 2))}, of_batch)
    assert set(TASK.predict(outputs, {"valid": of_batch["valid"]})) == {"logits_modality", "logits_location"}, (
        "new ones"
    )


# -- what it measures ------------------------------------------------------------------------------------------------


def test_accuracy_of_a_label_is_over_the_examples_that_have_it():
    outputs, of_batch = batch()
    measured = TASK.measure(outputs, of_batch)
    assert set(measured) == {"modality_accuracy", "location_accuracy"}
    for label in LABELS:
        known, logits = np.asarray(of_batch[f"{label}_known"]), np.asarray(outputs[f"logits_{label}"], np.float32)
        right = (logits.argmax(-1) == np.asarray(of_batch[label]))[known].sum()
        assert tuple(map(int, measured[f"{label}_accuracy"])) == (right, known.sum())
        for where, shows in ((~known, False), (known, True)):
            broken = outputs[f"logits_{label}"].at[int(np.flatnonzero(where)[0])].set(jnp.nan)
            total, _ = TASK.measure({**outputs, f"logits_{label}": broken}, of_batch)[f"{label}_accuracy"]
            assert bool(jnp.isnan(total)) is shows


def f1_of(predicted, label) -> float:
    known = predicted[label] >= 0
    truth, answer = predicted[label][known], predicted[f"logits_{label}"].argmax(1)[known]
    return float(sklearn_metrics.f1_score(truth, answer, average="macro", labels=np.unique(truth)))


def test_what_counts_is_the_mean_of_the_macro_f1_of_all_labels():
    predicted = drawn()
    gathered, expected = (
        TASK.gathered(predicted, np.zeros(90, int)),
        {label: f1_of(predicted, label) for label in LABELS},
    )
    assert gathered["macro_f1"] == pytest.approx(np.mean([*expected.values()]))
    assert gathered["location_macro_f1"] == pytest.approx(expected["location"])
    assert 0.3 < gathered["location_macro_f1"] < gathered["modality_macro_f1"] < 1
    measured = {*gathered, *TASK.measure(*batch())}
    assert measured == set(TASK.measures)
    unknown = {**predicted, "location": np.full(90, -1, np.int32)}
    gathered = TASK.gathered(unknown, np.zeros(90, int))
    assert gathered["macro_f1"] == pytest.approx(expected["modality"]), "of the labels that are known"
    assert gathered["location_macro_f1"] == 0
    assert TASK.gathered({**unknown, "modality": unknown["location"]}, np.zeros(90, int))["macro_f1"] == 0
    predicted["logits_location"][1] = np.nan  # of an example that has a location
    assert np.isnan(TASK.gathered(predicted, np.zeros(90, int))["macro_f1"]), "a model that diverged shows"


def test_a_test_measures_each_label_and_counts_those_without():
    predicted = drawn()
    result, (head, *rows) = TASK.test(predictions(predicted), Stub(), {"temperature_modality": 2.0})
    assert list(result["metrics"])[:3] == ["macro_f1", "modality_accuracy", "location_accuracy"]
    assert result["unlabelled"] == {"modality": 0, "location": 30}
    assert result["temperature_modality"] == 2.0
    known = predicted["location"] >= 0
    truth, logits = predicted["location"][known], predicted["logits_location"][known]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    answer, several = logits.argmax(1), {"average": "macro", "zero_division": 0}
    expected = {
        "accuracy": np.mean(answer == truth),
        "macro_precision": sklearn_metrics.precision_score(truth, answer, **several),
        "macro_recall": sklearn_metrics.recall_score(truth, answer, **several),
        "auc": sklearn_metrics.roc_auc_score(truth, p, multi_class="ovr", average="macro"),
        "nll": -np.log(p[np.arange(60), truth]).mean(),
    }
    for name, value in expected.items():
        assert result["metrics"][f"location_{name}"]["mean"] == pytest.approx(value, rel=1e-5), name
        assert result["metrics"][f"location_{name}"]["n"] == 60
    assert result["metrics"]["macro_f1"]["mean"] == pytest.approx(
        (f1_of(predicted, "modality") + f1_of(predicted, "location")) / 2
    )
    assert {"modality_nll_scaled"} <= set(result["metrics"])
    assert "location_nll_scaled" not in result["metrics"], "nobody told its temperature"
    assert np.array(result["confusions"]["location"]).sum() == 60
    assert np.mean(result["per_image"]["location_accuracy"]) == pytest.approx(expected["accuracy"])
    assert len(result["per_image"]["modality_accuracy"]) == 90
    assert head == ["name", "modality", "modality_predicted", "location", "location_predicted"]
    assert rows[0][:2] == ["record 0", "CT"]
    assert rows[0][3] == ""
    assert rows[1][3] == "Head"
    assert TASK.words(Stub()) == {
        "over": "90 test records",
        "shown": ["macro_f1", "modality_accuracy", "location_accuracy"],
    }


def test_what_the_test_set_lacks_is_not_counted():
    predicted = drawn()
    predicted["location"][predicted["location"] == 2] = -1  # no Thorax is left, and a model may well say it
    result, _ = TASK.test(predictions(predicted), Stub(), {})
    assert result["metrics"]["location_macro_f1"]["mean"] == pytest.approx(f1_of(predicted, "location"))
    assert result["confusions"]["location"][2] == [0, 0, 0, 0]
    predicted["location"][:] = -1
    result, _ = TASK.test(predictions(predicted), Stub(), {})
    assert np.isnan(result["metrics"]["location_accuracy"]["mean"])
    assert result["metrics"]["macro_f1"]["mean"] == result["metrics"]["modality_macro_f1"]["mean"]
    assert result["per_image"]["location_accuracy"] == []
    assert np.mean(result["per_image"]["macro_f1"]) == pytest.approx(result["metrics"]["macro_f1"]["mean"])
    predicted["modality"][:] = -1
    result, _ = TASK.test(predictions(predicted), Stub(), {})
    assert np.isnan(result["metrics"]["macro_f1"]["mean"])
    assert result["per_image"]["macro_f1"] == []


def test_a_model_that_says_nothing_or_always_the_same():
    predicted = drawn()
    predicted["logits_location"] = np.tile(np.eye(4, dtype=np.float32)[1], (90, 1))
    result, _ = TASK.test(predictions(predicted), Stub(), {})
    assert result["remark"] == "gives every test record the location Head"
    predicted["logits_modality"][:] = np.nan
    result, (_, *rows) = TASK.test(predictions(predicted), Stub(), {})
    assert np.isnan(result["metrics"]["macro_f1"]["mean"])
    assert np.isnan(result["per_image"]["macro_f1"]).all(), "no interval is made of it"
    assert not np.any(result["per_image"]["modality_accuracy"])
    assert rows[0][2] == "", "no answer"
    assert set(answer_of("modality", predicted)) == {-1}


def test_each_label_has_a_temperature_of_its_own():
    val = drawn(seed=1)
    val["logits_location"] *= 8
    calibrated = TASK.calibrate(val, Stub())
    assert calibrated["temperature_location"] > 3 * calibrated["temperature_modality"]
    result, _ = TASK.test(predictions(drawn(), val), Stub(), {})
    assert {name: result[name] for name in calibrated} == calibrated, "a file that tells no temperature is given one"
    bare = {**val, "location": np.full(90, -1, np.int32)}
    assert TASK.calibrate(bare, Stub())["temperature_location"] == 1.0


# -- the interval ----------------------------------------------------------------------------------------------------


def test_influence_is_how_macro_f1_grows_with_the_weight_of_an_example():
    predicted = drawn(30, sure=1.0)
    logits, labels = predicted["logits_location"], predicted["location"]
    influence, answer, known = metrics.influence(logits, labels), logits.argmax(1), labels >= 0

    def f1(weights):
        given = {"sample_weight": weights[known], "labels": np.unique(labels[known]), "average": "macro"}
        return sklearn_metrics.f1_score(labels[known], answer[known], **given)

    for i in range(30):
        step = np.zeros(30)
        step[i] = 1e-5
        assert influence[i] == pytest.approx((f1(1 + step) - f1(1 - step)) / 2e-5, abs=1e-7)
    assert influence.sum() == pytest.approx(0, abs=1e-12)
    assert (influence[~known] == 0).all()


@pytest.mark.long
def test_the_values_of_examples_spread_as_macro_f1_does_when_the_test_set_is_drawn_anew():
    predicted, rng = drawn(240, sure=1.0), np.random.default_rng(0)
    values = np.array(TASK.test(predictions(predicted), Stub(240), {})[0]["per_image"]["macro_f1"])
    again = []
    for _ in range(200):
        chosen = rng.integers(0, 240, 240)
        again.append(np.mean([f1_of({k: v[chosen] for k, v in predicted.items()}, label) for label in LABELS]))
    assert values.std(ddof=1) / np.sqrt(240) == pytest.approx(np.std(again), rel=0.15)


# -- what it draws ---------------------------------------------------------------------------------------------------


def stages(**changes) -> list[finished.Tested]:
    made = []
    for i, (title, role) in enumerate((("large <1>", "teacher"), ("small", "student"), ("alone", "control"))):
        predicted = {**drawn(seed=i), "shares": np.full((90, 2), 0.5, np.float32), **changes}
        result, _ = TASK.test(predictions(predicted), Stub(), {})
        one = {"image and text": 0.9, "image alone": 0.7, "text alone": np.nan}
        row = {"title": title, "role": role, **result, "robustness": {"macro F1": one, "location accuracy": one}}
        made.append(finished.Tested(row, Stub(), predicted))
    return made


@pytest.fixture(scope="module")
def sections():
    return TASK.pictures(stages())


@pytest.mark.long
def test_the_report_has_a_section_for_each_label(sections):
    assert list(sections) == [
        "Modality",
        "Location",
        "One part of the input alone",
        "How image and text are weighed",
        "Examples",
    ]
    shown = sections["Location"]
    assert "30 of 90 test records have no location" in shown
    assert "have no modality" not in sections["Modality"]
    for text in ("macro precision", "AUC", "confusions, of 60 test records", "Spine and &lt;Muscles&gt;", "ECE"):
        assert text in shown, text
    assert (shown.count("<figure"), shown.count("<table")) == (2, 2)
    assert "<1>" not in "".join(sections.values())


@pytest.mark.long
def test_the_report_shows_one_part_alone_and_how_parts_are_weighed(sections):
    parts = sections["One part of the input alone"]
    assert parts.count("<small>text alone</small>") == 3
    assert "location accuracy" in parts
    assert "<td>–</td>" in parts
    assert "0.500 ± 0.000" in sections["How image and text are weighed"]
    without = stages()
    for stage in without:
        del stage.predicted["shares"], stage.row["robustness"]
    assert list(TASK.pictures(without)) == ["Modality", "Location", "Examples"]


def test_examples_begin_with_those_about_which_models_differ():
    made = stages()
    answers = {stage.title: {label: answer_of(label, stage.predicted) for label in LABELS} for stage in made}
    truth = {label: made[0].predicted[label] for label in LABELS}
    shown = examples(Stub(), truth, answers, {label: list(names) for label, names in CLASSES.items()})
    blocks = shown.split('<div class="record">')[1:]
    assert len(blocks) == 12
    assert "12 of 90 test records" in shown
    first = int(blocks[0].split("<h3>record ")[1].split("<")[0])
    assert all(len({answers[stage.title][label][first] for stage in made}) > 1 for label in LABELS)
    for block in blocks:
        i = int(block.split("<h3>record ")[1].split("<")[0])
        assert f"a caption of {i} &amp; &lt;more&gt;" in block or (i == 1 and "no caption" in block)
        assert ("<img" in block) is (i != 0)
        words = [
            answers[stage.title][label][i] == made[0].predicted[label][i]
            for stage in made
            for label in LABELS
            if made[0].predicted[label][i] >= 0
        ]
        assert (block.count('class="right"'), block.count('class="wrong"')) == (sum(words), len(words) - sum(words))
        assert block.count(", right</span>") == sum(words)


@pytest.mark.long
def test_models_that_were_tested_on_other_records_are_left_out():
    made = stages()
    made[0].predicted["modality"] = np.roll(made[0].predicted["modality"], 1)
    assert "large" not in TASK.pictures(made)["Modality"]


def test_nothing_is_known_and_nothing_is_drawn():
    unknown = {label: np.full(90, -1, np.int32) for label in LABELS}
    made = stages(**unknown, logits_modality=np.full((90, 2), np.nan, np.float32))
    for stage in made:
        del stage.predicted["shares"]
    sections = TASK.pictures(made)
    assert sections["Modality"].count("<svg") == 0
    assert "90 of 90 test records have no modality" in sections["Modality"]
    assert "– no answer" in sections["Examples"]


def test_sketches_frame_images_by_whether_all_that_is_known_is_right():
    predicted = {k: v[:3] for k, v in drawn(sure=50).items()}  # the first has no location, and all are right
    predicted["logits_modality"][2] *= -1
    shown = TASK.sketches(predicted, Stub(3), "val")
    assert [tuple(image[0, 3]) for image in shown.values()] == [RIGHT, RIGHT, WRONG]
    assert TASK.sketches(predicted, SimpleNamespace(fields={"input_ids": None}), "val") == {}
