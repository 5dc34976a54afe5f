"""The Q network of a deep Q-learning agent (Mnih et al., Nature 518, 2015)."""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
from jaxtyping import Array, Float

from kdjax.config import ConfigError
from kdjax.models.inputs import ArrayInput
from kdjax.models.layers.dense import dense
from kdjax.models.options import options_of

VARIANTS: dict[str, dict[str, Any]] = {"large": {"hidden": 576, "layers": 3}, "small": {"hidden": 160, "layers": 2}}

PARAMETERS = {"large": 689_493, "small": 32_341}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The dimensions of a Q network and how it computes."""

    hidden: int
    layers: int
    state: int = 15  # numbers that it reads
    actions: int = 21
    dropout: float = 0.2
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        faults = []
        for name in ("hidden", "layers", "state", "actions"):
            if getattr(self, name) < 1:
                faults.append(f"{name}: expected at least 1, found {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            faults.append(f"dropout: expected a rate in [0, 1), found {self.dropout}")
        if faults:
            raise ConfigError("The Q network cannot be built:\n  " + "\n  ".join(faults))


class Dqn(nn.Module):
    """States -> `q` [..., a], the reward that each action promises. Module names follow the original's: `net_0`."""

    options: Options

    endpoints: ClassVar[tuple[str, ...]] = ("q",)

    @property
    def inputs(self) -> dict[str, ArrayInput]:
        return {"state": ArrayInput((self.options.state,))}

    @nn.compact
    def __call__(self, state: Float[Array, "*b s"], train: bool = False) -> dict[str, Array]:
        o, x = self.options, state
        for i in range(0, 4 * o.layers, 4):  # linear, norm, ReLU, dropout
            x = dense(o.hidden, dtype=o.dtype, name=f"net_{i}")(x)
            x = nn.relu(nn.LayerNorm(epsilon=1e-5, dtype=o.dtype, name=f"net_{i + 1}")(x))
            x = nn.Dropout(o.dropout, deterministic=not train)(x)
        return {"q": dense(o.actions, dtype=o.dtype, name=f"net_{4 * o.layers}")(x)}


def build_dqn(variant: str = "large", **overrides) -> Dqn:
    """`overrides` are fields of Options."""
    return Dqn(options_of(Options, "Q network", VARIANTS, variant, overrides))
