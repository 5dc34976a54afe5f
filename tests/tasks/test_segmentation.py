import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Data
from kdjax.tasks import task as tasks
from kdjax.tasks.segmentation import Segmentation, classes, ranks


def task(num_classes=2):
    return Segmentation.of(Data("ultrasound", num_classes=num_classes))


def inputs(k, seed=0, n=5, side=6):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, side, side, k)).astype(np.float32)
    mask = rng.integers(0, max(2, k), (n, side, side)).astype(np.int32)
    return {"logits": jnp.asarray(logits)}, {
        "mask": jnp.asarray(mask),
        "mask_known": jnp.ones(n, bool),
        "valid": jnp.ones(n, bool),
    }


def dice_by_hand(predicted, mask, num_classes):
    each = []
    for p, t in zip(predicted, mask, strict=True):
        values = []
        for c in range(1, num_classes):
            both, either = ((p == c) & (t == c)).sum(), (p == c).sum() + (t == c).sum()
            values.append(2 * both / either if either else 1.0)
        each.append(np.mean(values))
    return np.array(each)


@pytest.mark.parametrize("num_classes", [2, 4])
def test_dice_is_the_mean_over_images_and_foreground_classes(num_classes):
    outputs, batch = inputs(1 if num_classes == 2 else num_classes)
    outputs["logits"] = (
        outputs["logits"]
        .at[0]
        .set(
            jnp.where(jnp.arange(outputs["logits"].shape[-1]) == 0, -1.0 if num_classes == 2 else 1.0, -1.0)[None, None]
        )
    )
    batch["mask"] = batch["mask"].at[0].set(0)  # empty on both sides
    batch["valid"] = batch["valid"].at[4].set(False)
    batch["mask_known"] = batch["mask_known"].at[3].set(False)
    z = np.asarray(outputs["logits"])
    predicted = (z[..., 0] > 0).astype(int) if num_classes == 2 else z.argmax(-1)
    expected = dice_by_hand(predicted, np.asarray(batch["mask"]), num_classes)
    assert expected[0] == 1
    total, count = task(num_classes).measure(outputs, batch)["dice"]
    assert float(total) == pytest.approx(expected[:3].sum(), rel=1e-6)
    assert float(count) == 3
    np.testing.assert_array_equal(task(num_classes).predict(outputs, batch)["classes"], predicted)


def test_logits_that_are_not_finite_do_not_pass_for_an_empty_mask():
    outputs, batch = inputs(1)
    for value in (np.nan, np.inf):
        broken = {"logits": outputs["logits"].at[1, 2, 3, 0].set(value)}
        total, _ = task().measure(broken, batch)["dice"]
        assert np.isnan(total)
        total, _ = task().measure(broken, {**batch, "valid": batch["valid"].at[1].set(False)})["dice"]
        assert np.isfinite(total), "but padding may be anything"


def test_smaller_logits_are_resized_before_they_are_judged():
    logits = jnp.asarray([[[-1.0, 3.0], [-1.0, 3.0]]])[..., None]
    found = classes(logits, (2, 4))  # bilinear: -1, 0, 2, 3
    np.testing.assert_array_equal(found[0], [[0, 0, 1, 1]] * 2)


@pytest.mark.parametrize(("num_classes", "loss"), [(2, "bce"), (3, "ce")])
def test_supervised_terms_fit_the_classes(num_classes, loss):
    terms = task(num_classes).terms()
    assert list(terms) == [loss, "dice"]
    assert all(t.label == "mask" and not t.teacher for t in terms.values())


def test_options_of_the_supervised_terms():
    terms = Segmentation.of(Data("ultrasound", num_classes=3), weight=0.1, smooth=1.0, balanced=True).terms()
    assert [term.weight for term in terms.values()] == [0.1, 0.1]
    assert terms["dice"].args == {"smooth": 1.0}
    assert terms["ce"].args == {"class_weights": None}, "which the data fill in"
    with pytest.raises(ConfigError, match="segmentation has no option 'wieght'; did you mean 'weight'"):
        Segmentation.of(Data("ultrasound"), wieght=0.1)


