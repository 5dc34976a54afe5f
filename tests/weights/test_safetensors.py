import hashlib
import json
import os
import resource
import weakref
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from kdjax import config
from kdjax.train import sharding
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


class Lazy:
    """A leaf that is made when it is read; `alive` is how many of them are in memory."""

    alive: list[weakref.ref] = []

    def __init__(self, array, shape=None, dtype=None):
        self.array, self.shape, self.dtype = array, shape or array.shape, np.dtype(dtype or array.dtype)

    def read(self):
        assert not [ref for ref in self.alive if ref() is not None], "the leaf before is still in memory"
        made = self.array.copy()
        self.alive.append(weakref.ref(made))
        return made


def test_lazy_leaves_are_written_one_at_a_time(tmp_path):
    arrays = {f"w{i}": np.full((3, i + 1), i, np.float32) for i in range(5)}
    weights.save(tmp_path / "a.safetensors", {"params": {k: Lazy(a) for k, a in arrays.items()}})
    weights.save(tmp_path / "b.safetensors", {"params": arrays})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize("wrong", [{"shape": (2, 3)}, {"dtype": np.float16}])
def test_a_leaf_that_is_not_as_announced(tmp_path, wrong):
    with pytest.raises(WeightsError, match=r"params/w: announced as .*, read as float32\[3, 2\]"):
        weights.save(tmp_path / "a.safetensors", {"params": {"w": Lazy(np.ones((3, 2), np.float32), **wrong)}})
    assert not os.listdir(tmp_path)


def test_a_leaf_that_cannot_be_read_leaves_nothing(tmp_path):
    class Broken(Lazy):
        def read(self):
            raise WeightsError("broken")

    with pytest.raises(WeightsError, match="broken"):
        weights.save(tmp_path / "a.safetensors", {"params": {"a": np.ones(9), "b": Broken(np.ones(3))}})
    assert not os.listdir(tmp_path)


def test_room_is_looked_for_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(weights.shutil, "disk_usage", lambda path: usage(9999, 8999, 1000))
    leaf = Lazy(np.ones(400))
    monkeypatch.setattr(leaf, "read", lambda: pytest.fail("read, though there is no room"), raising=False)
    with pytest.raises(WeightsError, match=r"needs 3,\d\d\d bytes and 1,000 are free; make room"):
        weights.save(tmp_path / "a.safetensors", {"params": {"w": leaf}})
    weights.save(tmp_path / "b.safetensors", {"params": {"w": np.ones(4)}})
    assert os.listdir(tmp_path) == ["b.safetensors"]


@pytest.mark.parametrize(
    ("leaves", "name"),
    [
        ({"w": np.array(["text"])}, "w <U4"),
        ({"w": np.zeros(2, np.complex128)}, "complex"),
        ({"__metadata__": 1}, "__m"),
    ],
)
def test_what_the_format_does_not_have(tmp_path, leaves, name):
    with pytest.raises(WeightsError, match=rf"cannot hold .*{name}"):
        weights.save(tmp_path / "a.safetensors", leaves)
    assert not os.listdir(tmp_path)


DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES += ("float16", "bfloat16", "float32", "float64")


def test_the_library_and_ours_read_each_other(tmp_path):
    made = {name: np.arange(6).reshape(2, 3).astype(jnp.dtype(name)) for name in DTYPES}
    made |= {f"{name}_0d": array[1, 2] for name, array in made.items()}
    made |= {"big": np.arange(3, dtype=">f4"), "turned": np.arange(6.0).reshape(2, 3).T, "ü/ö": np.zeros((0, 2), "f2")}
    weights.save(tmp_path / "ours.safetensors", made, {"a": "ü"})
    plain = {name: np.asarray(array, np.asarray(array).dtype.newbyteorder("=")) for name, array in made.items()}
    plain = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in plain.items()}
    same(safetensors.numpy.load_file(tmp_path / "ours.safetensors"), plain)
    safetensors.numpy.save_file(plain, tmp_path / "theirs.safetensors", {"b": "c"})
    flat, metadata = weights.views(tmp_path / "theirs.safetensors")
    same(flat, plain)
    assert metadata == {"b": "c"}
    whole, metadata = weights.load(tmp_path / "ours.safetensors")
    assert metadata == {"a": "ü"}
    same(whole, {**{k: v for k, v in plain.items() if "/" not in k}, "ü": {"ö": plain["ü/ö"]}})


def mappings(path) -> list[tuple[int, int]]:
    with open("/proc/self/maps") as maps:
        spans = [line.split()[0].split("-") for line in maps if line.rstrip().endswith(str(path))]
    return [(int(a, 16), int(b, 16)) for a, b in spans]


