"""SegFormer under the names of transformers: nvidia/segformer-b0-finetuned-ade-512-512 ..., nvidia/mit-b0 ...

From a file without a decode head comes the encoder alone; a segmentation model starts from it with
init_skip=(".*/decode_head/.*",).
"""

import re
from collections.abc import Mapping
from typing import Any

from convert.config_json import Config
from convert.family import Family, Shapes, nearest
from convert.table import Row, batch_norm, conv, linear, norm, pattern
from kdjax.config import Model
from kdjax.models.vision.segformer import PATCHES, STAGES, VARIANTS

ENCODER, HEAD = "segformer.encoder", "decode_head"
# Names of version 5's modules, and those that its files, as all older ones, have for them.
NEWER = (
    ("stages.{i}.blocks.{j}", "encoder.block.{i}.{j}"),
    ("stages.{i}.patch_embeddings", "encoder.patch_embeddings.{i}"),
    ("stages.{i}.layer_norm", "encoder.layer_norm.{i}"),
    ("attention.q_proj", "attention.self.query"),
    ("attention.k_proj", "attention.self.key"),
    ("attention.v_proj", "attention.self.value"),
    ("attention.o_proj", "attention.output.dense"),
    ("attention.sequence_reduction.sequence_reduction", "attention.self.sr"),
    ("attention.sequence_reduction.layer_norm", "attention.self.layer_norm"),
    ("layernorm_before", "layer_norm_1"),
    ("layernorm_after", "layer_norm_2"),
    ("mlp.fc{i}", "mlp.dense{i}"),
    ("linear_projections", "linear_c"),
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
    return _renamed(name, NEWER)


def in_modules(model: Model, name: str) -> str:
    """The inverse; an encoder alone has no `segformer.` before its names."""
    name = name.removeprefix("segformer.") if model.name == "segformer_encoder" else name
    return _renamed(name, tuple((older, newer) for newer, older in NEWER))


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = re.sub(rf"\b{pattern(old)}\b", lambda match, new=new: new.format(**match.groupdict()), name)
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


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    """Its layer norms have the epsilon of PyTorch in transformers, whatever `layer_norm_eps` says, and its `image_size`
    is none that images were resized to."""
    tensors = options_of(shapes)
    config.only("num_encoder_blocks", STAGES)
    config.agrees("hidden_sizes", (32, 64, 160, 256), tensors["dims"])
    config.agrees("depths", (2, 2, 2, 2), tensors["depths"])
    config.agrees("sr_ratios", (8, 4, 2, 1), tensors["reductions"])
    config.agrees("mlp_ratios", (4, 4, 4, 4), (tensors["mlp_ratio"],) * STAGES)
    config.only("patch_sizes", tuple(side for side, _ in PATCHES))
    config.only("strides", tuple(stride for _, stride in PATCHES))
    config.only("num_channels", 3)
    if labels := shapes.get(f"{HEAD}.classifier.weight"):
        config.classes(labels[0])
    if "decoder_dim" in tensors:
        config.agrees("decoder_hidden_size", 256, tensors["decoder_dim"])
    options = {
        "heads": config.get("num_attention_heads", (1, 2, 5, 8)),
        "activation": config.activation("hidden_act", "gelu"),
    }
    config.check()
    return options


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
    in_modules=in_modules,
    model_types=("segformer",),
    configured=configured,
    untold=lambda model: ("heads", "activation"),
)