@pytest.mark.parametrize("outputs", [{}, {"logits": np.zeros((2, 4, 4, 3))}, {"logits": np.zeros((2, 1))}])
def test_a_model_without_the_right_logits_is_refused(outputs):
    with pytest.raises(
        ConfigError, match=r"segmentation of 2 classes needs 'logits' \[b, h, w, 1\].*set num_classes=2"
    ):
        task().check(outputs)


def test_scores_agree_with_the_measure():
    outputs, batch = inputs(1)
    predicted = task().predict(outputs, batch)
    masks = types.SimpleNamespace(resized=lambda _, i: {"name": f"image {i}", "mask": np.asarray(batch["mask"][i])})
    result, table = task().test(lambda _: jax.device_get(predicted), masks, {})
    total, count = task().measure(outputs, batch)["dice"]
    assert result["metrics"]["dice"]["mean"] == pytest.approx(float(total / count), rel=1e-6)
    assert table[0][:3] == ["image", "class", "dice"]
    assert [line[0] for line in table[1:]] == [f"image {i}" for i in range(len(predicted["classes"]))]


@pytest.mark.parametrize("masked", [(0, 2), ()])
def test_images_without_a_mask_are_not_scored(masked):
    """Of a reader of one's own: the other images count as if they were alone."""
    outputs, batch = inputs(1)
    predicted = jax.device_get(task().predict(outputs, batch))

    def resized(split, i):
        image = np.zeros((*batch["mask"].shape[1:], 3), np.uint8)
        return {"name": str(i), "image": image} | ({"mask": np.asarray(batch["mask"][i])} if i in masked else {})

    data = Data("ultrasound")
    dataset = types.SimpleNamespace(resized=resized, data=data, mask_classes=())
    result, table = task().test(lambda _: predicted, dataset, {})
    assert result["test_images"] == result["metrics"]["dice"]["n"] == len(masked)
    assert np.isfinite(result["per_image"]["dice"]).tolist() == [i in masked for i in range(len(predicted["classes"]))]
    assert {line[0] for line in table[1:]} == {str(i) for i in masked}
    assert ("none has a mask" in result.get("remark", "")) == (not masked)
    row = {"stage": "a", "role": "student", "title": "a", **result}
    assert bool(task().pictures([tasks.Tested(row, dataset, predicted)])) == bool(masked)


def test_sketches_lay_prediction_and_truth_over_the_first_images():
    mask = np.zeros((16, 16), np.int32)
    mask[2:9, 2:9] = 1
    examples = [{"image": np.full((16, 16, 3), 99, np.uint8), "mask": mask, "name": str(i)} for i in range(5)]
    examples[1].pop("mask")  # its label is withheld
    dataset = types.SimpleNamespace(sizes={"val": 5}, resized=lambda split, i: examples[i])
    shown = task().sketches({"classes": np.stack([np.roll(mask, 4, 1)] * 5).astype(np.uint8)}, dataset, "val")
    assert list(shown) == ["image_0", "image_1", "image_2"]
    assert all(image.dtype == np.uint8 and image.shape == (16, 16, 3) for image in shown.values())
    assert (shown["image_0"] != shown["image_1"]).any()
    assert {tuple(colour) for colour in shown["image_0"].reshape(-1, 3)} > {(240, 228, 66), (99, 99, 99)}


def test_no_picture_has_two_ranks():
    values = [0.1, 0.2, 0.5, 0.6, 0.9]
    for n, expected in ((5, ([4], [2], [0])), (2, ([1], [], [0])), (3, ([2], [1], [0]))):
        found = ranks(np.arange(n), values[:n])
        assert (found["best"], found["median"], found["worst"]) == expected
    found = ranks(np.arange(100), [i / 100 for i in range(100)])
    assert found == {"best": [99, 98], "median": [50, 51], "worst": [0, 1]}
    assert ranks(np.arange(4), [0.0] * 4) == {"all alike": [0, 1]}
