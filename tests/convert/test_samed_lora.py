"""SAMed's low-rank pairs, beside a SAM of segment_anything with the pairs added as SAMed adds them."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

from convert import families
from convert.__main__ import main
from convert.export import export_file, load
from convert.family import Converted, ConvertError, build, fit, tensors, write
from convert.onto import check_written, put_on, read
from convert.originals import samed_lora
from convert.sources import Tensor, open_source
from kdjax.config import Lora, Model
from kdjax.models.vision.sam.image_encoder import ImageEncoder
from kdjax.train import lora
from kdjax.weights import safetensors
from tests.support.quick import QUICK
from tests.support.torch_sam import original

FAMILY = families.get("samed_lora")
OPTIONS: dict[str, Any] = {"variant": "vit_t", "window": 3, "decoder_mlp_dim": 48, "embed_dim": 32, "image_size": 64}
RANK = 3
TARGETS = ((r"image_encoder/.*/attn/qkv", "q_v"), (r"mask_decoder/transformer/.*/[qv]_proj", "all"))
FORMS = {  # file -> (mask tokens, which of SAM's own tensors are in it, whether the decoder has pairs)
    "pairs": (4, (), False),
    "and prompts and decoder": (3, ("prompt_encoder.", "mask_decoder."), False),
    "pairs in the decoder": (2, ("prompt_encoder.", "mask_decoder."), True),
}
jit = functools.partial(jax.jit, compiler_options=QUICK)


@functools.cache
def base() -> tuple[Model, dict, dict]:
    """The promptable SAM that pairs are put on: (model, variables, the original's tensors)."""
    model = Model("sam", **OPTIONS)
    state = {k: x.numpy() for k, x in original(build(model).options, seed=1).state_dict().items()}
    converted = fit(families.get("sam"), {k: tensor(x) for k, x in state.items()}, OPTIONS)
    return model, read(converted.variables), state


def tensor(array: np.ndarray) -> Tensor:
    return Tensor("", array.shape, array.dtype, lambda: array)


@functools.cache
def checkpoint(form: str) -> tuple[dict[str, np.ndarray], torch.nn.Module]:
    """The tensors that SAMed saves, and the module that it saves them of."""
    masks, kept, decoder = FORMS[form]
    whole: Any = original(build(base()[0]).options, masks, seed=2)
    whole.image_encoder.load_state_dict(
        {k.removeprefix("image_encoder."): torch.tensor(x) for k, x in base()[2].items() if k.startswith("image_enc")}
    )
    if not kept:
        whole.load_state_dict({k: torch.tensor(x) for k, x in base()[2].items()})
    if decoder:  # its transformer is frozen, and not saved
        frozen = {k: torch.tensor(x) for k, x in base()[2].items() if "mask_decoder.transformer." in k}
        whole.load_state_dict(frozen, strict=False)
    state = {
        name: x.numpy()
        for name, x in whole.state_dict().items()
        if name.startswith(kept) and not (decoder and "mask_decoder.transformer." in name)
    }
    module, rng = samed_lora.Samed(whole), np.random.default_rng(3)
    for a, b, layer, columns in module.places():
        if a.startswith("w_") or decoder:
            out, width = layer.weight[columns].shape  # type: ignore
            state[a] = rng.normal(0, width**-0.5, (RANK, width)).astype(np.float32)
            state[b] = rng.normal(0, RANK**-0.5, (out, RANK)).astype(np.float32)
    everything = {**{k: x.numpy() for k, x in whole.state_dict().items()}, **state}
    module.load_state_dict({k: torch.tensor(x) for k, x in everything.items()})
    return state, module.eval()


@functools.cache
def converted(form: str, scan: bool = False) -> Converted:
    options = OPTIONS | ({"scan": True} if scan else {})
    return fit(FAMILY, {f"module.{k}": tensor(x) for k, x in checkpoint(form)[0].items()}, options)


def put(form: str) -> tuple[Model, dict, dict, dict]:
    """(model, plain variables, merged ones, the pairs)"""
    part = read(converted(form).variables)
    return *put_on(FAMILY, (converted(form).model, part), base()[:2]), part["lora"]


def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)


def close(found, expected: np.ndarray):
    assert found.shape == expected.shape
    np.testing.assert_allclose(np.asarray(found) / np.abs(expected).max(), expected / np.abs(expected).max(), 0, 1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_that_of_the_decoder_or_of_the_base(form):
    masks, kept, decoder = FORMS[form]
    model, _, whole, pairs = put(form)
    assert build(model) == build(Model("sam_seg", **OPTIONS, num_classes=masks) if kept else base()[0])
    safetensors.check(jax.eval_shape(build(model).init, jax.random.key(0), image()), whole)
    assert set(pairs) == ({"image_encoder", "mask_decoder"} if decoder else {"image_encoder"})
    assert converted(form).model.options["variant"] == "vit_t"
    assert len(jax.tree.leaves(pairs)) == 4 * 4 + (2 * 2 * 3 * 2 + 4) * decoder


@pytest.mark.parametrize("form", FORMS)
def test_merged_computes_what_the_original_does(form):
    model, _, whole, _ = put(form)
    with torch.no_grad():
        expected = samed_lora.outputs(checkpoint(form)[1], image())
    found = jit(build(model).apply)(whole, image())
    for name, array in expected.items():
        close(found[name], array)


def test_stage_by_stage():
    """The image encoder, pairs merged."""
    whole = put("pairs")[2]
    module: Any = checkpoint("pairs")[1]
    seen: dict[str, np.ndarray] = {}
    for i, block in enumerate(module.image_encoder.blocks):
        block.register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(f"blocks_{i}", out.detach().numpy()))
    module.image_encoder(torch.from_numpy(np.moveaxis(image(), -1, 1).copy()))
    encoder = ImageEncoder(build(base()[0]).options)
    run = jit(lambda p, x: encoder.apply({"params": p}, x, capture_intermediates=True, mutable=["intermediates"])[1])
    found = run(whole["params"]["image_encoder"], image())["intermediates"]
    assert len(seen) == 4
    for name, array in seen.items():
        close(found[name]["__call__"][0], array)


