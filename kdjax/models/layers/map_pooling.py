"""How the last map of a network becomes a vector, and this a class."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.config import ConfigError, nearest
from kdjax.models.layers.dense import dense

POOLS: Mapping[str, Callable[[Float[Array, "b h w c"]], Float[Array, "b d"]]] = {
    "mean": lambda x: x.mean((1, 2)),
    # MedPix distillation's slip: `last_hidden_state[:, 0]`, a transformer's class token, is the first channel of a map.
    "channel": lambda x: x[..., 0].reshape(len(x), -1),
}


def pool_faults(name: str) -> list[str]:
    return [] if name in POOLS else [f"pool: no {name!r}; {nearest(name, POOLS)}"]


def check_classes(count: int, pool: str) -> None:
    """Refuses so many classes."""
    if count < 0:
        raise ConfigError(f"num_classes: expected at least 0, for features alone, found {count}")
    if count and pool == "channel":
        raise ConfigError(
            f"num_classes: expected 0 where pool is 'channel', since its features grow with the image, found {count}; "
            "classify the mean, pool='mean'"
        )


def pooled(last: Float[Array, "b h w c"], options: Any, classes: int, train: bool) -> dict[str, Float[Array, "b _"]]:
    """`features`, and with classes `logits`, by a dense layer of the module that asks."""
    out = {"features": POOLS[options.pool](last)}
    if classes:
        x = nn.Dropout(options.dropout, deterministic=not train)(out["features"])
        out["logits"] = dense(classes, dtype=options.dtype, name="classifier")(x)
    return out
