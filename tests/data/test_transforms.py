import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage, stats
from scipy.spatial.transform import Rotation

from kdjax.config import MIXING, ConfigError
from kdjax.data.fields import Field
from kdjax.data.images import degrade
from kdjax.data.transforms import (
    ANGLE,
    CONTRAST,
    GAMMA,
    GRID,
    PATCH,
    QUALITY,
    SIGMA,
    TRANSFORMS,
    ZOOM,
    draw,
    faults,
    transform,
)

MOVES = ("hflip", "vflip", "rotate", "zoom", "gamma", "contrast")  # what scipy can redo
ALL = dict.fromkeys([name for name in TRANSFORMS if name not in MIXING], 0.8)


@functools.partial(jax.jit, static_argnums=2)
def jitted(key, batch, probabilities):
    return transform(key, batch, dict(probabilities))


def run(batch, key=0, **probabilities) -> dict[str, np.ndarray]:
    done = jitted(jax.random.key(key), batch, tuple(probabilities.items()))
    return {name: np.asarray(array) for name, array in done.items()}


def make(n: int = 6, h: int = 20, w: int = 26, seed: int = 0, **fields) -> dict:
    rng = np.random.default_rng(seed)
    image = np.stack([ndimage.gaussian_filter(rng.random((h, w, 3)), (1, 1, 0)) for _ in range(n)])
    return {
        "image": image.astype(np.float32),
        "mask": rng.integers(0, 4, (n, h, w)).astype(np.int32),
        "mask_known": np.ones(n, bool),
        "valid": np.ones(n, bool),
        "index": np.arange(n, dtype=np.int32),
        "view": np.zeros(n, np.int32),
        **fields,
    }


def classes(n: int = 6, k: int = 3, **fields) -> dict:
    label = np.arange(n, dtype=np.int32) % k
    target = (label[:, None] == np.arange(k)).astype(np.float32)
    known = np.ones(n, bool)
    return make(n, **{"class": label, "class_known": known, "target": target, "target_known": known, **fields})


def rows(batch: dict, chosen) -> dict:
    return {name: array[chosen] for name, array in batch.items()}


def drawn(i: int, key: int = 0, view: int = 0, **probabilities) -> dict[str, np.ndarray]:
    of_example = jax.random.fold_in(jax.random.fold_in(jax.random.key(key), view), i)
    return {name: np.float64(value) for name, value in draw(of_example, probabilities).items()}


def reference(image, mask, drawn):
    """The same in float64, by scipy: a matrix and an offset per image. Also where the nearest pixel is not in doubt."""
    h, w, _ = image.shape
    x = image.astype(np.float64) ** (1 / drawn["gamma"])
    x = np.clip((x - x.mean()) * drawn["contrast"] + x.mean(), 0, 1)
    turn = np.deg2rad(drawn["rotate"])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = rotation @ np.diag([drawn["vflip"], drawn["hflip"]]) / drawn["zoom"]
    centre = np.array([h - 1, w - 1]) / 2
    moved = rotation @ (drawn["place"] * np.array([h, w]) * (1 - 1 / drawn["zoom"]) / 2)
    offset = centre + moved - matrix @ centre
    planes = [ndimage.affine_transform(x[..., c], matrix, offset, order=1, mode="grid-constant") for c in range(3)]
    nearest = ndimage.affine_transform(mask, matrix, offset, order=0, mode="grid-constant")
    at = np.einsum("ij,jhw->ihw", matrix, np.indices((h, w))) + offset[:, None, None]
    clear = (np.abs(at % 1 - 0.5) > 1e-3).all(0)
    return np.stack(planes, -1), nearest, clear


@pytest.mark.parametrize("name", [*MOVES, "all"])
def test_agrees_with_scipy(name):
    batch = make()
    probabilities = dict.fromkeys(MOVES, 0.8) if name == "all" else {name: 1.0}
    done = run(batch, key=3, **probabilities)
    for i in range(len(batch["image"])):
        expected, nearest, clear = reference(batch["image"][i], batch["mask"][i], drawn(i, key=3, **probabilities))
        np.testing.assert_allclose(done["image"][i], expected, atol=2e-5)
        np.testing.assert_array_equal(done["mask"][i][clear], nearest[clear])
        assert clear.mean() > 0.9
    assert (done["image"] != batch["image"]).any()


def test_probability_zero_is_the_identity():
    batch = make()
    for probabilities in ({}, dict.fromkeys(ALL, 0.0), dict.fromkeys(ALL, 1e-9)):
        done = run(batch, **probabilities)
        np.testing.assert_array_equal(done["mask"], batch["mask"])
        np.testing.assert_allclose(done["image"], batch["image"], atol=1e-7)