def test_pairs_are_those_that_training_adds():
    """The collection as it is, under the interceptor, without merging."""
    form = "pairs in the decoder"
    model, plain, _, pairs = put(form)
    config = Lora(RANK, TARGETS)
    shapes = jax.eval_shape(lambda: lora.init(jax.random.key(0), plain["params"], config))
    safetensors.check(shapes, pairs)
    module = build(model)
    with lora.active(config), torch.no_grad():
        found = jit(module.apply)({**plain, "lora": pairs}, image())
        expected = samed_lora.outputs(checkpoint(form)[1], image())
    for name, array in expected.items():
        close(found[name], array)


@pytest.mark.parametrize("form", FORMS)
def test_goes_out_as_it_was(form, tmp_path):
    state, weights = checkpoint(form)[0], tmp_path / "part.safetensors"
    write(converted(form), weights, {})
    model, variables = load(weights, pairs=True)
    for suffix in (".pth", ".safetensors"):
        assert export_file(FAMILY, model, variables, tmp_path / f"back{suffix}") == len(state)
        back = open_source(tmp_path / f"back{suffix}")
        assert back.keys() == state.keys()
        assert all(np.array_equal(back[name].read(), array) for name, array in state.items())
    with pytest.raises(ConvertError, match="found lora too"):
        load(weights)


def test_stacked_blocks_have_stacked_pairs():
    form = "pairs in the decoder"
    it = converted(form, scan=True)
    variables, plain = read(it.variables), read(converted(form).variables)
    pairs = variables["lora"]["image_encoder"]["periods"]["blocks_1"]["attn"]["qkv"]["v_b"]
    singles = [plain["lora"]["image_encoder"][f"blocks_{i}"]["attn"]["qkv"]["v_b"] for i in (1, 3)]
    np.testing.assert_array_equal(pairs, np.stack(singles))
    back = dict(tensors(FAMILY, it.model, variables))
    state = checkpoint(form)[0]
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], array) for name, array in state.items())


def test_all_faults_are_told_at_once():
    state = {name: tensor(x) for name, x in checkpoint("pairs in the decoder")[0].items()}
    del state["w_b_003"]
    state["w_a_099"] = tensor(np.zeros((RANK, 128), np.float32))
    state["cti_b_001"] = tensor(np.zeros((16, RANK + 1), np.float32))
    state["fati_qa"] = tensor(np.zeros((RANK, 32), np.int32))
    with pytest.raises(ConvertError, match="4 faults") as caught:
        fit(FAMILY, state, OPTIONS)
    lines = str(caught.value).splitlines()[1:]
    for start, word in (("unfilled", "w_b_003"), ("unused", "w_a_099"), ("shape", "cti_b_001"), ("dtype", "fati_qa")):
        assert [line for line in lines if line.strip().startswith(start) and word in line], (start, lines)


@pytest.mark.long
def test_by_command(tmp_path, capsys):
    """Alone and onto a base, and each compared with the original; another base is noticed."""
    model, variables, _ = base()
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", "lora", "part", "whole", "other")}
    safetensors.save(paths["base"], variables, safetensors.about(model))
    changed = jax.tree.map(lambda x: x * np.float32(1.01), variables)
    safetensors.save(paths["other"], changed, safetensors.about(model))
    safetensors.save(paths["lora"], checkpoint("pairs in the decoder")[0], {})

    def run(*words: str | Path) -> int:
        return main([str(word) for word in words])

    told = ["--set", *(f"{k}={v}" for k, v in OPTIONS.items())]
    assert run("samed_lora", "--src", paths["lora"], "--dst", paths["part"], *told) == 0
    assert run("samed_lora", "--src", paths["lora"], "--base", paths["base"], "--dst", paths["whole"]) == 0
    check_written(paths["whole"], put("pairs in the decoder")[2])
    source = ("verify", "samed_lora", "--src", paths["lora"], "--weights")
    assert run("verify", "samed_lora", "--weights", paths["part"]) == 0
    assert run(*source, paths["whole"], "--base", paths["base"]) == 0
    assert capsys.readouterr().out.count("the same: within") == 2
    assert run(*source, paths["whole"], "--base", paths["other"]) == 2
    assert "not the same weights" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [4, 8])
def test_the_files_that_people_have(reference, rank, tmp_path):
    path = reference / "weights" / "sam_lora" / f"lora_rank{rank}.safetensors"
    source = open_source(path)
    it = fit(FAMILY, source)
    assert it.model == Model("sam", variant="vit_b")
    write(it, tmp_path / "lora.safetensors", {})
    model, variables = load(tmp_path / "lora.safetensors", pairs=True)
    assert variables.keys() == {"lora"}
    assert variables["lora"]["image_encoder"]["blocks_11"]["attn"]["qkv"]["v_b"].shape == (rank, 768)
    export_file(FAMILY, model, variables, tmp_path / "back.safetensors")
    back = open_source(tmp_path / "back.safetensors")
    assert back.keys() == source.keys()
    assert all(np.array_equal(back[name].read(), source[name].read()) for name in source)
