"""USFM: the pretrained encoder of openmedlab, classifiers, and segmenters of kdjax."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.interpolate import make_interp_spline

from convert.families.tinyusfm import kind_of, segmenter_rows, stacks
from convert.families.vit import depth, dimensions, model_with, trunk_rows, untold
from convert.family import ConvertError, Family, Shapes, build
from convert.table import Resize, Row, linear, same
from kdjax.config import Model
from kdjax.models.vision.usfm import VARIANTS
from kdjax.models.vision.vit import relative_positions

SHARED = "rel_pos_bias.relative_position_bias_table"
EXTRA = 3  # rows of a table that are for the class token


def rows(model: Model) -> tuple[Row, ...]:
    at = "backbone." if model.name == "usfm_seg" else ""
    attention = f"{at}blocks.{{i}}.attn"
    (table,) = same(f"{attention}.relative_position_bias_table", rank=2, resize=distances_for(model))
    index = {f"{attention}.relative_position_index": lambda model: relative_positions(model.options.grid)}
    return (
        Row(table.sources, table.target, resize=table.resize, beside=index, rank=table.rank),
        *linear(f"{attention}.qkv"),
        *same(f"{attention}.q_bias", f"{attention}.v_bias", rank=1),
        *same(f"{at}blocks.{{i}}.gamma_1", f"{at}blocks.{{i}}.gamma_2", rank=1),
        *trunk_rows(at),
        *(segmenter_rows() if at else linear("head")),
    )


def distances_for(model: Model) -> Resize:
    """Of [(2 h - 1)(2 w - 1) + 3, heads] to the model's grid, as BEiT does it: what the pretrained steps between
    patches stand for grows geometrically, so that the farthest meet the new grid's; between them a cubic spline."""
    grid = build(model).options.grid

    def resize(table: np.ndarray, wanted: tuple[int, ...]) -> np.ndarray:
        image = table[:-EXTRA].astype(np.float64)
        side = math.isqrt(len(image))
        if side * side != len(image):
            raise ConvertError(
                f"a table of {len(table)} rows is that of no square image, and only squares are resized; convert with "
                "the image size of the checkpoint, --set image_size=(HEIGHT,WIDTH)"
            )
        if side < 4:
            raise ConvertError(
                f"a table of {len(table)} rows is too small to be resized; convert with its own image size"
            )
        image = image.reshape(side, side, -1)
        for axis, patches in enumerate(grid):
            if 2 * patches - 1 != side:
                image = _spline(image, axis, patches)
        return np.concatenate([image.reshape(-1, table.shape[1]).astype(table.dtype), table[-EXTRA:]])

    return resize


def _spline(image: np.ndarray, axis: int, patches: int) -> np.ndarray:
    reach = image.shape[axis] // 2
    low, high = 1.01, 1.5  # between them lies the factor from one step to the next
    while high - low > 1e-6:
        factor = (low + high) / 2
        low, high = (low, factor) if np.sum(factor ** np.arange(reach)) > patches - 1 else (factor, high)
    steps = np.cumsum(factor ** np.arange(reach))
    at = np.concatenate([-steps[::-1], [0], steps])
    wanted = np.clip(np.arange(1 - patches, patches), at[0], at[-1])
    return make_interp_spline(at, image, k=3, axis=axis)(wanted)


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A table that all blocks share becomes every block's, as in the original's loader."""
    if SHARED not in tensors:
        return dict(tensors)
    own = [f"blocks.{i}.attn.relative_position_bias_table" for i in range(depth(tensors, "blocks"))]
    if twice := [name for name in own if name in tensors]:
        raise ConvertError(f"{SHARED} is there and {twice[0]} too; delete the one that the model does not read")
    return {**tensors, **dict.fromkeys(own, tensors[SHARED])}


def model_of(shapes: Shapes) -> Model:
    name, further = kind_of("usfm", shapes)
    at = "backbone." if name == "usfm_seg" else ""
    options = dimensions(shapes, at) | further
    scaled = any(re.search(r"blocks\.\d+\.gamma_[12]$", name) for name in shapes)
    options["layer_scale"] = 0.1 if scaled else 0.0
    attention = f"{at}blocks.0.attn.relative_position"
    table, options["heads"] = shapes[f"{attention}_bias_table"]
    table -= EXTRA
    if table < 1:
        raise ConvertError(f"{attention}_bias_table has {table + EXTRA} rows, of which {EXTRA} are not of patches")
    n = (math.isqrt(table) + 1) // 2
    tokens = shapes.get(f"{attention}_index", (1 + n * n,))[0]
    square = (2 * n - 1) ** 2 == table and tokens == 1 + n * n
    options["image_size"] = n * options["patch_size"] if square else None
    return model_with(name, VARIANTS, options)


FAMILY = Family(
    name="usfm",
    told="USFM: the pretrained USFM_latest.pth of openmedlab, classifiers; segmenters of kdjax",
    variants={"encoder": Model("usfm"), "classifier": Model("usfm_cls"), "segmenter": Model("usfm_seg")},
    rows=rows,
    model_of=model_of,
    original="convert.originals.usfm",
    stacks=stacks("backbone/", ""),
    prepared=prepared,
    resizing="along steps that grow geometrically, as BEiT does",
    untold=lambda model: tuple(name for name in untold(model) if name != "heads"),  # which the tables tell
    dropped=(
        (r"rel_pos_bias\.relative_position_bias_table", "every block has a copy"),
        (r"rel_pos_bias\.relative_position_index", "made anew"),
        (r"mask_token", "stands for hidden patches in pretraining alone"),
    ),
)
