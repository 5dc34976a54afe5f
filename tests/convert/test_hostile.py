"""Checkpoints, weights and words of a command that are not what they should be: refused in words, with nothing lost."""

import os
import struct
import time
import zipfile
from typing import Any

import numpy as np
import pytest
import torch

import kdjax
from convert import example, families
from convert.__main__ import main
from convert.family import ConvertError, build, fit, leaves, write
from convert.sources import SourceError, Tensor, open_source
from kdjax.config import ConfigError, Model
from kdjax.weights import safetensors
from kdjax.weights.files import SteadyFile
from tests.convert.test_families import tensor
from tests.hostile_files.__main__ import run, table
from tests.hostile_files.bombs import BOMBS
from tests.hostile_files.valid import CONTAINERS, VALID, zipped

FAMILY = families.get("can_gat")
CASE = VALID["can_gat c"]  # small
KEPT = b"what was there before"


def state() -> dict[str, torch.Tensor]:
    return dict(CASE.state)


def said(capsys, *words: Any) -> str:
    """What is printed of a command that is refused."""
    assert main(list(map(str, words))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


# -- proof first, rename after ---------------------------------------------------------------------------------------


class Changing:
    """A tensor that is another when it is read again."""

    def __init__(self, array: np.ndarray):
        self.array, self.reads = array, 0

    def __call__(self) -> np.ndarray:
        self.reads += 1
        return self.array + (self.reads > 1)


@pytest.mark.parametrize("before", [b"", KEPT])
def test_nothing_unproved_stays_at_the_destination(before, tmp_path):
    dst = tmp_path / "weights.safetensors"
    if before:
        dst.write_bytes(before)
    tensors = {name: tensor(x.numpy()) for name, x in state().items()}
    name = next(iter(tensors))
    array = tensors[name].read()
    tensors[name] = Tensor(name, array.shape, array.dtype, Changing(array))
    with pytest.raises(ConvertError, match=f"{name} did not survive"):
        write(fit(FAMILY, tensors), dst, {})
    assert [path.name for path in tmp_path.iterdir()] == [dst.name] * bool(before)
    assert not before or dst.read_bytes() == before


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "packed zip"])  # which is unpacked first
@pytest.mark.parametrize("when", ["written", "proved"])
def test_a_source_that_is_cut_while_it_is_converted_is_blamed(container, when, tmp_path, capsys, monkeypatch):
    """Once the new file is there, a read of the old one finds it shorter."""
    path, dst = CONTAINERS[container](state(), tmp_path), tmp_path / "weights.safetensors"
    dst.write_bytes(KEPT)
    files = [file for file in tmp_path.iterdir() if file != dst and file.suffix != ".json"]
    reads, read = [], SteadyFile.read

    def cutting(self: SteadyFile, offset: int, size: int) -> np.ndarray:
        reads.append(self.path)
        proved = sum(path.name.endswith(".partial") for path in reads)
        if self.path in files and list(tmp_path.glob(".*.partial")) and proved >= (0 if when == "written" else 5):
            for file in files:
                os.truncate(file, 100)
        return read(self, offset, size)

    monkeypatch.setattr(SteadyFile, "read", cutting)
    error = said(capsys, "can_gat", "--src", path, "--dst", dst, "--overwrite")
    assert "changed while it was read; wait until nothing writes to it" in error
    assert any(str(file) in error for file in files)
    assert dst.read_bytes() == KEPT
    assert {file.name for file in tmp_path.iterdir()} >= {dst.name}
    assert not list(tmp_path.glob(".*"))


def test_ctrl_c_leaves_nothing_and_says_so(tmp_path, capsys, monkeypatch):
    path, dst = zipped(state(), tmp_path), tmp_path / "weights.safetensors"
    reads, read = [], SteadyFile.read

    def interrupted(self: SteadyFile, offset: int, size: int) -> np.ndarray:
        reads.append(offset)
        if len(reads) == 40:
            raise KeyboardInterrupt
        return read(self, offset, size)

    monkeypatch.setattr(SteadyFile, "read", interrupted)
    assert main(["can_gat", "--src", str(path), "--dst", str(dst)]) == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == [path]


# -- hangs and memory ------------------------------------------------------------------------------------------------


def with_bomb(bomb: bytes, path) -> None:
    """A checkpoint that has it beside its weights."""
    zipped({"state_dict": state()}, path.parent)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            more = b"X\4\0\0\0bomb" + bomb + b"s."
            archive.writestr(name, content[:-1] + more if name.endswith("data.pkl") else content)


