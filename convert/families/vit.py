"""ViT and DeiT under timm's names: vit_base_patch16_224, deit_base_distilled_patch16_224, and fine-tuned ones."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from convert.family import ConvertError, Family, Shapes, build
from convert.table import Resize, Row, conv, linear, norm, same
from kdjax.config import Model
from kdjax.models.vision.vit import VARIANTS


def rows(model: Model) -> tuple[Row, ...]:
    return (*encoder_rows(model), *linear("head", "head_dist"))


def encoder_rows(model: Model, at: str = "") -> tuple[Row, ...]:
    return (
        *same(f"{at}dist_token", rank=3),
        *same(f"{at}pos_embed", rank=3, resize=positions_for(model, antialiased)),
        *linear(f"{at}blocks.{{i}}.attn.qkv"),
        *trunk_rows(at),
    )


def trunk_rows(at: str = "") -> tuple[Row, ...]:
    """What BEiT has in common with them."""
    block = f"{at}blocks.{{i}}"
    return (
        *same(f"{at}cls_token", rank=3),
        *conv(f"{at}patch_embed.proj"),
        *linear(f"{block}.attn.proj", f"{block}.mlp.fc1", f"{block}.mlp.fc2"),
        *norm(f"{block}.norm1", f"{block}.norm2", f"{at}norm", f"{at}fc_norm"),
    )


def positions_for(model: Model, weights_of: Callable[[int, int], np.ndarray]) -> Resize:
    """Of [1, t + n, d], t tokens that are no patches, to the model's grid."""
    options = build(model).options
    first = (1 + options.distilled) * options.class_position

    def resize(table: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
        patches = table[0, first:].astype(np.float64)
        side = math.isqrt(len(patches))
        if side * side != len(patches):
            raise ConvertError(
                f"the positions are those of {len(patches)} patches, no square, and only squares are resized; "
                "convert with the image size of the checkpoint, --set image_size=(HEIGHT,WIDTH)"
            )
        down, across = (weights_of(side, n) for n in options.grid)
        image = patches.reshape(side, side, -1)
        resized = np.einsum("ih,jw,hwd->ijd", down, across, image, optimize=True).reshape(1, -1, table.shape[2])
        return np.concatenate([table[:, :first], resized.astype(table.dtype)], axis=1)

    return resize


def bicubic(old: int, new: int) -> np.ndarray:
    """[new, old]: the weights of cubic convolution between the centres of cells, the edge repeated, not antialiased: as
    DeiT, transformers, and timm before 0.9 do."""
    weights = np.zeros((new, old))
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    for step in (-1, 0, 1, 2):
        cell = np.floor(centres).astype(int) + step
        np.add.at(weights, (np.arange(new), np.clip(cell, 0, old - 1)), _cubic(centres - cell, -0.75))
    return weights


def antialiased(old: int, new: int) -> np.ndarray:
    """[new, old]: the same, wider where the grid becomes coarser, and without what would lie beyond the edge: as
    Pillow, and timm since 0.9, do."""
    wider = max(1.0, old / new)
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = _cubic((np.arange(old)[None] - centres[:, None]) / wider, -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """The kernel of cubic convolution (Keys, 1981)."""
    d = np.abs(distance)
    near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


# -- the model, of the shapes ----------------------------------------------------------------------------------------


def model_of(shapes: Shapes) -> Model:
    refuse_others(shapes)
    options = dimensions(shapes) | {"distilled": "dist_token" in shapes, "pool": pool(shapes, "token")}
    options["layer_scale"] = 0.0
    patches = shapes["pos_embed"][1] - (2 if options["distilled"] else 1)
    options |= {"image_size": side(patches, options["patch_size"]), "num_classes": shapes.get("head.weight", (0,))[0]}
    return model_with("vit", VARIANTS, options)


# Names of tensors that other transformers have beside a ViT's: (pattern, what they are, whose they are).
OF_DINOV2 = (
    (r"blocks\.\d+\.(ls[12]\.gamma|gamma_[12])|.*layer_scale[12]\.lambda1", "LayerScale", "DINOv2 and DeiT-3"),
    (r"(.*\.)?(reg_token|register_tokens)", "register tokens", "DINOv2"),
)
BEYOND = (
    (r"norm_pre\..*", "a norm before the blocks", "CLIP"),
    (r"blocks\.\d+\.attn\.[qk]_norm\..*", "norms of queries and keys", "a ViT of 22 billion parameters"),
    (r".*mlp\.(w12|w3|weights_in|weights_out)\..*", "SwiGLU", "the giant of DINOv2"),
)


def refuse_others(shapes: Shapes) -> None:
    """Transformers that are more than a ViT."""
    refuse(shapes, OF_DINOV2, "use the family dinov2, or of transformers' files dinov2_hf")
    refuse_strangers(shapes)


def refuse_strangers(shapes: Shapes) -> None:
    """Transformers that kdjax does not compute."""
    refuse(shapes, BEYOND, "no option changes that; ViT, DeiT and DINOv2 come in, see python -m convert --list")


def refuse(shapes: Shapes, strangers: tuple[tuple[str, str, str], ...], remedy: str) -> None:
    for pattern, what, whose in strangers:
        if found := next((name for name in shapes if re.fullmatch(pattern, name)), None):
            raise ConvertError(f"it has {what}, as in {whose}, which this family has not: {found}; {remedy}")


def hint(shapes: Shapes) -> str:
    """Where no image size can be told."""
    name = next((name for name in shapes if name.endswith(("pos_embed", "position_embeddings"))), "")
    if not name or not _is_square(count := shapes[name][1]):
        return ""
    return (
        f"; or, since {count} positions are a square, the class token has none, as in FlexiViT and DeiT-3: then "
        "class_position=False too"
    )


def _is_square(n: int) -> bool:
    return n > 0 and math.isqrt(n) ** 2 == n


def dimensions(shapes: Shapes, at: str = "") -> dict[str, Any]:
    """The options of every ViT under timm's names that its shapes tell."""
    dim, hidden = shapes[f"{at}cls_token"][-1], shapes[f"{at}blocks.0.mlp.fc1.weight"][0]
    return {
        "dim": dim,
        "depth": depth(shapes, f"{at}blocks"),
        "patch_size": shapes[f"{at}patch_embed.proj.weight"][-1],
        "mlp_ratio": ratio(dim, hidden),
        "qkv_bias": any(name.endswith((".qkv.bias", ".q_bias")) for name in shapes),
    }


def depth(names: Iterable[str], blocks: str) -> int:
    found = (re.match(rf"{re.escape(blocks)}\.([0-9]{{1,4}})\.", name) for name in names)
    numbers = {int(match[1]) for match in found if match}
    if numbers and max(numbers) >= len(numbers):
        missing = next(n for n in range(max(numbers)) if n not in numbers)
        raise ConvertError(f"{blocks} are numbered up to {max(numbers)}, and there is no {blocks}.{missing}")
    return len(numbers)


def ratio(dim: int, hidden: int) -> float:
    """Such that int(dim * ratio) is hidden."""
    near = hidden / dim
    return near if int(dim * near) == hidden else math.nextafter(near, math.inf)


def side(patches: int, patch_size: int) -> int | None:
    """Of a square image; None where the patches cannot be those of one."""
    if patches < 1:
        raise ConvertError("its table of positions has none for patches")
    n = math.isqrt(patches)
    return n * patch_size if n * n == patches else None


def pool(shapes: Shapes, otherwise: str, at: str = "") -> str:
    """How the features come about, as far as the final norm's name tells."""
    there = lambda norm: any(name.startswith(f"{at}{norm}.") for name in shapes)  # noqa: E731
    return "fc_norm" if there("fc_norm") and not there("norm") else otherwise


def model_with(name: str, variants: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any]) -> Model:
    """The variant of that width, and what differs from it. No shape tells the number of heads, which is the variant's,
    nor the taps: of another depth than the variant's, features leave the blocks at a quarter, a half, ..."""

    def like(of: Mapping[str, Any]) -> tuple[bool, ...]:
        usual = {"dim": 0, "distilled": False, "layer_scale": 0.0, "patch_size": 16, "registers": 0}
        return tuple(of.get(name, value) == options.get(name, value) for name, value in usual.items())

    variant = max(variants, key=lambda v: like(variants[v]))
    own = build(Model(name, variant=variant))
    if options["dim"] != own.options.dim:
        options = {**options, "heads": options.get("heads")}
    if options["depth"] != own.options.depth:
        quarters = {(i * options["depth"] + 3) // 4 - 1 for i in (1, 2, 3, 4)}
        options = {**options, "taps": None if name.endswith("_seg") else tuple(sorted(quarters))}
    usual = {k: getattr(own if k == "num_classes" else own.options, k) for k in options}
    told = {k: x for k, x in options.items() if k in ("image_size", "num_classes") or x != usual[k]}
    return Model(name, variant=variant, **told)


def untold(model: Model) -> tuple[str, ...]:
    """A segmenter reads the blocks of `taps`."""
    taps = ("taps",) if model.name.endswith("_seg") else ()
    return ("heads", *taps, "norm_eps", "activation", "mean", "std")


FAMILY = Family(
    name="vit",
    told="ViT, DeiT under timm's names: deit_base_distilled_patch16_224-df68dfff.pth; DeiT's own mean and std are of "
    "--set variant=deit_b16",
    variants={name: Model("vit", variant=name) for name in VARIANTS if not name.startswith("dinov2")},
    rows=rows,
    model_of=model_of,
    original="convert.originals.vit",
    stacks=(("params/blocks/{rest}", "params/blocks_{i}/{rest}"),),
    resizing="bicubic and antialiased, as timm does",
    untold=untold,
    hint=hint,
    dropped=((r"head(_dist)?\..*", "features alone were asked for, --set num_classes=0"),),
)