def test_nothing_is_looked_up_without_a_geometric_transform():
    arguments = (jax.random.key(0), make())
    assert "gather" in jitted.lower(*arguments, (("rotate", 0.5),)).as_text()
    assert "gather" not in jitted.lower(*arguments, (("gamma", 0.5), ("rotate", 0.0), ("erase", 0.5))).as_text()


def test_flips_are_exact():
    batch = make()
    for name, flip in (("hflip", np.s_[:, :, ::-1]), ("vflip", np.s_[:, ::-1])):
        done = run(batch, **{name: 1.0})
        np.testing.assert_array_equal(done["image"], batch["image"][flip])
        np.testing.assert_array_equal(done["mask"], batch["mask"][flip])


def test_crop_is_padding_and_cutting_back():
    n = 40
    batch = make(n, h=16, w=24)
    done = run(batch, crop=1.0)
    shifts = set()
    for i in range(n):
        at = np.array([2, 3]) + np.round(drawn(i, crop=1.0)["crop"] * [2, 3]).astype(int)
        shifts.add(tuple(at.tolist()))
        for name, margin in (("image", ((2, 2), (3, 3), (0, 0))), ("mask", ((2, 2), (3, 3)))):
            padded = np.pad(batch[name][i], margin)
            np.testing.assert_array_equal(done[name][i], padded[at[0] : at[0] + 16, at[1] : at[1] + 24])
    assert len(shifts) > 15
    assert {0, 4} <= {y for y, _ in shifts}


def test_erase_fills_a_rectangle_with_the_mean():
    n, h, w = 60, 40, 48
    batch = make(n, h=h, w=w)
    done = run(batch, erase=1.0)
    np.testing.assert_array_equal(done["mask"], batch["mask"])
    areas = []
    for before, after in zip(batch["image"], done["image"], strict=True):
        changed = (before != after).any(-1)
        y, x = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed[y[0] : y[-1] + 1, x[0] : x[-1] + 1].all()
        mean = np.broadcast_to(before.mean((0, 1), dtype=np.float64), after[changed].shape)
        np.testing.assert_allclose(after[changed], mean, atol=1e-6)
        areas.append(changed.mean())
    assert 0.015 < min(areas) < 0.04
    assert 0.16 < max(areas) < 0.225


def test_jpeg_and_blur_are_those_of_the_drawn_numbers():
    batch = make()
    blurred, coded = jax.jit(degrade.blur), jax.jit(degrade.jpeg)
    done = run(batch, blur=0.6, jpeg=0.6)
    seen = set()
    for i in range(len(batch["image"])):
        numbers = drawn(i, blur=0.6, jpeg=0.6)
        image = blurred(batch["image"][i], jnp.float32(numbers["blur"]))
        image = coded(image, jnp.float32(numbers["jpeg"])) if numbers["jpeg"] else image
        np.testing.assert_allclose(done["image"][i], image, atol=1e-6)
        seen.add((numbers["blur"] > 0, numbers["jpeg"] > 0))
    assert len(seen) > 2
    np.testing.assert_array_equal(done["mask"], batch["mask"])


def test_colours_turn_about_the_grey_axis_and_keep_their_luminance():
    batch = make()
    batch["image"] = 0.4 + 0.2 * batch["image"]  # nothing is cut off at 0 or 1
    done, luminance = run(batch, colour=0.7), np.array([0.299, 0.587, 0.114])
    changed = 0
    for i, image in enumerate(batch["image"].astype(np.float64)):
        numbers = drawn(i, colour=0.7)
        turned = image @ Rotation.from_rotvec(numbers["hue"] * np.ones(3) / np.sqrt(3)).as_matrix().T
        grey = (image @ luminance)[..., None]
        expected = grey + numbers["saturation"] * (turned - (turned @ luminance)[..., None])
        np.testing.assert_allclose(done["image"][i], expected if numbers["hue"] else image, atol=1e-6)
        changed += numbers["hue"] != 0
    assert 0 < changed < len(batch["image"])


def test_a_view_recurs_bit_for_bit_in_another_batch_and_place():
    views = {"index": np.array([5, 17, 3, 900, 4, 8, 1, 0], np.int32), "view": np.arange(8, dtype=np.int32) % 3}
    batch = make(8, **views)
    done = run(batch, **ALL)
    order = np.array([6, 2, 7, 1, 0, 3, 5, 4])
    again = run(rows(batch, order), **ALL)
    for name in ("image", "mask"):
        np.testing.assert_array_equal(again[name], done[name][order])
    others = make(8, seed=1) | {"index": np.array([6, 2, 7, 1, 9, 4, 5, 4], np.int32)}
    others = {name: np.concatenate([batch[name][2:4], others[name][2:]]) for name in others}
    np.testing.assert_array_equal(run(others, **ALL)["image"][:2], done["image"][2:4])


