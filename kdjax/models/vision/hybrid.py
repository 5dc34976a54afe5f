"""A convolutional network and a transformer as one model of images; either may be left out."""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError, nearest
from kdjax.models.inputs import ImageInput
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.models.layers.cbam import Cbam
from kdjax.models.layers.cosine_head import CosineHead
from kdjax.models.layers.dense import dense
from kdjax.models.layers.dynamic_head import DynamicHead
from kdjax.models.layers.inserted import inserted, path_of
from kdjax.models.layers.mix_style import mix_style
from kdjax.models.layers.token_learner import TokenLearner
from kdjax.models.options import options_of
from kdjax.models.part import image_of, part_of

CONVOLUTIONAL, TRANSFORMER = "convolutional", "transformer"
CHOICES = {"norm": ("layer", "batch"), "attention": ("", "cbam"), "head": ("linear", "cosine")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is set into the parts, how their features become one, and what tells the classes."""

    attention: str = ""  # "cbam" weighs the last map of the convolutional part
    token_learner: int = 0  # so many learned tokens take the place of the transformer's last map, or of its `tokens`
    mix_style: str = ""  # the map of the convolutional part, such as "stage_1", that gets other styles in training
    dim: int = 1024  # of the features that are made of the parts'
    norm: str = "layer"  # of these: "layer" | "batch"
    head: str = "linear"  # "cosine" compares directions alone, and wants a loss with a margin
    scale: float = 64.0  # of a cosine as a logit: the one of the loss that trains it
    centres: int = 1  # of each class, of which the nearest counts
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        chosen = {name: getattr(self, name) for name in CHOICES}
        faults = [f"{k}: no {v!r}; {nearest(v, CHOICES[k])}" for k, v in chosen.items() if v not in CHOICES[k]]
        if self.dim < 1:
            faults.append(f"dim: expected at least 1, found {self.dim}")
        if self.scale <= 0:
            faults.append(f"scale: expected a positive number, found {self.scale}")
        if self.centres < 1:
            faults.append(f"centres: expected at least 1, found {self.centres}")
        if self.centres > 1 and self.head == "linear":
            faults.append(f"centres: found {self.centres}, and a linear head has one of each class; try head='cosine'")
        refuse(faults)


class Hybrid(nn.Module):
    """Image -> features of a convolutional network and a transformer as one, and with `num_classes` one of these.

    Endpoints: `gates` [b, e] in (0, 1), by which the features of the parts, side by side, are multiplied; `features`
    [b, dim], made of these. With `num_classes` also `logits` [b, k]; with head="cosine" they are `scale` times
    `cosines` [b, k]. What the parts return is there too, as "convolutional.stage_3" or "transformer.features"; a map
    that learned tokens have taken the place of is [b, 1, t, c].
    """

    options: Options
    names: tuple[str, ...]  # CONVOLUTIONAL, TRANSFORMER or both
    models: tuple[nn.Module, ...]
    inside: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (option, path of what it comes after, the part's name first)
    num_classes: int = 0

    @property
    def inputs(self) -> dict[str, ImageInput]:
        """In [0, 1] and of the largest sides among the parts', of which each part makes a view of its own."""
        h, w = (max(sides) for sides in zip(*(image_of(model).hw for model in self.models), strict=True))
        return {"image": ImageInput(h if h == w else (h, w), (0.0,) * 3, (1.0,) * 3)}

    @property
    def endpoints(self) -> tuple[str, ...]:
        cosines = ("cosines",) if self.options.head == "cosine" else ()
        several = zip(self.names, self.models, strict=True)
        own = (f"{name}.{endpoint}" for name, model in several for endpoint in model.endpoints)  # type: ignore
        return (*(("logits", *cosines) if self.num_classes else ()), "features", "gates", *own)

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o, out = self.options, {}
        with self.more_inside(train):
            for name, model in zip(self.names, self.models, strict=True):
                part = model.clone(parent=self, name=name)(image_of(model).view(image), train=train)
                if o.token_learner and name == TRANSFORMER and "tokens" in part:
                    part["features"] = self.learned_tokens(part["tokens"]).mean(axis=1)
                out |= {f"{name}.{endpoint}": value for endpoint, value in part.items()}
        x = jnp.concatenate([out[f"{name}.features"] for name in self.names], axis=-1)
        x, out["gates"] = DynamicHead(o.dtype, name="dynamic_head")(x)
        x = nn.relu(dense(o.dim, dtype=o.dtype, name="fusion_fc")(x))
        if o.norm == "batch":
            x = BatchNorm(o.dtype, name="norm")(x, train)
        else:
            x = nn.LayerNorm(epsilon=1e-5, dtype=o.dtype, name="norm")(x)
        out["features"] = x
        if self.num_classes and o.head == "cosine":
            cosines = out["cosines"] = CosineHead(self.num_classes, o.centres, name="head")(x)
            out["logits"] = o.scale * cosines
        elif self.num_classes:
            out["logits"] = dense(self.num_classes, dtype=o.dtype, name="head")(x)
        return out

    def more_inside(self, train: bool) -> ExitStack:
        """Sets into the parts what is to be there; they pool in their own way what comes of it."""
        stack = ExitStack()
        for option, path in reversed(self.inside):  # what is entered last comes first
            layer: Any = None
            if option == "attention":
                layer = Cbam(self.options.dtype, name="cbam")
            elif option == "token_learner":
                layer = lambda x: self.learned_tokens(x)[:, None]  # noqa: E731
            elif train:
                layer = partial(mix_style, key=self.make_rng("dropout"))
            if layer:
                stack.enter_context(inserted((*self.path, *path), layer))
        return stack

    def learned_tokens(self, x: Float[Array, "b *places c"]) -> Float[Array, "b t c"]:
        return TokenLearner(self.options.token_learner, self.options.dtype, name="token_learner")(x)


def build_hybrid(
    num_classes: int = 0, convolutional: dict | None = None, transformer: dict | None = None, **overrides
) -> Hybrid:
    """Parts are {"name": MODEL, "options": {...}}, and have no classes of their own unless they say how many;
    `overrides` are fields of Options."""
    options = options_of(Options, "hybrid", {"": {}}, "", overrides)
    given = {CONVOLUTIONAL: convolutional, TRANSFORMER: transformer}
    models = {name: part_of(name, part, options.dtype) for name, part in given.items() if part}
    faults = []
    if not models:
        faults.append(f"expected a {CONVOLUTIONAL} part, a {TRANSFORMER} part or both, found neither")
    if num_classes < 0 or num_classes == 1:
        faults.append(f"num_classes: expected at least 2, or 0 for features alone, found {num_classes}")
    there, places = (maps(models[name]) if name in models else [] for name in (CONVOLUTIONAL, TRANSFORMER))
    returned = models[TRANSFORMER].endpoints if TRANSFORMER in models else ()
    if options.token_learner and not places and "tokens" not in returned:
        faults.append(f"token_learner: expected a {TRANSFORMER} part that returns tokens or maps, found none")
    if options.attention and not there:
        faults.append(f"attention: expected a {CONVOLUTIONAL} part that returns maps (stage_0, ...), found none")
    if options.mix_style and options.mix_style not in there:
        choice = nearest(options.mix_style, there)
        faults.append(f"mix_style: the {CONVOLUTIONAL} part has no map {options.mix_style!r}; {choice}")
    refuse(faults)
    at = [("attention", CONVOLUTIONAL, there[-1])] if options.attention else []
    at += [("mix_style", CONVOLUTIONAL, options.mix_style)] if options.mix_style else []
    at += [("token_learner", TRANSFORMER, places[-1])] if options.token_learner and "tokens" not in returned else []
    inside = tuple((option, (name, *path_of(models[name], endpoint))) for option, name, endpoint in at)
    return Hybrid(options, tuple(models), tuple(models.values()), inside, num_classes)


def maps(model: Any) -> list[str]:
    """The endpoints that are the maps after its stages, in order."""
    numbers = [int(name.removeprefix("stage_")) for name in model.endpoints if re.fullmatch(r"stage_\d+", name)]
    return [f"stage_{i}" for i in sorted(numbers)]


def refuse(faults: list[str]) -> None:
    if faults:
        raise ConfigError("The hybrid cannot be built:\n  " + "\n  ".join(faults))