def test_what_is_loaded_is_mapped_aligned_and_read_only(tmp_path):
    path = tmp_path / "model.safetensors"
    made = {"a": np.zeros(3, bool), "b": np.arange(5, dtype=np.float32), "c": np.arange(7.0), "d": np.int16([1])}
    weights.save(path, {"params": made})
    raw = path.read_bytes()
    assert not (8 + int.from_bytes(raw[:8], "little")) % 64
    found = weights.load(path)[0]["params"]
    for name, array in found.items():
        assert any(a <= array.ctypes.data < b for a, b in mappings(path)), name
        assert array.flags.aligned
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    path.unlink()  # as `prune` does with the best of earlier epochs
    same(found, made)


def test_what_lies_askew_is_copied(tmp_path):
    path = tmp_path / "model.safetensors"
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    header |= {"b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\7" + np.float32([1, 2]).tobytes())
    found = weights.load(path)[0]
    assert found["b"].flags.aligned
    same(found, {"a": np.uint8([7]), "b": np.float32([1, 2])})


def test_devices_use_the_file_and_leave_it_as_it_is(tmp_path):
    """A device of the host may take the mapped bytes as its own; what is donated is then written elsewhere."""
    path = tmp_path / "model.safetensors"
    weights.save(path, {"w": np.arange(1 << 14, dtype=np.float32).reshape(128, 128)})
    before, found = path.read_bytes(), weights.load(path)[0]
    mesh = sharding.make_mesh(config.Mesh(data=1, fsdp=8))
    for rule in ("replicate", "fsdp"):
        placed = sharding.place(found, sharding.shardings(found, mesh, ((".*", rule),)))
        changed = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(placed)
        np.testing.assert_array_equal(changed["w"], found["w"] + 1)
    assert path.read_bytes() == before


def of_header(entries, data=b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(shape, offsets, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


MALFORMED = {
    "overlap": of_header({"a": entry([2], [0, 8]), "b": entry([2], [4, 12])}, bytes(12)),
    "gap": of_header({"a": entry([1], [0, 4]), "b": entry([1], [8, 12])}, bytes(12)),
    "beyond the end": of_header({"a": entry([4], [0, 16])}, bytes(8)),
    "backwards": of_header({"a": entry([1], [4, 0])}, bytes(4)),
    "negative": of_header({"a": entry([-1], [0, 4])}, bytes(4)),
    "another size": of_header({"a": entry([3], [0, 8])}, bytes(8)),
    "overflow": of_header({"a": entry([1 << 62, 8], [0, 8])}, bytes(8)),
    "unknown dtype": of_header({"a": entry([1], [0, 4], "F31")}, bytes(4)),
    "dtype not read here": of_header({"a": entry([8], [0, 4], "F4")}, bytes(4)),
    "no dtype": of_header({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "a list": of_header([1, 2]),
    "no JSON": of_header(b"{nothing"),
    "no UTF-8": of_header(b'{"\xff":1}'),
    "metadata of numbers": of_header({"__metadata__": {"a": 1}}),
    "a huge header": (1 << 63).to_bytes(8, "little") + bytes(99),
    "array and group": of_header({"a": entry([1], [0, 4]), "a/b": entry([1], [4, 8])}, bytes(8)),
    "array and deep group": of_header({"a": entry([1], [0, 4]), "a/b/c": entry([1], [4, 8])}, bytes(8)),
}


@pytest.mark.parametrize("kind", list(MALFORMED))
def test_a_malformed_file_is_refused(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    path.write_bytes(MALFORMED[kind])
    with pytest.raises(WeightsError) as error:
        weights.load(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_byte_changed_anywhere_in_the_header_is_refused_or_harmless(tmp_path):
    """Never anything else than a WeightsError, and what is read lies within the file."""
    path, rng, refused = tmp_path / "model.safetensors", np.random.default_rng(0), 0
    weights.save(path, {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.int16)}, {"k": "v"})
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(400):
        changed = bytearray(whole)
        for at in rng.integers(0, length, rng.integers(1, 4)):
            changed[at] = rng.choice([*b'0123456789[]{},:"-FIBU/', int(rng.integers(256))])
        path.write_bytes(changed)
        try:
            flat, _ = weights.load(path)
        except WeightsError:
            refused += 1
        else:
            assert sum(leaf.nbytes for leaf in jax.tree.leaves(flat)) == len(whole) - length
    assert 100 < refused < 400


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


@pytest.mark.parametrize(
    ("name", "said"), [("missing.safetensors", "no such file of weights"), ("", "a folder, expected a file")]
)
def test_no_file(tmp_path, name, said):
    with pytest.raises(WeightsError, match=said):
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
