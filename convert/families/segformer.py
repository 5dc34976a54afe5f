"""SegFormer under the names of transformers: nvidia/segformer-b0-finetuned-ade-512-512 ..., nvidia/mit-b0 ...

From a file without a decode head comes the encoder alone; a segmentation model starts from it with
init_skip=(".*/decode_head/.*",).
"""

import re
from collections.abc import Mapping
from typing import Any

from convert.family import Family, Shapes, nearest
from convert.table import Row, batch_norm, conv, linear, norm
from kdjax.config import Model
from kdjax.models.vision.segformer import STAGES, VARIANTS

ENCODER, HEAD = "segformer.encoder", "decode_head"
# Names of version 5's modules, and those that its files, as all older ones, have for them.
NEWER = (
    (r"stages\.(\d+)\.blocks\.(\d+)", r"encoder.block.\1.\2"),
    (r"stages\.(\d+)\.(patch_embeddings|layer_norm)", r"encoder.\2.\1"),
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.sequence_reduction\.sequence_reduction", "attention.self.sr"),
    (r"attention\.sequence_reduction\.layer_norm", "attention.self.layer_norm"),
    (r"layernorm_before", "layer_norm_1"),
    (r"layernorm_after", "layer_norm_2"),
    (r"mlp\.fc(\d)", r"mlp.dense\1"),
    (r"linear_projections", "linear_c"),
)


def rows(model: Model) -> tuple[Row, ...]:
    block = f"{ENCODER}.block.{{i}}.{{j}}"
    attention = f"{block}.attention.self"
    return (
        *conv(f"{ENCODER}.patch_embeddings.{{i}}.proj", f"{attention}.sr", f"{block}.mlp.dwconv.dwconv"),
        *linear(*(f"{attention}.{name}" for name in ("query", "key", "value")), f"{block}.attention.output.dense"),
        *linear(f"{block}.mlp.dense1", f"{block}.mlp.dense2"),
        *norm(f"{block}.layer_norm_1", f"{block}.layer_norm_2", f"{attention}.layer_norm"),
        *norm(f"{ENCODER}.patch_embeddings.{{i}}.layer_norm", f"{ENCODER}.layer_norm.{{i}}"),
        *linear(f"{HEAD}.linear_c.{{i}}.proj"),
        *conv(f"{HEAD}.linear_fuse", f"{HEAD}.classifier"),
        *batch_norm(f"{HEAD}.batch_norm"),
    )


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Also for an encoder that was saved alone, the names that it has in a whole model."""
    names = {name: in_files(name) for name in tensors}
    return {f"segformer.{new}" if new.startswith("encoder.") else new: tensors[name] for name, new in names.items()}


def in_files(name: str) -> str:
    """A version 5 module's tensor under the name that it has in files."""
    if not re.match(r"(segformer\.)?stages\.\d+\.|decode_head\.linear_projections\.", name):
        return name
    for newer, older in NEWER:
        name = re.sub(rf"\b{newer}\b", older, name)
    return name


def model_of(shapes: Shapes) -> Model:
    """A published variant, and what differs from it. One label is a foreground, two are two channels."""
    options = nearest("segformer", VARIANTS, options_of(shapes))
    if "dims" in options:
        options["heads"] = None  # which no shape tells
    if not any(name.startswith(f"{HEAD}.") for name in shapes):
        return Model("segformer_encoder", **options)
    labels = shapes[f"{HEAD}.classifier.weight"][0]
    binary = {"binary_logit": False} if labels == 2 else {}
    return Model("segformer", **options, num_classes=max(2, labels), **binary)


def options_of(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    blocks = [re.match(rf"{re.escape(ENCODER)}\.block\.([0-9]{{1,4}})\.([0-9]{{1,4}})\.", name) for name in shapes]
    last = {(int(found[1]), int(found[2])) for found in blocks if found}
    first = [f"{ENCODER}.block.{i}.0" for i in range(STAGES)]
    dims = tuple(shapes[f"{at}.mlp.dense2.weight"][0] for at in first)
    reductions = (shapes.get(f"{at}.attention.self.sr.weight", (1,))[-1] for at in first)
    told = {
        "dims": dims,
        "depths": tuple(1 + max(j for stage, j in last if stage == i) for i in range(STAGES)),
        "reductions": tuple(reductions),
        "mlp_ratio": shapes[f"{first[0]}.mlp.dense1.weight"][0] / dims[0],
    }
    if fuse := shapes.get(f"{HEAD}.linear_fuse.weight"):
        told["decoder_dim"] = fuse[0]
    return told


PUBLISHED = {name: Model("segformer", variant=name, num_classes=150) for name in VARIANTS}
FAMILY = Family(
    name="segformer",
    told="SegFormer under Hugging Face's names: nvidia/segformer-b0-finetuned-ade-512-512, nvidia/mit-b0, ... b5",
    variants=PUBLISHED | {"the encoder alone": Model("segformer_encoder", variant="b0")},
    rows=rows,
    model_of=model_of,
    original="convert.originals.segformer",
    dropped=((r"classifier\.(weight|bias)", "what the encoder was pretrained with: the 1000 classes of ImageNet"),),
    prepared=prepared,
)
