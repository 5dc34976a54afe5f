"""Every kind of checkpoint file reads as the same tensors; every bad one is one line that says what to do."""

import json
import os
import pickle
import re
import sys
import types
import warnings
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch

from convert.describe import describe
from convert.sources import SourceError, open_source
from kdjax.weights.safetensors import WeightsError


def state() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    tied = torch.randn(3, 4, generator=random)
    return {
        "embed.weight": tied,
        "head.weight": tied,
        "conv.weight": torch.randn(2, 3, 5, 1, generator=random),
        "conv.turned": torch.randn(4, 3, generator=random).t(),
        "conv.half": torch.randn(5, generator=random).half(),
        "conv.brain": torch.randn(7, generator=random).bfloat16(),
        "conv.wide": torch.randn(2, generator=random).double(),
        "bn.num_batches_tracked": torch.tensor(7),
        "mask": torch.tensor([True, False, True]),
        "none": torch.zeros(0, 3),
    }


def numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy().astype(ml_dtypes.bfloat16)
    return tensor.detach().numpy()


def same(source, expected):
    assert list(source) == list(expected)
    for name, tensor in expected.items():
        wanted, found = numpy(tensor), source[name].read()
        assert (source[name].shape, source[name].dtype) == (wanted.shape, wanted.dtype), name
        assert (found.shape, found.dtype, found.tobytes()) == (wanted.shape, wanted.dtype, wanted.tobytes()), name
        assert not found.flags.writeable


def contiguous(tensors):
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def by_name(tensors):
    return dict(sorted(tensors.items()))


def save_zip(tensors, path):
    torch.save(tensors, path)


def save_legacy(tensors, path):
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_packed(tensors, path, pack=zipfile.ZIP_DEFLATED):
    """As people get it who unpack and pack the archive again."""
    torch.save(tensors, f"{path}.whole")
    with zipfile.ZipFile(f"{path}.whole") as whole, zipfile.ZipFile(path, "w", pack) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    os.unlink(f"{path}.whole")


def save_stored(tensors, path):
    save_packed(tensors, path, zipfile.ZIP_STORED)


def save_safetensors(tensors, path):
    safetensors.torch.save_file(contiguous(tensors), path, {"format": "pt"})


@pytest.mark.parametrize(
    ("save", "kind"),
    [
        (save_zip, "PyTorch zip archive"),
        (save_stored, "PyTorch zip archive"),
        (save_packed, "PyTorch zip archive"),
        (save_legacy, "PyTorch legacy pickle"),
        (save_safetensors, "safetensors"),
    ],
)
def test_every_format_reads_the_same(tmp_path, save, kind):
    """Whatever the name of the file says."""
    path = tmp_path / "model.ckpt"
    save(state(), path)
    source = open_source(path)
    same(source, by_name(state()) if save is save_safetensors else state())
    assert (source.kind, source.path, source.size) == (kind, path, path.stat().st_size)
    assert source.metadata == ({"format": "pt"} if save is save_safetensors else {})
    assert source.wrappers == source.others == ()


def test_the_first_byte_of_a_safetensors_file_is_that_of_any_other(tmp_path):
    """It is the length of the header: 0x80 begins a pickle, 0x7b a JSON file, "PK" an archive."""
    path, seen = tmp_path / "model", set()
    for length in (0x180, 0x17B, 0x4B50):
        header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
        text = json.dumps(header).encode().ljust(length)
        path.write_bytes(len(text).to_bytes(8, "little") + text + np.float32([1, 2]).tobytes())
        seen.add(path.read_bytes()[:1])
        np.testing.assert_array_equal(open_source(path)["w"].read(), [1, 2])
    assert seen == {b"\x80", b"{", b"P"}


@pytest.mark.parametrize("save", [save_zip, save_legacy, save_safetensors])
@pytest.mark.parametrize("how", ["cut", "written to", "replaced"])
def test_a_file_that_changes_while_it_is_read_is_blamed(tmp_path, save, how):
    """A tensor is read, and not mapped: where a mapped file is cut, the process dies."""
    path = tmp_path / "model"
    save({"w": torch.ones(1 << 16), "v": torch.ones(1 << 16)}, path)
    source = open_source(path)
    np.testing.assert_array_equal(source["w"].read(), np.ones(1 << 16))
    with open("/proc/self/maps") as maps:
        assert str(path) not in maps.read()
    if how == "replaced":
        save({"w": torch.ones(1 << 16), "v": torch.zeros(1 << 16)}, tmp_path / "new")
        os.replace(tmp_path / "new", path)
    elif how == "cut":
        os.truncate(path, 1 << 16)
    else:
        with open(path, "r+b") as file:
            file.seek(-9, os.SEEK_END)
            file.write(b"x")
        os.utime(path, ns=(0, 0))
    with pytest.raises(WeightsError, match=f"^{path}: changed while it was read; wait until nothing writes to it"):
        source["v"].read()