@pytest.mark.parametrize("bomb", [*BOMBS[:2], b"]" * 99 + b"a" * 98])
def test_shared_and_nested_lists_are_bounded(bomb, tmp_path):
    with_bomb(bomb, tmp_path / "model.pth")
    begin = time.monotonic()
    with pytest.raises(SourceError, match="expected at most 500,000 things in it, 20 deep"):
        open_source(tmp_path / "model.pth")
    assert time.monotonic() - begin < 5


def test_what_is_little_and_says_it_is_much(tmp_path):
    """A tensor that repeats one number, and many tensors that are the same numbers."""
    for more in (
        {"x": torch.zeros(1).expand(10**6, 10**3)},
        dict.fromkeys(map(str, range(100)), torch.zeros(10**5)),
    ):
        for save in (CONTAINERS["zip"], CONTAINERS["legacy"], CONTAINERS["packed zip"]):
            path = save(state() | more, tmp_path)
            with pytest.raises(SourceError, match="expected tensors of at most 4 times the file"):
                open_source(path)
    tied = torch.ones(10**5)
    assert len(open_source(zipped({"a": tied, "b": tied, "c": tied}, tmp_path))) == 3


def test_an_archive_that_unpacks_to_far_more_is_not_unpacked(tmp_path):
    path = zipped(state(), tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data/999", bytes(80_000_000))
    with pytest.raises(SourceError, match=r"that would unpack to 80,\d\d\d,\d\d\d"):
        open_source(path)


@pytest.mark.parametrize("numbers", [3, 5, 2**62])
def test_storages_are_where_the_file_says(numbers, tmp_path):
    """As many numbers as the pickle tells lie in the archive, or it is refused."""
    path = zipped({"x": torch.arange(4.0)}, tmp_path)
    content = path.read_bytes()
    told = b"K\x04" if numbers < 256 else None
    assert content.count(b"K\x04tq") == 1
    new = bytes([ord("K"), numbers]) if told and numbers < 256 else b"\x8a\x08" + struct.pack("<q", numbers)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name).replace(b"K\x04tq", new + b"tq") for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(SourceError, match=r"no whole PyTorch file \(x: its numbers are not where the file says"):
        open_source(path)


def test_shapes_are_traced_without_a_single_image(monkeypatch):
    """A guess of 8,192 pixels took gigabytes."""
    monkeypatch.setattr(example, "image", lambda spec: pytest.fail("an image was made"))
    assert leaves(Model("vit", depth=1, taps=(0,), image_size=8192))["params/pos_embed"].shape == (1, 512**2 + 1, 768)
    with pytest.raises(ConfigError, match="image_size: expected from 1 to 8,192, found 10752"):
        build(Model("vit", image_size=10752))
    with pytest.raises(ConfigError, match="expected from 2 to 256, found 1000000"):
        build(Model("sam_seg", num_classes=10**6))
    with pytest.raises(ConfigError, match="at most 4,096 patches"):
        build(Model("usfm", image_size=2048))


def test_a_number_in_a_name_does_not_make_a_model_of_as_many_layers():
    tensors = {name: tensor(x.numpy()) for name, x in VALID["vit"].state.items()}
    far = tensors | {"blocks.9999.norm1.bias": tensors["blocks.1.norm1.bias"]}
    with pytest.raises(ConvertError, match=r"numbered up to 9999, and there is no blocks\.2"):
        fit(families.get("vit"), far)
    many = tensors | {f"blocks.{i}.norm1.bias": tensors["blocks.1.norm1.bias"] for i in range(2, 300)}
    with pytest.raises(ConfigError, match="depth: expected from 0 to 64, found 300"):
        fit(families.get("vit"), many, {"heads": 4})


# -- ranks, sizes, words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("empty", [pytest.param(True, marks=pytest.mark.long), False])
def test_every_tensor_of_another_rank_or_without_numbers_is_told_by_name(name, empty):
    case, family = VALID[name], families.get(VALID[name].family)
    shapes = {key: (0, *x.shape[1:]) if empty else (2, *x.shape) for key, x in case.state.items()}
    told = rf"this is no checkpoint of {family.name}: {len(shapes)} tensors have"
    with pytest.raises(ConvertError, match=told) as caught:
        fit(family, {key: tensor(np.zeros(shape, np.float32)) for key, shape in shapes.items()})
    assert all(f"shape of {key}: expected" in str(caught.value) for key in shapes)