def test_another_view_index_or_key_differs():
    one = rows(make(1), np.zeros(8, int))  # eight rows of one example
    first = run(one, **ALL)["image"]
    assert (first == first[:1]).all()
    same_index = run(one | {"view": np.arange(8, dtype=np.int32)}, **ALL)["image"]
    np.testing.assert_array_equal(same_index[0], first[0])
    other_index = run(one | {"index": np.arange(8, dtype=np.int32)}, **ALL)["image"]
    other_key = np.stack([run(one, key=k, **ALL)["image"][0] for k in range(4)])
    for images in (same_index, other_index, other_key):
        flat = images.reshape(len(images), -1)
        away = np.abs(flat[:, None] - flat[None]).max(-1)
        assert (away[~np.eye(len(flat), dtype=bool)] > 0.01).all()


def test_padding_stays_black():
    batch = make(6, valid=np.arange(6) < 4, index=np.where(np.arange(6) < 4, np.arange(6), -1).astype(np.int32))
    batch["image"][4:] = 0
    done = run(batch, **ALL)
    assert not done["image"][4:].any()
    assert done["image"][:4].any((1, 2, 3)).all()


def test_all_images_and_masks_move_alike():
    batch = make()
    batch |= {"image_2": batch["image"][..., ::-1].copy(), "mask_2": batch["mask"] + 1}
    done = run(batch, rotate=1.0, hflip=0.5, crop=0.5)
    np.testing.assert_array_equal(done["image_2"], done["image"][..., ::-1])
    inside = done["mask_2"] > 0
    np.testing.assert_array_equal(done["mask_2"][inside], done["mask"][inside] + 1)
    fields = {"image": Field((20, 26, 3), "uint8", "image"), "image_2": Field((20, 26, 3), "float32", "array")}
    declared = transform(jax.random.key(0), jax.tree.map(jnp.asarray, batch), {"hflip": 1.0}, fields)
    np.testing.assert_array_equal(declared["image_2"], batch["image_2"])
    np.testing.assert_array_equal(declared["image"], batch["image"][:, :, ::-1])


def test_a_sharded_batch_stays_where_it_is():
    batch = make(16)
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    placed = jax.device_put(batch, sharding)
    smooth = {name: chance for name, chance in ALL.items() if name != "jpeg"}  # which makes levels of a last bit
    for probabilities in ({"jpeg": 0.8}, smooth):
        step = jax.jit(functools.partial(transform, probabilities=probabilities), out_shardings=sharding)
        program = step.lower(jax.random.key(0), placed).compile()
        assert not re.search(r"all-|collective-", program.as_text())
    done, alone = program(jax.random.key(0), placed), run(batch, **smooth)
    # two programs round coordinates up to 26 differently: 26 * 2^-23, times a slope below 1, and the same again
    np.testing.assert_allclose(done["image"], alone["image"], atol=6.2e-6)
    np.testing.assert_array_equal(done["mask"], alone["mask"])


def test_mask_and_image_move_together():
    y, x = np.mgrid[0:64, 0:64]
    blobs = np.stack([((y - 20 - 2 * i) ** 2 / 90 + (x - 36 + i) ** 2 / 200 < 1) for i in range(12)])
    batch = make(12) | {"image": np.repeat(blobs[..., None], 3, -1).astype(np.float32), "mask": blobs.astype(np.int32)}
    done = run(batch, **{k: 1.0 for k in ("rotate", "zoom", "hflip", "crop")})
    for seen, mask in zip(done["image"][..., 0] > 0.5, done["mask"] > 0, strict=True):
        assert mask.sum() > 100
        assert 2 * (seen & mask).sum() / (seen.sum() + mask.sum()) > 0.985
    assert (done["mask"] != blobs).any((1, 2)).all()


def test_values_stay_images():
    rng = np.random.default_rng(0)
    batch = classes(40, h=12, w=12, mask=rng.integers(0, 5, (40, 12, 12)).astype(np.int32))
    batch["image"] = rng.choice([0.0, 1.0, 0.5], (40, 12, 12, 3)).astype(np.float32)
    batch["image"][0], batch["image"][1] = 0, 1
    done = run(batch, **dict.fromkeys(ALL, 1.0), mixup=0.5, cutmix=0.5)
    for name in ("image", "clean_image"):
        assert np.isfinite(done[name]).all()
        assert done[name].min() >= 0
        assert done[name].max() <= 1 + 1e-6
    assert set(np.unique(done["mask"])) <= set(range(5))
    assert done["mask"].dtype == np.int32
    np.testing.assert_allclose(done["target"].sum(-1), 1, atol=1e-6)


