import hashlib
import os
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from kdjax.weights import safetensors as weights

WeightsError = weights.WeightsError


def variables():
    rng = np.random.default_rng(0)
    return {
        "params": {
            "encoder": {"kernel": rng.normal(size=(3, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)},
            "head": {"kernel": jnp.ones((4, 2), jnp.bfloat16), "bias": np.float16([1, 2])},
        },
        "batch_stats": {"bn": {"mean": np.arange(4, dtype=np.float32), "count": np.int32(7)}},
    }


def same(a, b):
    def check(x, y):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())

    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(check, a, b)


def test_round_trip(tmp_path):
    path = tmp_path / "model.safetensors"
    made = variables()
    made["params"]["turned"] = {"kernel": np.arange(6.0).reshape(2, 3).T, "none": np.zeros((0, 2), np.float32)}
    weights.save(path, made, {"stage": "teacher"})
    found, metadata = weights.load(path)
    same(found, made)
    assert metadata == {"stage": "teacher"}
    assert os.listdir(tmp_path) == ["model.safetensors"]
    keys = safetensors.numpy.load_file(path).keys()  # as other programs see it
    assert {"params/encoder/kernel", "batch_stats/bn/count"} <= set(keys)
    weights.save(path, {"params": {"w": np.zeros(1)}})
    assert weights.load(path)[1] == {}


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """The system refuses to write on after some bytes, as it does where no space is left."""
    path = tmp_path / "model.safetensors"
    weights.save(path, variables())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(WeightsError, match=r"writing 400,128 bytes failed .*make room"):
            weights.save(path, {"params": {"w": np.zeros(100_000, np.float32)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(WeightsError, match=r"there is no folder .*missing; create it first"):
        weights.save(tmp_path / "missing" / "model.safetensors", variables())


def test_what_is_in_the_way_stays_and_nothing_is_left_beside_it(tmp_path):
    (tmp_path / "model.safetensors" / "inner").mkdir(parents=True)
    with pytest.raises(WeightsError, match=r"model.safetensors: writing .* failed"):
        weights.save(tmp_path / "model.safetensors", variables())
    assert os.listdir(tmp_path) == ["model.safetensors"]


def damaged(path):
    weights.save(path, variables())
    whole = path.read_bytes()
    return {
        "empty": b"",
        "short": whole[:4],
        "header cut": whole[:60],
        "tail cut": whole[:-3],
        "longer": whole + b"\0",
        "a pickle": b"\x80\x02}q\x00X\x05\x00\x00\x00modelq\x01K\x01s." * 9,
        "a zip": b"PK\x03\x04" + bytes(200),
        "text": b"<html>sign in to download</html>" * 20,
    }


@pytest.mark.parametrize("kind", ["empty", "short", "header cut", "tail cut", "longer", "a pickle", "a zip", "text"])
def test_a_damaged_file_is_one_line_of_advice(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(damaged(path)[kind])
    with pytest.raises(WeightsError) as error:
        weights.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert "again" in str(error.value)


@pytest.mark.parametrize("name", ["missing.safetensors", ""])
def test_no_file(tmp_path, name):
    with pytest.raises(WeightsError, match="no such file of weights"):
        weights.load(tmp_path / name)


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype), tree)


def test_overlay_fills_every_leaf_in_the_dtype_of_the_target():
    source = variables()
    same(weights.overlay(abstract(source), source), jax.tree.map(np.asarray, source))
    half = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16) if np.asarray(x).dtype == np.float32 else x, source)
    found = weights.overlay(abstract(source), half)
    assert found["params"]["encoder"]["kernel"].dtype == np.float32
    np.testing.assert_array_equal(
        found["params"]["encoder"]["kernel"], np.asarray(half["params"]["encoder"]["kernel"], np.float32)
    )


def test_overlay_reports_everything_wrong_at_once():
    source, target = variables(), abstract(variables())
    source["params"]["encodr"] = source["params"].pop("encoder")
    source["params"]["head"]["kernel"] = np.ones((4, 3), np.float32)
    source["batch_stats"]["bn"]["count"] = np.float32(7)
    with pytest.raises(WeightsError) as error:
        weights.overlay(target, source, skip=(r"params/tail/.*",))
    lines = str(error.value).splitlines()[1:]
    expected = [
        "unfilled: params/encoder/bias float32[4]; perhaps params/encodr/bias",
        "unfilled: params/encoder/kernel float32[3, 4]; perhaps params/encodr/kernel",
        "unused: params/encodr/bias float32[4]; perhaps params/encoder/bias",
        "unused: params/encodr/kernel float32[3, 4]; perhaps params/encoder/kernel",
        "dtype of batch_stats/bn/count: expected int32, found float32",
        "shape of params/head/kernel: expected (4, 2), found (4, 3)",
        "skip 'params/tail/.*' matches nothing",
    ]
    assert [line.strip() for line in lines] == expected


def test_overlay_keeps_what_is_skipped():
    target, source = jax.tree.map(lambda x: np.zeros_like(x), variables()), variables()
    source["params"]["head"]["kernel"] = np.ones((4, 3), np.float32)
    source["params"]["head"]["extra"] = np.ones(1)
    found = weights.overlay(target, source, skip=(r"params/head/.*",))
    same(found["params"]["head"], target["params"]["head"])
    same(found["params"]["encoder"], source["params"]["encoder"])


def test_check_needs_shapes_alone():
    target, source = abstract(variables()), abstract(variables())
    weights.check(target, source)
    source["params"]["head"]["kernel"] = jax.ShapeDtypeStruct((4, 3), jnp.bfloat16)
    weights.check(target, source, skip=(r"params/head/kernel",))
    with pytest.raises(WeightsError, match=r"shape of params/head/kernel: expected \(4, 2\), found \(4, 3\)"):
        weights.check(target, source)


def test_fingerprint_is_of_the_contents_alone(tmp_path):
    made = variables()
    first = weights.fingerprint(made)
    weights.save(tmp_path / "a.safetensors", made)
    assert weights.fingerprint(weights.load(tmp_path / "a.safetensors")[0]) == first
    reordered = {key: dict(reversed(made[key].items())) for key in reversed(made)}
    assert weights.fingerprint(reordered) == first
    assert weights.fingerprint(jax.tree.map(jnp.asarray, made)) == first
    made["params"]["encoder"]["kernel"] = np.asfortranarray(made["params"]["encoder"]["kernel"])
    assert weights.fingerprint(made) == first


def test_fingerprint_stays_as_it_is():
    """A checkpoint of today is compared with a teacher of tomorrow."""
    by_hand = hashlib.sha256(b"params/w float32 (3,)\n" + np.array([0, 1, 2], "<f4").tobytes()).hexdigest()
    assert weights.fingerprint({"params": {"w": np.arange(3, dtype=np.float32)}}) == by_hand


@pytest.mark.parametrize("change", ["value", "name", "dtype", "shape", "gone"])
def test_fingerprint_tells_every_change(change):
    first, made = weights.fingerprint(variables()), variables()
    encoder = made["params"]["encoder"]
    if change == "value":
        encoder["kernel"] = encoder["kernel"].copy()
        encoder["kernel"][2, 3] = np.nextafter(encoder["kernel"][2, 3], np.float32(9))
    elif change == "name":
        encoder["gamma"] = encoder.pop("kernel")
    elif change == "dtype":
        encoder["bias"] = encoder["bias"].view(np.int32)
    elif change == "shape":
        encoder["kernel"] = encoder["kernel"].reshape(4, 3)
    else:
        del encoder["bias"]
    assert weights.fingerprint(made) != first