@pytest.mark.parametrize("name", ["can_gat a", "pytorch-GAT", "usfm"])
def test_one_of_another_rank_is_told_with_whatever_else_is_wrong(name):
    case, family = VALID[name], families.get(VALID[name].family)
    given = {key: value for key, value in case.model.options.items() if key in ("heads", "taps", "image_size")}
    tensors = {key: tensor(x.numpy()) for key, x in case.state.items()}
    for key in list(tensors)[::7]:
        strange = tensors | {key: tensor(np.zeros((2, 2, 0), np.float32)), "stranger": tensor(np.zeros(1, np.float32))}
        with pytest.raises(ConvertError, match=f"shape of {key}: expected . axes"):
            fit(family, strange, given)


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("image_size=abc", "image_size: expected int or tuple[int, int], found 'abc'"),
        ("image_size=(97,161)", "image_size: expected a multiple of the patch size 16, found (97, 161)"),
        ("image_size=None", "image_size"),
        ("image_size=1e9", "image_size: expected int or"),
        ("heads=0", "heads: expected a divisor of dim 48, found 0"),
        ("heads=True", "heads: expected int, found True"),
        ("depth=100000000", "depth: expected from 0 to 64, found 100000000"),
        ("dtype=float99", "dtype: expected one of bfloat16, float16, float32, float64, found 'float99'"),
        ("dtype=int8", "dtype: expected one of"),
        ("mlp_ratio=nan", "mlp_ratio: expected float, found 'nan'"),
        ("mlp_ratio=1e999", "mlp_ratio: expected a finite number"),
        ("taps=[1,'a']", "taps.1: expected int, found 'a'"),
        ("variant={}", "variant: expected str, found {}"),
        ("num_classes=many", "num_classes: expected int, found 'many'"),
        (f"num_classes={10**30}", "num_classes: expected at most 16,777,216"),
        ("name=x", "no option 'name'"),
        ("patch_size=0", "patch_size: expected from 1"),
        ("((((((((", "expected OPTION=VALUE"),
    ],
)
def test_words_of_a_wrong_kind(word, part, tmp_path, capsys):
    case = VALID["vit"]
    words = [w for w in case.words if w.partition("=")[0] != word.partition("=")[0]]
    path = zipped(case.state, tmp_path)
    error = said(capsys, "vit", "--src", path, "--dst", tmp_path / "x.safetensors", "--set", *words, word)
    assert part in error
    assert list(tmp_path.iterdir()) == [path]


def test_segformer_takes_squares_alone():
    with pytest.raises(ConfigError, match=r"image_size: expected int, found \(97, 161\)"):
        kdjax.build("segformer", image_size=(97, 161))
    with pytest.raises(ConfigError, match=r"heads: expected 4 positive numbers, .* found \(0, 1, 2, 3\)"):
        kdjax.build("segformer", heads=(0, 1, 2, 3))


def converted(tmp_path):
    path = tmp_path / "weights.safetensors"
    write(fit(FAMILY, {name: tensor(x.numpy()) for name, x in state().items()}), path, {})
    return path


def test_weights_of_another_family(tmp_path, capsys):
    path = converted(tmp_path)
    part = "expected weights of vit, as vit has them, found can_gat; use can_gat"
    assert part in said(capsys, "export", "vit", "--weights", path, "--dst", tmp_path / "x.pth")
    assert part in said(capsys, "verify", "vit", "--weights", path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_export_into_a_folder_that_is_not_there(suffix, tmp_path, capsys):
    error = said(
        capsys, "export", "can_gat", "--weights", converted(tmp_path), "--dst", tmp_path / "gone" / f"x{suffix}"
    )
    assert f"there is no folder {tmp_path / 'gone'}; create it first" in error


def test_a_destination_that_is_no_file(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    error = said(capsys, "can_gat", "--src", "x", "--dst", tmp_path / "pipe", "--overwrite")
    assert "is a device or a pipe; --dst names a file" in error


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ("{", "its options are no JSON"),
        ("[" * 100_000, "its options are no JSON"),
        ("[1]", "expected options by name, found [1]"),
        ("null", "expected options by name, found None"),
        ('{"variant": {"a": 1}}', "variant: expected str, found {'a': 1}"),
        ('{"name": "x"}', "no option 'name'"),
        ('{"num_classes": "two"}', "num_classes: expected int, found 'two'"),
        ('{"hidden": 1e400}', "hidden: expected int, found inf"),
        ('{"layers": 1000000000}', "layers: expected from 0 to 64, found 1000000000"),
    ],
)
def test_metadata_that_say_nothing_of_use(options, part, tmp_path, capsys):
    variables = safetensors.load(converted(tmp_path))[0]
    path = tmp_path / "strange.safetensors"
    safetensors.save(path, variables, {"model": "can_gat", "options": options})
    assert part in said(capsys, "export", "can_gat", "--weights", path, "--dst", tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


# -- whatever else ---------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_share_of_the_hostile_files():
    results = run(count=240, workers=2, seed=7)
    assert len(results) == 240
    assert not [result for result in results if result.faults], table(results, "what")
    assert {result.end for result in results} == {"accepted", "refused"}
