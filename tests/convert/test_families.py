"""Every family, by existing: small random models come in as the original computes them, and go out as they were."""

import functools
import importlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.interpolate import RectBivariateSpline

from convert import families, verify
from convert.export import export_file, load
from convert.family import Converted, ConvertError, Family, build, fit, prove, tensors, write
from convert.sources import Tensor, open_source
from kdjax.config import Model
from tests.support.quick import QUICK

TOLERANCE = 1e-5


def sam_resized(name: str, tensor: torch.Tensor, wanted: tuple[int, ...]) -> torch.Tensor:
    """As SAMed does."""
    if name.endswith("pos_embed"):
        image = F.interpolate(tensor.permute(0, 3, 1, 2), wanted[1:3], mode="bilinear", align_corners=False)
        return image.permute(0, 2, 3, 1)
    return F.interpolate(tensor[None, None], wanted, mode="bilinear", align_corners=False)[0, 0]


def hf_resized(name: str, tensor: torch.Tensor, wanted: tuple[int, ...], antialias: bool = False) -> torch.Tensor:
    """As transformers does in use, and DeiT before it is fine-tuned at another size; here to 3 x 2."""
    first = wanted[1] - 6
    side = math.isqrt(tensor.shape[1] - first)
    image = tensor[:, first:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    image = F.interpolate(image, (3, 2), mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([tensor[:, :first], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def timm_resized(name: str, tensor: torch.Tensor, wanted: tuple[int, ...]) -> torch.Tensor:
    return hf_resized(name, tensor, wanted, antialias=True)


def beit_resized(name: str, tensor: torch.Tensor, wanted: tuple[int, ...]) -> torch.Tensor:
    """As BEiT does, with SciPy's own spline of two dimensions: the steps between patches grow by a factor that brings
    the last one to the new grid's edge."""
    old, new = (math.isqrt(n - 3) for n in (len(tensor), wanted[0]))
    low, high, reach = 1.01, 1.5, old // 2
    while high - low > 1e-6:
        q = (low + high) / 2
        low, high = (low, q) if (1 - q**reach) / (1 - q) > new // 2 else (q, high)
    steps = [sum(q**j for j in range(i + 1)) for i in range(reach)]
    at = [*(-x for x in reversed(steps)), 0, *steps]
    to = np.arange(new) - new // 2
    heads = [RectBivariateSpline(at, at, head.reshape(old, old).numpy())(to, to) for head in tensor[:-3].T]
    return torch.cat([torch.from_numpy(np.stack(heads, -1).reshape(-1, len(heads))), tensor[-3:]])


@dataclass(frozen=True)
class Case:
    family: str
    model: Model
    given: tuple[str, ...] = ()  # options that no shape tells: `--set` gives them
    # Another image size, and the original's way to resize a tensor (name, tensor, shape wanted); None: not to be had.
    image_size: int | tuple[int, int] = 0
    resized: Callable[[str, torch.Tensor, tuple[int, ...]], torch.Tensor] | None = None
    scan: bool = False  # whether the model can be built with scan=True

    @property
    def options(self) -> dict[str, Any]:
        return {name: self.model.options[name] for name in self.given}


TINY: dict[str, Any] = {"variant": "vit_t", "window": 3, "decoder_mlp_dim": 48, "embed_dim": 32}
TELL = tuple(name for name in TINY if name != "variant")
SAM: dict[str, Any] = {"given": TELL, "resized": sam_resized}
HF: dict[str, Any] = {"decoder_norm_eps": 1e-6}
SMALL: dict[str, Any] = {"dim": 48, "heads": 4, "depth": 2, "taps": (0, 1), "mlp_ratio": 2.0}
SEG: dict[str, Any] = SMALL | {"depth": 4, "taps": (0, 1, 2, 3), "neck_dim": 12, "head_dim": 16}
DEIT: dict[str, Any] = SMALL | {"variant": "deit_b16_distilled", "image_size": 64, "num_classes": 7}
VIT: dict[str, Any] = {"given": ("heads",), "resized": timm_resized, "image_size": (48, 32)}
VIT_HF = VIT | {"resized": hf_resized}
DINO: dict[str, Any] = SMALL | {"variant": "dinov2_s14", "image_size": 56, "num_classes": 0}
DINO_REG = DINO | {"variant": "dinov2_s14_reg4", "registers": 3}
WIDER: dict[str, Any] = {"given": ("heads",), "image_size": (42, 28)}
# No shape tells the sides of what is not square, nor the blocks that a segmenter reads.
ALL_GIVEN = ("heads", "taps", "image_size")
MIT: dict[str, Any] = {"dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "heads": (1, 2, 3, 4), "image_size": 65}
MIT |= {"reductions": (4, 2, 2, 1), "decoder_dim": 24}
NEXT: dict[str, Any] = {"dims": (8, 12, 16, 20), "depths": (1, 1, 1, 1), "image_size": (37, 70)}
NEXT |= {"num_classes": 3, "head_norm_eps": 1e-12}
SWIN: dict[str, Any] = {"dim": 8, "depths": (1, 2), "heads": (1, 2), "window": 4, "image_size": (32, 64)}
SWIN |= {"pretrained_windows": (3, 2), "num_classes": 5}
SWIN_HF = SWIN | {"image_size": (44, 60), "pad_windows": True, "mask": 200.0}  # maps of 11 x 15, 6 x 8
SWIN_GIVEN = ("window", "image_size", "pretrained_windows")
MOBILE: dict[str, Any] = {"dims": (8, 12, 16), "widths": (8, 8, 16, 16, 24, 24, 32), "heads": 2}
GAT: dict[str, Any] = {"hidden": 6, "heads": 2, "features": 7}
NODES: dict[str, Any] = {"features": 7, "hidden": (6, 5), "heads": (2, 3, 2), "num_classes": 4}
BERT: dict[str, Any] = {"dim": 24, "heads": 3, "depth": 2, "positions": 11, "vocab_size": 30, "mlp_ratio": 2.5}
CASES = {
    "bert": Case("bert", Model("bert", **BERT), ("heads",)),
    "bert classifier": Case("bert", Model("bert", **BERT, num_classes=4, activation="relu"), ("heads", "activation")),
    "bert of means": Case("bert", Model("bert", **BERT, pool="mean", norm_eps=1e-3), ("heads", "pool", "norm_eps")),
    "can_gat a": Case("can_gat", Model("can_gat", **GAT, variant="a_student")),
    "can_gat b": Case("can_gat", Model("can_gat", **GAT, layers=3, embed_dim=4, num_ids=9)),
    "can_gat c": Case(
        "can_gat", Model("can_gat", **GAT, variant="c_small", conv="gatv2", num_ids=9, binary_logit=False)
    ),
    "can_vgae": Case(
        "can_vgae", Model("can_vgae", encoder=(12, 6), decoder=(8,), num_ids=9, latent=5, features=7, embed_dim=4)
    ),
    "can_vgae teacher": Case(
        "can_vgae", Model("can_vgae", variant="b_teacher", decoder=(8, 12), conv="gatv2", num_ids=9, neighbour_hidden=6)
    ),
    "convnextv2": Case("convnextv2", Model("convnextv2", **NEXT), ("image_size", "head_norm_eps")),
    "convnextv2 of convolutions": Case(
        "convnextv2",
        Model(
            "convnextv2",
            **NEXT | {"variant": "atto", "dims": (40, 12, 16, 20), "depths": (1, 2, 1, 1), "num_classes": 0},
        ),
        ("image_size", "head_norm_eps"),
    ),
    "convnextv2_hf": Case("convnextv2_hf", Model("convnextv2", **NEXT), ("image_size",)),
    "convnextv2_hf features": Case("convnextv2_hf", Model("convnextv2", **NEXT | {"num_classes": 0}), ("image_size",)),
    "dinov2": Case("dinov2", Model("vit", **DINO), resized=timm_resized, scan=True, **WIDER),
    "dinov2 with registers": Case("dinov2", Model("vit", **DINO_REG), resized=timm_resized, **WIDER),
    "dinov2 with timm's registers": Case(
        "dinov2", Model("vit", **DINO_REG | {"num_classes": 5}, class_position=False), resized=timm_resized, **WIDER
    ),
    "deit 3": Case(
        "dinov2",
        Model("vit", **DINO | {"patch_size": 16, "image_size": (32, 80), "num_classes": 3}, class_position=False),
        (*ALL_GIVEN, "class_position"),
    ),
    "dinov2_hf": Case("dinov2_hf", Model("vit", **DINO), resized=hf_resized, scan=True, **WIDER),
    "dinov2_hf classifier": Case(
        "dinov2_hf", Model("vit", **DINO | {"num_classes": 5, "pool": "token_mean"}), resized=hf_resized, **WIDER
    ),
    "dinov2_hf with registers": Case(
        "dinov2_hf",
        Model("vit", **DINO_REG | {"num_classes": 5, "pool": "token_mean"}),
        resized=timm_resized,
        **WIDER,
    ),
    "distilbert": Case("distilbert", Model("distilbert", **BERT, pool="mean"), ("heads", "pool")),
    "distilbert classifier": Case("distilbert", Model("distilbert", **BERT, num_classes=4), ("heads",)),
    "ladeda": Case(
        "ladeda",
        Model("ladeda", widths=(4, 6, 8, 10), depths=(1, 2, 1, 1), preprocess="x_grad", image_size=(33, 41)),
        ("preprocess", "image_size"),
    ),
    "ladeda small": Case(
        "ladeda",
        Model("ladeda", variant="small", receptive_field=17, preprocess="npr", pooling="topk", image_size=34),
        ("preprocess", "pooling", "image_size"),
    ),
    "tiny_ladeda": Case(
        "tiny_ladeda", Model("tiny_ladeda", preprocess="npr", image_size=34), ("preprocess", "image_size")
    ),
    "tiny_ladeda of crops": Case(
        "tiny_ladeda",
        Model("tiny_ladeda", width=6, preprocess="right_diag", image_size=(34, 26), crop=10, stride=8),
        ("preprocess", "image_size", "crop", "stride"),
    ),
    "mobilenetv2": Case(
        "mobilenetv2",
        Model("mobilenetv2", multiplier=0.1, full_last=False, num_classes=3, image_size=(37, 70), output_stride=16),
        ("image_size", "output_stride"),
    ),
    "mobilevit": Case(
        "mobilevit",
        Model("mobilevit", **MOBILE, num_classes=3, image_size=(37, 70)),
        ("heads", "image_size"),
    ),
    "pyg_gat": Case("pyg_gat", Model("node_gat", **NODES, variant="cora_pyg")),
    "pyg_gat v2": Case("pyg_gat", Model("node_gat", **NODES, variant="cora_pyg", conv="gatv2")),
    "pyg_gat without loops": Case(
        "pyg_gat", Model("node_gat", **NODES, variant="cora_pyg", self_loops=False), ("self_loops",)
    ),
    "pytorch-GAT": Case("pyg_gat", Model("node_gat", **NODES)),
    "can_gat of four": Case("can_gat", Model("can_gat", **GAT, variant="c_teacher", num_ids=5, num_classes=4)),
    "sam": Case("sam", Model("sam", **TINY, image_size=(40, 64)), image_size=(64, 32), scan=True, **SAM),
    "sam with classes": Case("sam", Model("sam_seg", **TINY, image_size=64, num_classes=3), image_size=96, **SAM),
    "sam_hf": Case(
        "sam_hf", Model("sam", **TINY, image_size=56, decoder_norm_eps=1e-6), image_size=32, scan=True, **SAM
    ),
    "sam_hf with classes": Case(
        "sam_hf", Model("sam_seg", **TINY, image_size=40, num_classes=2, decoder_norm_eps=1e-6), image_size=64, **SAM
    ),
    "segformer": Case("segformer", Model("segformer", **MIT, mlp_ratio=3.0), ("heads", "image_size")),
    "segformer of two labels": Case(
        "segformer", Model("segformer", **MIT, binary_logit=False), ("heads", "image_size")
    ),
    "segformer encoder": Case("segformer", Model("segformer_encoder", **MIT), ("heads", "image_size", "decoder_dim")),
    "swinv2": Case("swinv2", Model("swinv2", **SWIN), SWIN_GIVEN),
    "swinv2 features": Case("swinv2", Model("swinv2", **SWIN | {"num_classes": 0, "image_size": 16}), SWIN_GIVEN),
    "swinv2_hf": Case("swinv2_hf", Model("swinv2", **SWIN_HF), SWIN_GIVEN),
    "swinv2_hf features": Case("swinv2_hf", Model("swinv2", **SWIN_HF | {"num_classes": 0}), SWIN_GIVEN),
    "tinyusfm segmenter": Case("tinyusfm", Model("tinyusfm_seg", **SEG, image_size=(112, 80)), ALL_GIVEN, scan=True),
    "tinyusfm of classes": Case(
        "tinyusfm",
        Model("tinyusfm_seg", **SEG, image_size=64, num_classes=4),
        ("heads", "taps"),
        (48, 32),
        timm_resized,
    ),
    "tinyusfm nano": Case("tinyusfm", Model("tinyusfm_seg", variant="nano", image_size=48)),
    "tinyusfm classifier": Case(
        "tinyusfm", Model("tinyusfm_cls", **SMALL, image_size=64, num_classes=5), scan=True, **VIT
    ),
    "tinyusfm encoder": Case("tinyusfm", Model("tinyusfm", **SMALL, image_size=64), scan=True, **VIT),
    "usfm": Case("usfm", Model("usfm", **SMALL, image_size=64), ("heads",), 112, beit_resized, scan=True),
    "usfm classifier": Case("usfm", Model("usfm_cls", **SMALL, num_classes=3, image_size=(32, 80)), ALL_GIVEN),
    "usfm segmenter": Case("usfm", Model("usfm_seg", **SEG, image_size=112), ALL_GIVEN, 64, beit_resized, scan=True),
    "vit": Case("vit", Model("vit", **SMALL, image_size=64, num_classes=7), scan=True, **VIT),
    "vit distilled": Case("vit", Model("vit", **DEIT), **VIT),
    "vit features": Case("vit", Model("vit", **SMALL, image_size=(32, 80), num_classes=0, pool="fc_norm"), ALL_GIVEN),
    "vit_hf": Case("vit_hf", Model("vit", **SMALL, image_size=64, num_classes=7, norm_eps=1e-12), scan=True, **VIT_HF),
    "vit_hf distilled": Case("vit_hf", Model("vit", **DEIT, norm_eps=1e-12), **VIT_HF),
    "vit_hf features": Case(
        "vit_hf", Model("vit", **SMALL, image_size=(32, 80), num_classes=0, norm_eps=1e-12, qkv_bias=False), ALL_GIVEN
    ),
}
# Of each family a case or two in every run of the tests, the others where there is time.
LATER = {
    *("bert", "bert of means", "distilbert", "distilbert classifier"),
    "can_gat c",
    *("dinov2", "dinov2 with timm's registers", "deit 3", "dinov2_hf", "dinov2_hf classifier"),
    "can_vgae teacher",
    "convnextv2 of convolutions",
    "convnextv2_hf features",
    "ladeda",
    *("mobilenetv2", "mobilevit"),
    "sam with classes",
    "sam_hf with classes",
    *("segformer encoder", "segformer of two labels"),
    "swinv2 features",
    "swinv2_hf features",
    *("tinyusfm of classes", "tinyusfm segmenter"),
    "usfm segmenter",
}


def named(names: Iterable[str]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=pytest.mark.long if n in LATER else ()) for n in names]
    )


each = named(CASES)


def original(case: Case) -> torch.nn.Module:
    """With weights that leave nothing at zero: norms around one, biases around zero, statistics of real batches."""
    module = importlib.import_module(families.get(case.family).original).build(case.model)
    draw = torch.Generator().manual_seed(0)
    for name, x in module.state_dict().items():
        if name.endswith("running_var"):
            x.copy_(0.5 + torch.rand(x.shape, generator=draw))
        elif x.is_floating_point() and "gaussian" not in name and not name.endswith("mask_token"):  # made anew: zeros
            random = torch.randn(x.shape, generator=draw)
            if x.ndim < 2:
                x.copy_(
                    (1.0 if name.endswith(("weight", "gamma_1", "gamma_2", "gamma", "lambda1")) else 0.0) + 0.2 * random
                )
            else:
                small = "pos" in name or "token" in name or "table" in name or "embed." in name
                steep = re.search(r"\.att(_src|_dst)?$", name)  # where attention is flat, little depends on it
                x.copy_(random * (0.3 if small else 1.0 if steep else math.prod(x.shape[1:]) ** -0.5))
    return module.eval()


@dataclass(frozen=True)
class Made:
    case: Case
    family: Family
    module: torch.nn.Module
    source: Path
    weights: Path
    converted: Converted


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """name -> a checkpoint of the original, wrapped as trainers do, and what became of it."""

    @functools.cache
    def make(name: str) -> Made:
        case, folder = CASES[name], tmp_path_factory.mktemp("family")
        family, module = families.get(case.family), original(case)
        state = {f"module.{key}": x for key, x in module.state_dict().items()}
        torch.save({"state_dict": state, "epoch": 3}, folder / "source.pth")
        converted = fit(family, open_source(folder / "source.pth"), case.options)
        write(converted, folder / "weights.safetensors", {})
        return Made(case, family, module, folder / "source.pth", folder / "weights.safetensors", converted)

    return make


def tensor(array: np.ndarray) -> Tensor:
    return Tensor("", array.shape, array.dtype, lambda: array)


def worst(found: list[verify.Difference]) -> float:
    assert len(found) >= 1
    return max(difference.relative for difference in found)


def test_every_family_has_a_case():
    """But those whose files hold a part of a model: they have tests of their own."""
    assert {case.family for case in CASES.values()} == {n for n in families.NAMES if not families.get(n).base}


@each
def test_comes_in_as_the_original_computes_it(made, name):
    it = made(name)
    model, variables = load(it.weights)
    assert build(it.converted.model) == build(model) == build(it.case.model)
    prove(it.converted, it.weights)
    assert it.converted.compared == len({n for slot in it.converted.slots for n in slot.tensors})
    assert worst(verify.verify(it.family, model, verify.original_tensors(it.converted), variables, QUICK)) <= TOLERANCE


@each
def test_goes_out_as_it_was(made, name, tmp_path):
    it = made(name)
    model, variables = load(it.weights)
    state, exported = it.module.state_dict(), functools.partial(it.family.exported, model)
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"back{suffix}"
        assert export_file(it.family, model, variables, path) == len(state)
        tensors, names = open_source(path), {exported(key): key for key in state}
        named = it.family.prepared({names.get(key, key): x for key, x in tensors.items()})
        back = {key: torch.from_numpy(np.array(x.read())) for key, x in named.items()}  # under the names of files
        importlib.import_module(it.family.original).build(model).load_state_dict(back, strict=True)
        for key, tensor in back.items():
            assert tensor.dtype == state[key].dtype
            assert torch.equal(tensor, state[key]) or key.endswith("num_batches_tracked"), key


@each
def test_all_faults_are_told_at_once(made, name):
    it = made(name)
    state = dict(open_source(it.source))
    prefix = it.family.without_prefix(list(state))
    plain = sorted(n for slot in it.converted.slots for n in slot.tensors if len(state[prefix + n].shape) == 1)
    gone, bent, whole = plain[0], plain[len(plain) // 2], plain[-1]
    del state[prefix + gone]
    state[prefix + "stranger.weight"] = tensor(np.zeros((2, 3), np.float32))
    state[prefix + bent] = tensor(np.zeros((5, *state[prefix + bent].shape), np.float32))
    state[prefix + whole] = tensor(np.zeros(state[prefix + whole].shape, np.int64))
    with pytest.raises(ConvertError, match="4 faults") as caught:
        fit(it.family, state, it.case.options)
    _, *lines = str(caught.value).splitlines()
    for start, word in (("unfilled", gone), ("unused", "stranger"), ("shape", bent), ("dtype", whole)):
        assert [line for line in lines if line.strip().startswith(start) and word in line], (start, word, lines)


@pytest.mark.long
@named([name for name, case in CASES.items() if case.scan])
def test_stacked_blocks_compute_the_same(made, name):
    it = made(name)
    stacked = fit(it.family, open_source(it.source), {**it.case.options, "scan": True})
    assert any(slot.stacked for slot in stacked.slots)
    variables = jax.tree.map(lambda leaf: leaf.read(), stacked.variables)
    back = dict(tensors(it.family, stacked.model, variables))
    exported = functools.partial(it.family.exported, stacked.model)
    assert all(np.array_equal(back[exported(key)], x.numpy()) for key, x in it.module.state_dict().items())
    arrays = verify.original_tensors(stacked)
    assert worst(verify.verify(it.family, stacked.model, arrays, variables, QUICK)) <= TOLERANCE


@named([name for name, case in CASES.items() if case.resized])
def test_another_image_size_resizes_as_the_original_does(made, name):
    it = made(name)
    assert it.case.resized is not None
    found = fit(it.family, open_source(it.source), {**it.case.options, "image_size": it.case.image_size})
    assert found.resized
    state, arrays = it.module.state_dict(), verify.original_tensors(found)
    anew = importlib.import_module(it.family.original).build(found.model).state_dict()
    for key, array in arrays.items():
        expected = (
            state[key] if state[key].is_floating_point() else anew[key]
        )  # which patch is where depends on the size
        if key in found.resized:
            assert tuple(expected.shape) != array.shape
            expected = it.case.resized(key, expected.double(), array.shape)
            np.testing.assert_allclose(array, expected.numpy(), rtol=0, atol=1e-6 * float(expected.abs().max()))
        else:
            assert np.array_equal(array, expected.numpy()), key


@pytest.mark.parametrize(("name", "end"), [("sam", "blocks.1.attn.qkv.weight"), ("can_gat b", "convs.1.att_src")])
def test_the_comparison_would_notice(made, name, end):
    it = made(name)
    model, variables = load(it.weights)
    arrays = dict(verify.original_tensors(it.converted))
    key = next(key for key in arrays if key.endswith(end))
    arrays[key] = arrays[key] * np.float32(1.001)
    found = verify.verify(it.family, model, arrays, variables, QUICK)
    assert any(one.relative > 3 * one.allowed for one in found)


@pytest.mark.parametrize("name", ["can_gat a", "can_gat b", "can_vgae", "pyg_gat"])
def test_attention_the_wrong_way_round_would_be_noticed(made, name):
    it = made(name)
    model, variables = load(it.weights)
    arrays = verify.original_tensors(it.converted)
    for source in [key for key in arrays if key.endswith(".att_src")]:
        target = source.replace("att_src", "att_dst")
        swapped = arrays | {source: arrays[target], target: arrays[source]}
        worst = verify.worst(verify.verify(it.family, model, swapped, variables, QUICK))
        assert worst.relative > 30 * worst.allowed, source


def test_copies_that_differ_are_refused(made):
    it = made("sam_hf")
    state = dict(open_source(it.source))
    copy = "module.prompt_encoder.shared_embedding.positional_embedding"
    alone = {key: x for key, x in state.items() if key != copy}
    assert fit(it.family, alone, it.case.options).slots == it.converted.slots  # a file may lack the copy
    state[copy] = tensor(np.zeros(state[copy].shape, np.float32))
    with pytest.raises(ConvertError, match=r"1 faults:\n  tied: prompt_encoder.shared_embedding"):
        fit(it.family, state, it.case.options)