def test_draws_have_the_probability_and_the_range():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(4000))
    chances = {**dict.fromkeys(TRANSFORMS, 1.0), "hflip": 0.3, "rotate": 0.6, "mixup": 0.2, "cutmix": 0.5, "erase": 0.4}
    draws = jax.vmap(lambda key: draw(key, chances))(keys)
    draws = {k: np.asarray(v) for k, v in draws.items()}
    for name, happened in (
        ("hflip", draws["hflip"] < 0),
        ("rotate", draws["rotate"] != 0),
        ("mixup", draws["mixup"] < 1),
        ("cutmix", draws["cutmix"] < 1),
        ("erase", draws["erase"][:, 2] > 0),
    ):
        assert np.mean(happened) == pytest.approx(chances[name], abs=0.03)
    assert not ((draws["mixup"] < 1) & (draws["cutmix"] < 1)).any()
    assert np.quantile(draws["mixup"][draws["mixup"] < 1], [0.25, 0.5, 0.75]) == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.06
    )
    ranges = {
        "gamma": GAMMA,
        "contrast": CONTRAST,
        "zoom": ZOOM,
        "blur": SIGMA,
        "jpeg": QUALITY,
        "rotate": (-ANGLE, ANGLE),
    }
    for name, (low, high) in ranges.items():
        values = draws[name]
        assert low <= values.min() < low + 0.02 * (high - low)
        assert high - 0.02 * (high - low) < values.max() <= high
    assert np.abs(np.corrcoef(draws["zoom"], draws["gamma"])[0, 1]) < 0.06


# -- mixing ----------------------------------------------------------------------------------------------------------


def test_mixup_is_a_weighted_mean_with_the_next_example():
    batch = classes(6)
    done = run(batch, mixup=1.0)
    np.testing.assert_array_equal(done["clean_image"], batch["image"])
    again = run(batch | {"clean_image": batch["image"]}, mixup=1.0)  # as where a batch is made of declared shapes
    assert set(again) == set(done)
    for i in range(6):
        share, partner = drawn(i, mixup=1.0)["mixup"], (i + 1) % 6
        assert 0 <= share < 1
        image = share * batch["image"][i].astype(np.float64) + (1 - share) * batch["image"][partner]
        np.testing.assert_allclose(done["image"][i], image, atol=1e-6)
        target = np.zeros(3)
        target[i % 3] += share
        target[partner % 3] += 1 - share
        np.testing.assert_allclose(done["target"][i], target, atol=1e-6)
    assert done["target_known"].all()
    assert not done["mask_known"].any()
    np.testing.assert_array_equal(done["class"], batch["class"])


def test_cutmix_pastes_a_rectangle_and_weighs_by_its_pixels():
    n, h, w = 30, 20, 26
    batch = classes(n)
    done = run(batch, cutmix=1.0)
    for i in range(n):
        partner = (i + 1) % n
        pasted = (done["image"][i] == batch["image"][partner]).all(-1)
        np.testing.assert_array_equal(done["image"][i][~pasted], batch["image"][i][~pasted])
        np.testing.assert_array_equal(done["mask"][i], np.where(pasted, batch["mask"][partner], batch["mask"][i]))
        y, x = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        if len(y):
            assert pasted[y[0] : y[-1] + 1, x[0] : x[-1] + 1].all()
        assert pasted.mean() == pytest.approx(1 - drawn(i, cutmix=1.0)["cutmix"], abs=1 / h + 1 / w)
        expected = (1 - pasted.mean()) * batch["target"][i] + pasted.mean() * batch["target"][partner]
        np.testing.assert_allclose(done["target"][i], expected, atol=1e-6)
    assert done["mask_known"].all()


