"""SAM under Meta's names: sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth, and fine-tuned ones."""

import numpy as np

from convert.family import ConvertError, Family, Shapes
from convert.table import Row, conv, conv_up, embed, linear, norm, same
from kdjax.config import Model
from kdjax.models.vision.sam import VARIANTS

PATCH = 16


def resize_positions(table: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """[1, h, w, d] to another grid: bilinear, half-pixel centres, not antialiased, as SAMed does."""
    rows, columns = (_linear(old, new) for old, new in zip(table.shape[1:3], wanted[1:3], strict=True))
    return np.einsum("ih,jw,bhwd->bijd", rows, columns, table, optimize=True).astype(table.dtype)


def resize_distances(table: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
    """[2n - 1, d] for another n: as an image of height 2n - 1, as SAMed does."""
    return (_linear(len(table), wanted[0]) @ table.astype(np.float64)).astype(table.dtype)


def _linear(old: int, new: int) -> np.ndarray:
    """[new, old]: the weights of linear interpolation between the centres of cells, the edge repeated."""
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    return np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(old)[None]))


def rows(model: Model) -> tuple[Row, ...]:
    return (*encoder_rows(), *prompt_rows(), *decoder_rows())


def encoder_rows() -> tuple[Row, ...]:
    at, block = "image_encoder", "image_encoder.blocks.{i}"
    return (
        *same(f"{at}.pos_embed", rank=4, resize=resize_positions),
        *same(f"{block}.attn.rel_pos_h", f"{block}.attn.rel_pos_w", rank=2, resize=resize_distances),
        *linear(f"{block}.attn.qkv", f"{block}.attn.proj", f"{block}.mlp.lin1", f"{block}.mlp.lin2"),
        *norm(f"{block}.norm1", f"{block}.norm2"),
        *conv(f"{at}.patch_embed.proj", f"{at}.neck.0", f"{at}.neck.2"),
        *norm(f"{at}.neck.1", f"{at}.neck.3"),
    )


def prompt_rows() -> tuple[Row, ...]:
    at, down = "prompt_encoder", "prompt_encoder.mask_downscaling"
    return (
        *same(f"{at}.pe_layer.positional_encoding_gaussian_matrix", rank=2, collection="batch_stats"),
        *embed(f"{at}.point_embeddings.{{i}}", f"{at}.not_a_point_embed", f"{at}.no_mask_embed"),
        *conv(f"{down}.0", f"{down}.3", f"{down}.6"),
        *norm(f"{down}.1", f"{down}.4"),
    )


def transformer_rows() -> tuple[Row, ...]:
    """What the decoder's transformer has under the same names in every kind of file."""
    at = "mask_decoder.transformer"
    layer = f"{at}.layers.{{i}}"
    attention = (
        f"{layer}.self_attn",
        f"{layer}.cross_attn_token_to_image",
        f"{layer}.cross_attn_image_to_token",
        f"{at}.final_attn_token_to_image",
    )
    return (
        *linear(*(f"{name}.{part}" for name in attention for part in ("q_proj", "k_proj", "v_proj", "out_proj"))),
        *linear(f"{layer}.mlp.lin1", f"{layer}.mlp.lin2"),
    )


def decoder_rows() -> tuple[Row, ...]:
    at, transformer = "mask_decoder", "mask_decoder.transformer"
    return (
        *transformer_rows(),
        *norm(f"{transformer}.layers.{{i}}.norm{{j}}", f"{transformer}.norm_final_attn", f"{at}.output_upscaling.1"),
        *embed(f"{at}.iou_token", f"{at}.mask_tokens"),
        *conv_up(f"{at}.output_upscaling.0", f"{at}.output_upscaling.3"),
        *linear(f"{at}.output_hypernetworks_mlps.{{i}}.layers.{{j}}", f"{at}.iou_prediction_head.layers.{{i}}"),
    )


def model_of(shapes: Shapes) -> Model:
    return model_with(shapes["image_encoder.pos_embed"], shapes["mask_decoder.mask_tokens.weight"][0])


def model_with(positions: tuple[int, ...], masks: int) -> Model:
    """The promptable SAM has four mask tokens; with any other number there is one for each class.

    `positions` is the shape of the table of positions, [1, h, w, d].
    """
    _, *grid, dim = positions
    variant = variant_of(dim)
    size = [VARIANTS[variant].get("patch_size", PATCH) * n for n in grid]
    model = Model("sam", variant=variant, image_size=size[0] if size[0] == size[1] else tuple(size))
    return model if masks == 4 else Model("sam_seg", **model.options, num_classes=masks)


def variant_of(dim: int) -> str:
    found = next((name for name, of in VARIANTS.items() if of["dim"] == dim), None)
    if found is None:
        widths = ", ".join(f"{name} {of['dim']}" for name, of in VARIANTS.items())
        raise ConvertError(f"its image encoder is {dim} wide; those that have names are {widths}")
    return found


PUBLISHED = ("vit_b", "vit_l", "vit_h")
FAMILY = Family(
    name="sam",
    told="SAM under Meta's names: sam_vit_b_01ec64.pth, sam_vit_l_0b3195.pth, sam_vit_h_4b8939.pth",
    variants={name: Model("sam", variant=name) for name in PUBLISHED}
    | {"a mask for each class": Model("sam_seg", variant="vit_b")},
    rows=rows,
    model_of=model_of,
    original="convert.originals.sam",
    resizing="bilinear, not antialiased, as SAMed does",
    untold=lambda model: ("norm_eps", "decoder_heads", "decoder_norm_eps"),
    stacks=(("params/image_encoder/periods/blocks_{j}/{rest}", "params/image_encoder/blocks_{i}/{rest}"),),
)