W = {"w": torch.ones(2, 3), "n": torch.tensor(1)}
V = {"w": torch.zeros(2, 3), "n": torch.tensor(2)}
ADAM = {"state": {0: {"exp_avg": torch.ones(9)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    ("content", "entry", "wrappers", "others", "extras"),
    [
        (W, "", (), (), {}),
        (OrderedDict(W, epoch=3, name="x", nothing=None), "", (), (), {"epoch": 3, "name": "x"}),
        ({"state_dict": W, "threshold": 0.5}, "", ("state_dict",), (), {"threshold": 0.5}),
        ({"state_dict": W, "threshold": torch.tensor(0.5)}, "", ("state_dict",), (), {"threshold": 0.5}),
        ({"model": W, "optimizer": ADAM, "epoch": 3}, "", ("model",), (), {"epoch": 3}),
        ({"model": W, "model_ema": V}, "", ("model",), ("model_ema",), {}),
        ({"model": V, "model_ema": W}, "model_ema", ("model_ema",), ("model",), {}),
        ({"model": V, "ema": {"decay": 0.9, "module": W}}, "ema", ("ema", "module"), ("model",), {"ema/decay": 0.9}),
        ({"a": {"b": W, "c": V}}, "a/b", ("a", "b"), ("a/c",), {}),
        ({"net": {"state_dict": W, "args": {"lr": 0.1}}}, "", ("net", "state_dict"), (), {"net/args/lr": 0.1}),
        ({"generator": W, "optimizer_states": [ADAM]}, "", ("generator",), (), {}),
        ({**W, "optimizer": ADAM}, "", (), (), {}),
        ({**W, "averaged": V}, "", (), ("averaged",), {}),
        ({"queue": torch.zeros(5), "model": W}, "", ("model",), (".",), {}),
        ({**W, "model": V}, ".", (), ("model",), {}),
        ({"model_state_dict": W, "optimizer_state_dict": ADAM}, "", ("model_state_dict",), (), {}),
        ({"ema": {"shadow_params": [W["w"], W["n"]]}}, "", ("ema", "shadow_params"), (), {}),
    ],
)
@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_wrappers(tmp_path, content, entry, wrappers, others, extras, save):
    path = tmp_path / "model.pth"
    save(content, path)
    source = open_source(path, entry)
    same(source, dict(zip("01", W.values(), strict=True)) if "shadow_params" in wrappers else W)
    assert (source.wrappers, source.others, source.extras) == (wrappers, others, extras)


def test_lightning(tmp_path):
    path = tmp_path / "last.ckpt"
    content = {"pytorch-lightning_version": "2.4.0", "epoch": 3, "global_step": 9, "loops": {"fit": {"n": 1}}}
    content |= {"state_dict": {f"model.{key}": x for key, x in W.items()}, "optimizer_states": [ADAM]}
    content |= {"callbacks": {"ModelCheckpoint": {"best": torch.tensor(0.5)}}, "hyper_parameters": {"lr": 0.1}}
    torch.save(content, path)
    source = open_source(path)
    assert (source.kind, source.wrappers, source.prefix()) == ("Lightning checkpoint", ("state_dict",), "model.")
    assert source.extras["hyper_parameters/lr"] == 0.1
    assert not [key for key in source.extras if "loops" in key or "callbacks" in key]
    same({name.removeprefix("model."): x for name, x in source.items()}, W)


def test_prefixes_nest_and_are_those_of_all_names(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({f"module._orig_mod.model.{key}": x for key, x in W.items()}, path)
    assert open_source(path).prefix() == "module._orig_mod.model."
    torch.save({"model.w": W["w"], "criterion.w": W["w"]}, path)
    assert open_source(path).prefix() == ""


def folder_of_shards(folder, save, suffix="safetensors"):
    first = {k: x for i, (k, x) in enumerate(state().items()) if i % 2}
    second = {k: x for k, x in state().items() if k not in first}
    names = [f"model-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    where = {}
    for name, shard in zip(names, (first, second), strict=True):
        save(shard, folder / name)
        where |= dict.fromkeys(shard, name)
    stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = folder / f"{stem}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": where}))
    return index, where


@pytest.mark.parametrize(("save", "suffix"), [(save_safetensors, "safetensors"), (save_zip, "bin")])
def test_shards(tmp_path, save, suffix):
    index, where = folder_of_shards(tmp_path, save, suffix)
    for path in (tmp_path, index):
        source = open_source(path)
        same({name: source[name] for name in state()}, state())
        assert len(source) == len(state())
        assert source.kind == f"sharded {'safetensors' if suffix == 'safetensors' else 'PyTorch'} folder"
        assert source.metadata == {"total_size": "9"}
        assert source.size == sum((tmp_path / name).stat().st_size for name in set(where.values()))


def test_shards_that_do_not_fit_their_index(tmp_path):
    index, where = folder_of_shards(tmp_path, save_safetensors)
    content = index.read_text()

    index.write_text(content.replace("conv.half", "conv.gone"))
    told = refused(tmp_path, "index and shards differ", "conv.half is in model-00002-of-00002.safetensors and not in")
    assert "conv.gone is not in model-0000" in told

    index.write_text(content)
    one, two = sorted(set(where.values()))
    both = {k: x for k, x in state().items() if where[k] == two or k == "mask"}
    whole = (tmp_path / two).read_bytes()
    save_safetensors(both | {"head.weight": torch.zeros(1)}, tmp_path / two)
    refused(tmp_path, "head.weight is in", f"and in {two}", "all of one revision")

    (tmp_path / two).write_bytes(whole[:-1])
    refused(tmp_path, two, "no whole safetensors file", "fetch it again")
    (tmp_path / one).unlink()
    (tmp_path / two).unlink()
    refused(tmp_path, "2 of 2 shards are missing", one, two)
    index.write_text(json.dumps({"weight_map": {"w": "../secret.bin"}}))
    refused(tmp_path, "files outside its folder: ../secret.bin")
    for text in ('{"weight_map": ["w"]}', '{"metadata": {}}', '{"weight_map": {"w"'):
        index.write_text(text)
        refused(index, "JSON, but no index of shards")


def refused(path, *parts, entry="") -> str:
    with pytest.raises(SourceError) as error:
        open_source(path, entry)
    told = str(error.value)
    assert "\n" not in told
    assert len(told) < 700
    for part in (str(path), *parts):
        assert str(part) in told, told
    return told


def test_folders(tmp_path):
    refused(tmp_path, "a folder without weights", "found nothing")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, "expected model.safetensors,", "found config.json")
    save_zip(W, tmp_path / "a.pth")
    same(open_source(tmp_path), W)
    save_zip(W, tmp_path / "b.bin")
    refused(tmp_path, "several files of weights; name one: a.pth, b.bin")
    save_zip(V, tmp_path / "pytorch_model.bin")
    same(open_source(tmp_path), V)
    save_safetensors(W, tmp_path / "model.safetensors")
    assert open_source(tmp_path).kind == "safetensors"


