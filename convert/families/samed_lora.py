"""The low-rank pairs that SAMed (Zhang and Liu 2023) and its followers save instead of a whole SAM.

Pairs for q and v of every image encoder block; often the prompt encoder and mask decoder, trained whole, beside them;
or pairs for q and v in the decoder's transformer, and the rest of the decoder whole.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from convert.families import sam
from convert.family import ConvertError, Family, Shapes, build, leaves
from convert.table import LINEAR, Row
from kdjax.config import Model
from kdjax.weights import safetensors
from kdjax.weights.lora import dense_layers

TRANSFORMER = "mask_decoder/transformer"
ATTENTION = {"sa": "self_attn", "cti": "cross_attn_token_to_image", "cit": "cross_attn_image_to_token"}


def rows(model: Model) -> tuple[Row, ...]:
    pairs = (Row((name,), f"lora/{at}", LINEAR) for name, at in names(model))
    return (*pairs, *sam.prompt_rows(), *sam.decoder_rows())


def names(model: Model) -> Iterator[tuple[str, str]]:
    """(name in the file, path in the collection "lora") of all that can have pairs; 2 i + (0 for q, 1 for v)."""
    o = build(model).options
    for n in range(2 * o.depth):
        for side in "ab":
            yield f"w_{side}_{n:03d}", f"image_encoder/blocks_{n // 2}/attn/qkv/{'qv'[n % 2]}_{side}"
    for n in range(2 * o.decoder_depth):
        for short, attention in ATTENTION.items():
            for side in "ab":
                at = f"{TRANSFORMER}/layers_{n // 2}/{attention}/{'qv'[n % 2]}_proj"
                yield f"{short}_{side}_{n:03d}", f"{at}/{side}"
    for part in "qv":
        for side in "ab":
            yield f"fati_{part}{side}", f"{TRANSFORMER}/final_attn_token_to_image/{part}_proj/{side}"


def model_of(shapes: Shapes) -> Model:
    """The pairs do not tell the size of the images, nor how many masks there are where no decoder is with them."""
    variant, masks = sam.variant_of(shapes["w_a_000"][1]), shapes.get("mask_decoder.mask_tokens.weight")
    return Model("sam_seg", variant=variant, num_classes=masks[0]) if masks else Model("sam", variant=variant)


def held(model: Model, shapes: Shapes) -> dict[str, Any]:
    """Pairs of one rank, the decoder's if there is any, and each part of which there is anything."""
    if "w_a_000" not in shapes:
        raise ConvertError("no low-rank pairs of the image encoder; a whole SAM is of the family sam")
    rank, plain = shapes["w_a_000"][0], leaves(model)
    parts = {_part(name.replace(".", "/")) for name in shapes} - {"image_encoder"}
    found = {name: leaf for name, leaf in plain.items() if _part(name.partition("/")[2]) in parts}
    params = unflatten_dict({name: leaf for name, leaf in plain.items() if name.startswith("params/")}, sep="/")[
        "params"
    ]
    decoder = {name for name, at in names(model) if at.startswith(TRANSFORMER)} & shapes.keys()
    for path, (*stack, width, out) in dense_layers(params).items():
        fused = path.endswith("attn/qkv")
        if fused or (decoder and re.fullmatch(rf"{TRANSFORMER}/.*/[qv]_proj", path)):
            for part in ("q_", "v_") if fused else ("",):
                found[f"lora/{path}/{part}a"] = jax.ShapeDtypeStruct((*stack, width, rank), np.float32)
                found[f"lora/{path}/{part}b"] = jax.ShapeDtypeStruct(
                    (*stack, rank, out // (3 if fused else 1)), np.float32
                )
    return found


def _part(path: str) -> str:
    return TRANSFORMER if path.startswith(f"{TRANSFORMER}/") else path.partition("/")[0]


def onto(model: Model, variables: Mapping, base: Model, base_variables: Mapping) -> tuple[Model, dict]:
    """The whole model with what the file has and else the base has; the pairs are not merged yet."""
    whole = base
    if "mask_decoder" in variables.get("params", {}):
        whole = Model(model.name, **{**base.options, "num_classes": model.options["num_classes"]})
    expected, mine = leaves(whole), flatten_dict(dict(variables), sep="/")
    given = flatten_dict(dict(base_variables), sep="/") | mine
    mixed = unflatten_dict({name: given[name] for name in expected if name in given}, sep="/")
    safetensors.check(unflatten_dict(expected, sep="/"), mixed)
    return whole, mixed


FAMILY = Family(
    name="samed_lora",
    told="SAMed's low-rank pairs, w_a_000 ..., with or without prompt encoder and mask decoder; goes on a SAM: --base",
    variants={name: Model("sam", variant=name) for name in sam.PUBLISHED}
    | {"a mask for each class": Model("sam_seg", variant="vit_b")},
    rows=rows,
    model_of=model_of,
    original="convert.originals.samed_lora",
    stacks=(("lora/image_encoder/periods/blocks_{j}/{rest}", "lora/image_encoder/blocks_{i}/{rest}"),),
    untold=lambda model: ("image_size", *sam.FAMILY.untold(model)),
    base="sam",
    held=held,
    onto=onto,
)
