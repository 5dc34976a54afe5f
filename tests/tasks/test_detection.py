"""Detection: measures beside scikit-learn, thresholds from validation data, what a diverged model shows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from kdjax.config import ConfigError, Data
from kdjax.experiment import robustness
from kdjax.tasks import alarms
from kdjax.tasks import task as finished
from kdjax.tasks.detection import DAMAGES, Detection, logit

TASK = Detection.of(Data("can_traffic"))
VAL = np.array([0, 0, 1, 0, 1, 0, 0, 1])


@dataclasses.dataclass
class Sets:
    """Two test sets, the second with a graph that nobody labelled; rings as example graphs."""

    val: np.ndarray = dataclasses.field(default_factory=lambda: VAL)
    test: np.ndarray = dataclasses.field(default_factory=lambda: np.array([0, 1, 1, 0, 0, 1, -1, 0, 1]))
    kinds: tuple[str, ...] = ("normal", "attack")
    item: str = "graph"
    groups: tuple[str, ...] = ("here",) * 5 + ("elsewhere",) * 4

    def labels(self, split):
        return {"train": VAL, "val": self.val, "test": self.test}[split]

    def called(self, split):
        return "begin", [f"{i / 4:.6f}" for i in range(len(self.labels(split)))]

    def graph(self, split, i):
        ring = np.arange(3)
        told = {"x": np.ones((3, 2)), "name": ring + 256, "senders": ring, "receivers": (ring + 1) % 3}
        return {**told, "label": self.labels(split)[i]}


def batch(seed: int = 0, packs: int = 3, graphs: int = 5) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    shape = (packs, graphs)
    label, valid, labelled = rng.integers(0, 2, shape), rng.random(shape) < 0.8, rng.random(shape) < 0.7
    outputs = {"logits": rng.normal(0, 2, (*shape, 1)), "embedding": rng.normal(size=(*shape, 4))}
    told = {"class": np.where(valid & labelled, label, -1), "valid": valid, "class_known": valid & labelled}
    return {k: jnp.asarray(v, jnp.float32) for k, v in outputs.items()}, {k: jnp.asarray(v) for k, v in told.items()}


def test_measures_are_those_of_scikit_learn():
    outputs, seen = batch()
    known = np.asarray(seen["class_known"])
    z, y = np.asarray(outputs["logits"])[..., 0][known], np.asarray(seen["class"])[known]
    assert 0 < known.sum() < known.size
    found = TASK.measure(outputs, seen)
    (hits, alarmed), (sure, count) = found["f1"], found["confidence"]
    assert float(hits / alarmed) == pytest.approx(metrics.f1_score(y, z > 0), rel=1e-6)
    p = 1 / (1 + np.exp(-z))
    assert float(sure / count) == pytest.approx(np.maximum(p, 1 - p).mean(), rel=1e-6)
    halves = [
        TASK.measure(*({k: v[part] for k, v in d.items()} for d in (outputs, seen))) for part in (slice(1), slice(1, 3))
    ]
    for name, (total, count) in found.items():
        np.testing.assert_allclose(sum(h[name][0] for h in halves), total, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(sum(h[name][1] for h in halves), count, rtol=1e-6, err_msg=name)


def test_two_logits_are_the_same_as_their_difference():
    outputs, seen = batch()
    z, other = outputs["logits"], jnp.full_like(outputs["logits"], 0.7)
    both = {**outputs, "logits": jnp.concatenate([other, other + z], axis=-1)}
    np.testing.assert_allclose(logit(both["logits"]), z[..., 0], rtol=1e-5, atol=1e-6)
    for name, value in TASK.measure(outputs, seen).items():
        np.testing.assert_allclose(TASK.measure(both, seen)[name], value, rtol=1e-6)
    predicted = TASK.predict(both, seen)
    np.testing.assert_allclose(predicted["score"], z[..., 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(predicted["embedding"], outputs["embedding"])
    assert list(TASK.predict({"logits": z}, seen)) == ["score"]


def test_what_is_not_finite_shows_unless_it_is_padding():
    outputs, seen = batch()
    known = np.asarray(seen["class_known"])
    where = [tuple(map(int, np.argwhere(k)[0])) for k in (~known, known)]
    for (p, g), shows in zip(where, (False, True), strict=True):
        found = TASK.measure({"logits": outputs["logits"].at[p, g].set(jnp.nan)}, seen)
        assert bool(jnp.isnan(found["f1"][0])) is shows


@pytest.mark.parametrize(
    ("outputs", "found"),
    [
        ({}, "none"),
        ({"logits": jnp.zeros((2, 3, 4))}, r"\[2, 3, 4\]"),
        ({"logits": jnp.zeros((2, 1, 1, 1))}, r"\[2, 1, 1, 1\]"),
    ],
)
def test_other_models_are_refused(outputs, found):
    with pytest.raises(
        ConfigError, match=rf"needs 'logits' \[images, 1 or 2\] or \[packs, graphs, 1 or 2\], the model gives {found}"
    ):
        TASK.check(outputs)
    for k in (1, 2):
        TASK.check({"logits": jnp.zeros((2, 3, k))})


def test_the_threshold_is_that_of_the_best_f1_on_validation_data():
    scores = np.array([0.1, 0.4, 0.35, 0.2, 2.0, -1.0, 0.3, 1.0], np.float32)
    (limit,) = TASK.calibrate({"score": scores}, Sets()).values()
    best = max(metrics.f1_score(VAL, scores > t) for t in np.append(scores, -2.0))
    assert metrics.f1_score(VAL, scores > limit) == best == pytest.approx(6 / 7)
    unknown = np.append(VAL, -1)  # the highest score, and nobody knows of what
    assert TASK.calibrate({"score": np.append(scores, 9.0)}, Sets(val=unknown))["threshold"] == limit


def test_the_threshold_without_attacks_is_a_percentile():
    scores = np.random.default_rng(0).normal(size=500).astype(np.float32)
    for label in (0, -1):  # all normal, or nothing known
        found = TASK.calibrate({"score": scores}, Sets(val=np.full(500, label)))
        assert found["threshold"] == pytest.approx(np.quantile(scores, 0.99), rel=1e-6)


def run(task=TASK, width: int = 0) -> tuple[dict, list, dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    predicted = {"score": rng.normal(2 * np.maximum(Sets().test, 0)).astype(np.float32)}
    predicted |= {"embedding": rng.normal(size=(9, width)).astype(np.float32)} if width else {}
    splits = {"val": {"score": (2.0 * VAL - 1 + 0.1 * np.arange(8)).astype(np.float32)}, "test": predicted}
    result, table = task.test(splits.__getitem__, Sets(), {"threshold": 1.0})
    again, _ = task.test(splits.__getitem__, Sets(), {})  # nothing was kept with the weights: calibrated now
    assert again["threshold"] == pytest.approx(0.4)  # between -0.4 and 1.2
    return result, table, predicted


def test_each_test_set_is_measured_alone():
    result, table, predicted = run()
    scores = predicted["score"]
    assert result["threshold"] == 1.0
    each = []
    for name, some in (("here", slice(0, 5)), ("elsewhere", [5, 7, 8])):
        attack, z = Sets().test[some] == 1, scores[some]
        alarm = z > 1.0
        expected = {
            "f1": 2 * np.sum(attack & alarm) / (attack.sum() + alarm.sum()),
            "precision": attack[alarm].mean(),
            "recall": alarm[attack].mean(),
            "accuracy": np.mean(attack == alarm),
            "auc": np.mean(z[attack][:, None] > z[~attack]),
        }
        for measure, value in expected.items():
            assert result["per_class"][name][measure]["mean"] == pytest.approx(value), (name, measure)
        each.append(expected)
    for measure in each[0]:
        values = [of[measure] for of in each]
        assert result["metrics"][measure]["mean"] == pytest.approx(np.mean(values))
        assert result["metrics"][measure]["n"] == 2
    assert result["per_image"] == {"f1": [of["f1"] for of in each]}
    head, *rows = table
    assert head == ["set", "begin", "label", "score", "alarm"]
    assert len(rows) == 9
    assert rows[6] == ["elsewhere", "1.500000", -1, float(scores[6]), int(scores[6] > 1)]


def test_pictures_are_made_of_the_last_student():
    result, _, predicted = run(width=4)
    made = [
        finished.Tested({"title": title, "role": role, **result}, Sets(), predicted)
        for title, role in (("the large one", "teacher"), ("the small one", "student"), ("alone", "control"))
    ]
    (heading, html), *_ = TASK.pictures(made).items()
    assert heading == "Detection"
    for text in ("scores of the small one", "verdicts of the small one", "embeddings of the small one, 9 test graphs"):
        assert text in html
    assert html.count("<svg") == 4
    for width in (None, 1):
        embedding = {} if width is None else {"embedding": predicted["embedding"][:, :width]}
        narrow = [finished.Tested(one.row, one.dataset, {"score": predicted["score"], **embedding}) for one in made]
        assert TASK.pictures(narrow)["Detection"].count("<svg") == 3, "no plane of one number"
    for value in (0.1, np.nan):
        broken = {"score": predicted["score"], "embedding": np.full((9, 4), value, np.float32)}
        alike = [finished.Tested(row.row, row.dataset, broken) for row in made]
        assert TASK.pictures(alike)["Detection"].count("<svg") == 3, "no plane of equal points"
    assert TASK.words(Sets()) == {"group": "test set", "group_measures": ["auc"], "over": "2 test sets"}


def test_example_graphs_are_of_a_set_that_has_both_kinds():
    result, _, predicted = run()
    lone = Sets(test=np.array([0, 0, 0, 0, 0, 1, -1, 0, 1]))
    row = {"title": "x", "role": "other", **result}
    (html,) = alarms.graphs(finished.Tested(row, lone, predicted)).values()
    assert "elsewhere, normal" in html
    assert "elsewhere, attack" in html
    assert "here, normal" not in html.replace("elsewhere, normal", "")
    assert alarms.graphs(finished.Tested(row, Sets(test=np.zeros(9, int)), predicted)) == {}


IMAGES = Detection.of(Data("real_fake"), by="auc", threshold="accuracy", damages=["jpeg"])


@dataclasses.dataclass
class Faces(Sets):
    """Test images instead of graphs."""

    kinds: tuple[str, ...] = ("real", "fake")
    item: str = "image"
    picture: str = "image"

    def called(self, split):
        return "name", [f"{i}.png" for i in range(len(self.labels(split)))]

    def resized(self, split, i):
        return {"image": np.full((16, 16, 3), 100, np.uint8)}


def test_an_auc_is_that_of_all_validation_data():
    scores = np.array([0.1, 0.4, 0.35, 0.2, 2.0, -1.0, 0.3, 1.0], np.float32)
    found = IMAGES.gathered({"score": scores}, np.append(VAL[:-1], -1))
    assert found == {"auc": pytest.approx(metrics.roc_auc_score(VAL[:-1], scores[:-1]))}
    assert TASK.gathered({"score": scores}, VAL) == {}, "nobody asked"
    assert set(found) <= set(IMAGES.measures)
    for labels, said in ((np.zeros(8, int), "class 0 alone"), (np.full(8, -1), "no label at all")):
        with pytest.raises(ConfigError, match=f"have {said}, and an AUC needs both classes"):
            IMAGES.gathered({"score": scores}, labels)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"by": "dice"}, "by: no measure 'dice'"),
        ({"threshold": "quantile"}, "threshold: expected f1 or accuracy, found 'quantile'"),
        ({"damages": ("jpg",)}, "damages: no kind 'jpg'; did you mean 'jpeg'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        Detection.of(Data("real_fake"), **options)


def test_every_damage_that_may_be_asked_for_is_done():
    assert set(robustness.STRENGTHS) == set(DAMAGES)


def test_images_are_told_by_name_and_each_class_is_measured():
    rng = np.random.default_rng(1)
    scores = rng.normal(2 * np.maximum(Sets().test, 0)).astype(np.float32)
    result, (head, *rows) = alarms.tested(scores, Faces(), 1.0, "auc")
    assert list(result["metrics"])[:3] == ["auc", "accuracy", "average_precision"]
    here = result["per_class"]["here"]
    attack, alarm = Sets().test[:5] == 1, scores[:5] > 1
    assert here["fake_accuracy"]["mean"] == pytest.approx(alarm[attack].mean())
    assert here["real_accuracy"]["mean"] == pytest.approx(1 - alarm[~attack].mean())
    assert here["accuracy_at_half"]["mean"] == pytest.approx(np.mean((scores[:5] > 0) == attack))
    assert len(result["per_image"]["auc"]) == 8, "nobody knows what the ninth is"
    assert head == ["set", "name", "label", "score", "alarm"]
    assert rows[6][:2] == ["elsewhere", "6.png"]
    assert alarms.tested(np.full(9, 5.0), Faces(), 1.0, "auc")[0]["remark"] == "takes every test image for 'fake'"


def test_the_report_shows_where_a_model_looks_and_how_it_falls():
    scores = np.random.default_rng(1).normal(2 * np.maximum(Sets().test, 0)).astype(np.float32)
    predicted = {"score": scores, "patches": np.tile(scores[:, None, None], (1, 3, 3))}
    result, _ = alarms.tested(scores, Faces(), 1.0, "auc")
    falls = {"JPEG compression, quality": {"none": 0.9, "95": 0.8}}
    made = [
        finished.Tested({"title": title, "role": role, **result, "robustness": falls}, Faces(), predicted)
        for title, role in (("large", "teacher"), ("small", "student"), ("alone", "control"))
    ]
    sections = IMAGES.pictures(made)
    assert list(sections) == ["Detection", "Robustness", "Where they look"]
    assert "alone" in sections["Robustness"]
    shown = sections["Where they look"]
    assert shown.count('class="panels"') == 4, "a real and a fake one from each of two sets"
    assert "patches of large" in shown
    assert "patches of alone" not in shown
    assert "logit of a fake" in sections["Detection"]
    assert IMAGES.words(Faces())["over"] == "2 test sets, 8 test images"


def test_patches_of_a_large_map_are_few():
    logits = jax.random.normal(jax.random.key(0), (2, 40, 20, 1))
    found = IMAGES.predict({"logits": jnp.zeros((2, 1)), "patch_logits": logits, "features": jnp.ones((2, 5))}, {})
    assert found["patches"].shape == (2, 32, 20)
    assert found["embedding"].shape == (2, 5)
    assert found["score"].shape == (2,)
    np.testing.assert_allclose(found["patches"].mean(), logits.mean(), atol=0.02)