def bad_files(path):
    save_zip(state(), path)
    archive = path.read_bytes()
    save_legacy(state(), path)
    legacy = path.read_bytes()
    save_safetensors(state(), path)
    tensors = path.read_bytes()
    return {
        "empty": (b"", "the file is empty", "fetch it again"),
        "zip, cut": (archive[: len(archive) // 2], "no whole zip archive", "cut off"),
        "zip, end cut": (archive[:-30], "no whole zip archive", "cut off"),
        "zip, pickle broken": (
            archive.replace(b"embed.weight", b"\xff" * 12, 1),
            "no whole zip archive",
            "fetch it again",
        ),
        "legacy, cut": (legacy[:-7], "no whole PyTorch file", "cut off"),
        "legacy, few bytes": (legacy[:20], "no whole PyTorch file", "cut off"),
        "safetensors, cut": (tensors[:-1], "no whole safetensors file", "fetch it again"),
        "safetensors, header cut": (tensors[:30], "no whole safetensors file", "fetch it again"),
        "zeros": (bytes(300), "no whole safetensors file", "fetch it again"),
        "web page": (b"<html>sign in to download</html>" * 9, "neither a PyTorch nor a safetensors file", "<html>"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
        "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(300), "neither a PyTorch nor", "convert it"),
        "plain pickle": (pickle.dumps({"w": 1}, 2), "no whole PyTorch file", "fetch it again"),
    }


BAD = (
    *("empty", "zip, cut", "zip, end cut", "zip, pickle broken", "legacy, cut", "legacy, few bytes"),
    *("safetensors, cut", "safetensors, header cut", "zeros", "web page", "lfs", "hdf5", "plain pickle"),
)


@pytest.mark.parametrize("save", [save_zip, save_legacy])
def test_bytes_changed_anywhere_are_refused_or_harmless(tmp_path, save):
    path, rng, refusals = tmp_path / "model.pth", np.random.default_rng(0), []
    save({"state_dict": W, "epoch": 3}, path)
    whole = path.read_bytes()
    for i in range(150):
        changed = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            changed[at] = rng.integers(256)
        path.write_bytes(changed[: rng.integers(len(whole))] if i % 3 == 0 else changed)
        try:
            source = open_source(path)
            assert all(tensor.fault or tensor.read().shape == tensor.shape for tensor in source.values())
            describe(source)
        except SourceError as error:
            refusals.append(str(error))
    assert 50 <= len(refusals) < 150
    assert all(map(str.isprintable, refusals))


def test_a_name_does_not_write_on_the_terminal(tmp_path):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {"w\x1b[2J\n": torch.ones(2)}, "note\x1b": "\x1b[2J"}, path)
    assert "\x1b" not in describe(open_source(path))
    assert r"w\x1b[2J\n" in describe(open_source(path))
    torch.save({"a\x1b": W, "b": W}, path)
    assert refused(path, r"choose with entry=NAME: a\x1b, b").isprintable()


@pytest.mark.parametrize("kind", BAD)
def test_damaged_and_strange_files(tmp_path, kind):
    path = tmp_path / "model.pth"
    content, *parts = bad_files(path)[kind]
    path.write_bytes(content)
    refused(path, *parts)


def test_what_is_no_checkpoint(tmp_path):
    path = tmp_path / "model.pth"
    refused(path, "no such file")
    np.savez(tmp_path / "w.npz", w=np.ones(2))
    refused(tmp_path / "w.npz", "not of torch.save", "w.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and its files are still about
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    refused(path, "a TorchScript program", "state_dict()")
    for content, part in [
        ({}, "found nothing"),
        ({"epoch": 3}, "no tensors in it, found epoch"),
        ({"optimizer": ADAM}, "no tensors in it, found optimizer"),
        (torch.ones(3), "found a single tensor"),
        ([1, 2], "no tensors in it"),
        ({"student": W, "teacher": V}, "choose with entry=NAME: student, teacher"),
        ({"model": {"encoder": W, "decoder": V}}, "entry=NAME: model/encoder, model/decoder"),
    ]:
        torch.save(content, path)
        refused(path, part)
    refused(path, "no entry 'model_ema'; it has model", entry="model_ema")
    refused(path, "no entry 'model/ema'; it has model/encoder, model/decoder", entry="model/ema")


class Runs:
    """Unpickled as other programs do it, this leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("save", ["zip", "legacy", "pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, protocol, save):
    mark, path = tmp_path / "mark", tmp_path / "model.pth"
    content = {"state_dict": W, "x": Runs(mark)}
    if save == "pickle":
        path.write_bytes(pickle.dumps(Runs(mark), protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=save == "zip")
    refused(path, "refused, since reading it would run posix.system", "torch.save(model.state_dict()")
    assert not mark.exists()
    if save != "pickle":
        torch.load(path, weights_only=False)
        assert mark.exists(), "the file does nothing, so that nothing was tested"


def test_pickles_of_the_oldest_kind_and_of_other_objects(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(pickle.dumps(Runs(tmp_path / "mark"), 0))
    refused(path, "refused", "posix.system")
    torch.save(torch.nn.Linear(2, 2), path)
    refused(path, "refused", "torch.nn.modules.linear.Linear")
    torch.save({"model": W, "args": types.SimpleNamespace(lr=1)}, path)
    refused(path, "refused", "SimpleNamespace")
    torch.save(W, path, pickle_protocol=4)  # harmless, though more than torch reads without running it
    same(open_source(path), W)


def test_tensors_of_a_wrong_kind_may_be_dropped_and_not_read(tmp_path):
    path = tmp_path / "model.pth"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of kinds that are in beta and of kinds that go
        strange = {
            "coo": (torch.eye(3).to_sparse(), "sparse"),
            "csr": (torch.eye(3).to_sparse_csr(), "sparse"),
            "quantised": (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised one of qint8"),
            "freqs_cis": (torch.ones(3, dtype=torch.complex64), "complex64"),
            "negated": (torch.ones(3, dtype=torch.complex64).conj().imag, "turned round"),
            "meta": (torch.ones(3, device="meta"), "without data"),
            "float8": (torch.ones(3).to(torch.float8_e4m3fn), "float8_e4m3fn"),
            "nested": (torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        }
        torch.save({**W, **{name: tensor for name, (tensor, _) in strange.items()}}, path)
    source = open_source(path)
    np.testing.assert_array_equal(source["w"].read(), W["w"].numpy())
    for name, (_, kind) in strange.items():
        with pytest.raises(SourceError, match=f"^{name}: expected a dense tensor of real numbers, found .*{kind}"):
            source[name].read()
        assert f"unreadable: {source[name].fault}" in describe(source)
    safetensors.torch.save_file({"w": torch.ones(2), "z": torch.ones(2, dtype=torch.complex64)}, path)
    source = open_source(path)
    np.testing.assert_array_equal(source["w"].read(), [1, 1])
    with pytest.raises(SourceError, match="complex64"):
        source["z"].read()


@pytest.mark.parametrize("save", [save_zip, save_packed, save_legacy, save_safetensors])
def test_everything_is_read_without_torch(tmp_path, monkeypatch, save):
    save(W, tmp_path / "a")
    monkeypatch.setitem(sys.modules, "torch", None)
    np.testing.assert_array_equal(open_source(tmp_path / "a")["w"].read(), np.ones((2, 3)))


def test_the_hub(tmp_path, monkeypatch):
    calls = []

    def snapshot_download(repository, revision, allow_patterns):
        calls.append((repository, revision, allow_patterns))
        if repository == "owner/offline":
            raise ConnectionError("no route to host\nat all")
        if repository == "owner/old" and "pytorch_model*.bin*" in allow_patterns:
            save_zip(W, tmp_path / "pytorch_model.bin")
        if repository == "owner/new":
            save_safetensors(W, tmp_path / "model.safetensors")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    told = refused("hf:owner/offline", "ConnectionError: no route to host at all", "give its folder")
    assert "check the name and the network" in told
    same(open_source("hf:owner/old@v1"), W)
    assert {call[:2] for call in calls[1:]} == {("owner/old", "v1")}
    same(open_source("hf:owner/new"), by_name(W))
    assert calls[-1][:2] == ("owner/new", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf:owner/name", "pip install huggingface_hub")


def test_a_description_puts_indices_together(tmp_path):
    path = tmp_path / "model.pth"
    tensors = {f"blocks.{i}.attn.rel_pos": torch.zeros(9 if i in (2, 5) else 3, 2) for i in range(7)}
    tensors |= {f"layers.{i}.{j}.conv1.w{{x}}": torch.zeros(2) for i in range(3) for j in range(2 if i < 2 else 4)}
    tensors |= {f"w_a_{i:03d}": torch.zeros(2).half() for i in range(12)}
    tensors |= {"bn.num_batches_tracked": torch.tensor(1)}
    torch.save({"state_dict": tensors, "threshold": 0.5, "ema": W, "note": "long " * 99}, path)
    about, rows = describe(open_source(path)).split("\n\n")
    assert [re.sub(" +", " ", line) for line in rows.splitlines()] == [
        "blocks.{0,1,3,4,6}.attn.rel_pos float32 [3, 2]",
        "blocks.{2,5}.attn.rel_pos float32 [9, 2]",
        "layers.{0,1}.{0,1}.conv1.w{x} float32 [2]",
        "layers.2.{0..3}.conv1.w{x} float32 [2]",
        "w_a_{000..011} float16 [2]",
        "bn.num_batches_tracked int64 []",
    ]
    told = dict(line.split(maxsplit=1) for line in about.splitlines() if not line.startswith("also"))
    assert told["tensors"] == "28, 107 numbers (15 float32, 12 float16, 1 int64)"
    assert (told["inside"], told["threshold"]) == ("state_dict", "0.5")
    assert "also there  ema" in about
    assert max(map(len, [*about.splitlines()[1:], *rows.splitlines()])) <= 100  # the first is the path


REAL = {
    "can/vgae_best_with_threshold_hcrl_sa.pth": (62, ("state_dict",), "threshold"),
    "can/gat_student_hcrl_sa_genB.pth": (15, (), None),
    "cora_gat/gat_000000.pth": (8, ("state_dict",), "test_acc"),
    "forensics/WildRF_Tiny_LaDeDa.pth": (21, (), None),
    "forensics/ForenSynth_Tiny_LaDeDa.pth": (21, (), None),
    "sam_lora/lora_rank4.safetensors": (48, (), None),
    "sam_lora/lora_rank8.safetensors": (48, (), None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(reference, name):
    count, wrappers, extra = REAL[name]
    path = reference / "weights" / name
    source = open_source(path)
    assert (len(source), source.wrappers) == (count, wrappers)
    assert set(source.extras) >= ({extra} if extra else set())
    if path.suffix == ".safetensors":
        expected = safetensors.torch.load_file(path)
    else:
        expected = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in wrappers:
            expected = expected[wrapper]
    same({name: source[name] for name in expected}, expected)
    assert describe(source).startswith("file")
