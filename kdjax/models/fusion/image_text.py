"""An image and its caption, each read by a model of its own, as one vector, and what it says of each label."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kdjax.config import ConfigError, nearest
from kdjax.models.fusion.attending import CrossAttention, Encoder
from kdjax.models.fusion.mixing import ConcatMlp, Film, Gated, ModalityDropout
from kdjax.models.fusion.options import Options
from kdjax.models.fusion.routing import EnergyAwareAdaptive, Shomr
from kdjax.models.inputs import ArrayInput, Input
from kdjax.models.layers.dense import dense
from kdjax.models.options import options_of
from kdjax.models.part import part_of

FUSIONS: dict[str, Any] = {
    "simple": Encoder,
    "concat_mlp": ConcatMlp,
    "cross_attention": CrossAttention,
    "gated": Gated,
    "transformer_concat": Encoder,
    "modality_dropout": ModalityDropout,
    "film": Film,
    "energy_aware_adaptive": EnergyAwareAdaptive,
    "shomr": Shomr,
}
ATTENDING = (Encoder, CrossAttention, EnergyAwareAdaptive, Shomr)
LAYERED = (Encoder, ConcatMlp)
PROJECTIONS = {"image": "proj_vis", "text": "proj_txt"}
READS = {"image": "images", "text": "text"}


class ImageText(nn.Module):
    """Image and caption -> a class for each label.

    Endpoints: `logits_LABEL` [b, k] of each label; `image_features`, `text_features`, what the parts make of them;
    `image_embedding`, `text_embedding` [b, d], both of one width; `fused` [b, d], what the fusion makes of both. Where
    it weighs one against the other also `shares` [b, 2] in [0, 1] of image and text, and where it chooses what is read
    `energy` [b], the expected cost in mJ. What is absent has an embedding of zeros and no share. A model of one part
    needs no fusion: `fused` is its embedding.
    """

    options: Options
    labels: tuple[tuple[str, int], ...] = ()  # (name, number of classes)
    image: Any = None  # the parts
    text: Any = None

    @property
    def parts(self) -> dict[str, Any]:
        return {name: part for name in PROJECTIONS if (part := getattr(self, name)) is not None}

    @property
    def inputs(self) -> dict[str, Input]:
        flag = ArrayInput((), "bool")
        return {k: v for name, part in self.parts.items() for k, v in {**part.inputs, f"{name}_there": flag}.items()}

    @property
    def endpoints(self) -> tuple[str, ...]:
        heads = (f"logits_{label}" for label, _ in self.labels)
        own = (f"{name}_{kind}" for name in self.parts for kind in ("features", "embedding"))
        return (*heads, *own, *(FUSIONS[self.options.fusion].endpoints if len(self.parts) == 2 else ("fused",)))

    @nn.compact
    def __call__(self, *inputs: Any, train: bool = False) -> dict[str, Array]:
        o, out, given = self.options, {}, dict(zip(self.inputs, inputs, strict=True))
        flags = jnp.stack([given[f"{name}_there"] for name in self.parts], axis=1)
        for i, (name, part) in enumerate(self.parts.items()):
            features = part(*(given[field] for field in part.inputs), train=train)["features"]
            embedding = dense(o.dim, dtype=o.dtype, name=PROJECTIONS[name])(features)
            out |= {f"{name}_features": features, f"{name}_embedding": jnp.where(flags[:, i, None], embedding, 0)}
        if len(self.parts) == 2:
            fusion = FUSIONS[o.fusion](o, name="fusion")
            out |= of_those_there(fusion(out["image_embedding"], out["text_embedding"], flags, train), flags)
        else:
            out["fused"] = out[f"{next(iter(self.parts))}_embedding"]
        x = nn.Dropout(o.dropout, deterministic=not train)(out["fused"])
        for label, classes in self.labels:
            kept = nn.Dropout(o.dropout, deterministic=not train)(x)
            out[f"logits_{label}"] = dense(classes, dtype=o.dtype, name=f"head_{label}")(kept)
        return out


def of_those_there(out: dict[str, Array], there: Bool[Array, "b 2"]) -> dict[str, Array]:
    """Zeros where there is neither image nor text, and no share of what is absent."""
    out = {**out, "fused": jnp.where(there.any(axis=1, keepdims=True), out["fused"], 0)}
    if "shares" in out:
        shares: Float[Array, "b 2"] = jnp.where(there, out["shares"], 0)
        total = shares.sum(axis=1, keepdims=True)
        out["shares"] = shares / jnp.where(total > 0, total, 1)
    return out


def build_image_text(
    labels: dict[str, int] | None = None, image: dict | None = None, text: dict | None = None, **overrides
) -> ImageText:
    """`labels` say how many classes each has; None of them gives features alone. Parts are {"name": MODEL, "options":
    {...}}, and have no classes of their own unless they say how many; `overrides` are fields of Options."""
    options = options_of(Options, "image_text", {"": {}}, "", overrides)
    faults, parts = option_faults(options) + label_faults(labels or {}), {}
    if not image and not text:
        faults.append("expected an image part, a text part or both, found neither")
    for name, part in (("image", image), ("text", text)):
        try:
            parts |= {name: part_of(name, part, options.dtype, READS[name])} if part else {}
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("The model of image and text cannot be built:\n  " + "\n  ".join(faults))
    return ImageText(options, tuple((labels or {}).items()), **parts)


def label_faults(labels: dict[str, int]) -> list[str]:
    return [f"labels.{k}: expected at least 2 classes, found {n}" for k, n in labels.items() if n < 2]


def option_faults(o: Options) -> list[str]:
    faults, fusion = [], FUSIONS.get(o.fusion)
    if fusion is None:
        faults.append(f"fusion: no {o.fusion!r}; {nearest(o.fusion, FUSIONS)}")
    if fusion in ATTENDING and (o.heads < 1 or o.dim % o.heads):
        faults.append(f"heads: expected a divisor of dim {o.dim}, found {o.heads}")
    if fusion in LAYERED and o.layers < 1:
        faults.append(f"layers: expected at least 1, found {o.layers}")
    if o.hidden < 1:
        faults.append(f"hidden: expected at least 1, found {o.hidden}")
    for name in ("dropout", "drop_image", "drop_text"):
        if not 0 <= getattr(o, name) < 1:
            faults.append(f"{name}: expected a rate in [0, 1), found {getattr(o, name)}")
    if not 0 <= o.threshold <= 1:
        faults.append(f"threshold: expected a confidence in [0, 1], found {o.threshold}")
    if len(o.costs) != 3 or min(o.costs) < 0:
        faults.append(f"costs: expected three of at least 0, of the image, the text and both, found {o.costs}")
    return faults