@pytest.mark.parametrize("side", [pytest.param(28, marks=pytest.mark.long), 33])
def test_patches_are_pasted_whole_and_weigh_by_their_pixels(side):
    """Of a grid that the sides are multiples of, and of one that they are not."""
    n = 24
    batch = classes(
        n, k=4, h=side, w=2 * side, mask=np.zeros((n, side, 2 * side), np.int32) + np.arange(n)[:, None, None]
    )
    done = run(batch, tokenmix=0.4, mixtoken=0.4, patchmix=0.2)
    seen = {name: [] for name in MIXING}
    cells = [np.floor((np.arange(length) + 0.5) * GRID / length).astype(int) for length in (side, 2 * side)]
    cells = cells[0][:, None] * GRID + cells[1][None]
    for i in range(n):
        partner, numbers = (i + 1) % n, drawn(i, tokenmix=0.4, mixtoken=0.4, patchmix=0.2)
        (how,) = [name for name in MIXING if numbers[name] < 1]
        pasted = done["mask"][i] == partner
        np.testing.assert_array_equal(done["mask"][i][~pasted], i)
        np.testing.assert_array_equal(done["image"][i], np.where(pasted[..., None], *batch["image"][[partner, i]]))
        expected = (1 - pasted.mean()) * batch["target"][i] + pasted.mean() * batch["target"][partner]
        np.testing.assert_allclose(done["target"][i], expected, atol=1e-6)
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        if how == "patchmix":
            assert (len(rows), len(columns), pasted.sum()) == (PATCH, PATCH, PATCH**2)
            assert (rows[0] % PATCH, columns[0] % PATCH) == (0, 0)
        else:
            taken = {cell: pasted[cells == cell] for cell in np.unique(cells)}
            assert all(part.all() or not part.any() for part in taken.values()), "a patch is not cut"
            share = sum(part.all() for part in taken.values()) / GRID**2
            assert share == pytest.approx(1 - numbers[how], abs=2 / GRID if how == "mixtoken" else 5 * 0.5 / GRID)
            if how == "mixtoken" and len(rows):
                assert pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
                assert pasted.sum() == len(rows) * len(columns)
            seen["blocks"] = [*seen.get("blocks", []), how == "tokenmix" and not pasted[rows[0] :, columns[0] :].all()]
        seen[how].append(pasted.mean())
    assert all(seen[name] for name in ("tokenmix", "mixtoken", "patchmix"))
    assert any(seen["blocks"]), "patches of tokenmix lie apart"


@pytest.mark.long
def test_shares_follow_their_distribution():
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(2000))
    quantiles = np.linspace(0.1, 0.9, 9)
    for alpha in (0.2, 1.0, 4.0):
        shares = jax.jit(jax.vmap(lambda key, alpha=alpha: draw(key, {"mixup": 1.0}, alpha)["mixup"]))(keys)
        np.testing.assert_allclose(np.quantile(shares, quantiles), stats.beta(alpha, alpha).ppf(quantiles), atol=0.06)


def test_mixing_needs_both_examples_and_a_target_both_classes():
    known, valid = np.array([True, True, False, True, True, True]), np.array([True] * 4 + [False, False])
    batch = classes(6, valid=valid, class_known=known & valid, target_known=known & valid, mask_known=known)
    batch["target"] *= batch["target_known"][:, None]
    done = run(batch, mixup=0.5, cutmix=0.5)
    mixed = np.array([True, True, True, False, False, False])  # the last valid one meets padding, and that padding
    np.testing.assert_array_equal((done["image"] != done["clean_image"]).any((1, 2, 3)), mixed)
    np.testing.assert_array_equal(done["target_known"], [True, False, False, True, False, False])
    np.testing.assert_array_equal(done["target"][3], batch["target"][3])
    assert not done["image"][4:].any()


# -- what cannot work ------------------------------------------------------------------------------------------------

IMAGE, CLASS = Field((8, 8, 3), "uint8", "image"), Field((), "int32", "class")


@pytest.mark.parametrize(
    ("probabilities", "fields", "sentence"),
    [
        ({"hflp": 0.5}, {"image": IMAGE}, "augment: no transform 'hflp'; did you mean 'hflip'"),
        ({"zoom": 1.5}, {"image": IMAGE}, "augment.zoom: expected a probability in [0, 1], found 1.5"),
        ({"hflip": 0.5}, {"class": CLASS}, "augment: hflip change images, and this data has none; leave augment empty"),
        ({"mixup": 0.5}, {"image": IMAGE}, "augment: mixup mix classes, and this data has no 'class'"),
        (
            {"mixup": 0.7, "cutmix": 0.7},
            {"image": IMAGE, "class": CLASS},
            "mixup, cutmix that sum to at most 1, found 1.4",
        ),
    ],
)
def test_faults_are_sentences(probabilities, fields, sentence):
    (line,) = faults(probabilities, fields)
    assert sentence in line


def test_what_can_work_has_no_faults():
    assert faults({name: 0.2 for name in TRANSFORMS}, {"image": IMAGE, "class": CLASS}) == []
    assert faults({}, {"class": CLASS}) == faults({"hflip": 0.0}, {"class": CLASS}) == []
    with pytest.raises(ConfigError, match="no transform 'hflp'"):
        run(make(1), hflp=0.5)
