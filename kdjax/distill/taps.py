"""Reading any layer of any model by its path, without touching the model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array

from kdjax.config import ConfigError, nearest
from kdjax.distill.views import view


@dataclass(frozen=True)
class Network:
    """A model as a step sees it: variables and a batch in, its endpoints and taps out.

    `taps` are module paths ("image_encoder/blocks_5"); each output arrives under its path. `around` is entered while
    the model runs, which is how low-rank adapters reach its layers.
    """

    model: Any
    taps: tuple[str, ...] = ()
    around: Callable[[], AbstractContextManager] = nullcontext

    def __call__(
        self, variables: dict, batch: dict[str, Array], *, train: bool = False, key: Array | None = None
    ) -> tuple[dict[str, Array], dict]:
        """The outputs by name, and the new `batch_stats` (as they were where `train` is False)."""
        wanted = set(self.taps)

        def keep(module: nn.Module, method: str) -> bool:
            return method == "__call__" and "/".join(module.path) in wanted

        with self.around():
            outputs, changed = self.model.apply(
                variables,
                *view(self.model, batch),
                train=train,
                rngs={"dropout": key} if key is not None else None,
                capture_intermediates=keep if wanted else False,
                mutable=["batch_stats"] if train else [],
            )
        stats = changed.get("batch_stats", variables.get("batch_stats", {}))
        return {**outputs, **{path: _captured(changed["intermediates"], path) for path in self.taps}}, stats

    def shapes(self, variables: dict, batch: dict) -> dict[str, jax.ShapeDtypeStruct]:
        """What the network gives for such a batch, nothing computed; an unknown tap is refused with what there is."""
        known = module_paths(self.model, variables, batch) if self.taps else []
        for path in self.taps:
            if path not in known:
                raise ConfigError(f"{type(self.model).__name__} has no module {path!r}; {nearest(path, known)}")
        return jax.eval_shape(lambda v, b: self(v, b)[0], variables, batch)


def module_paths(model: Any, variables: dict, batch: dict) -> list[str]:
    """The path of every module that returns one array."""

    def run(variables: dict, batch: dict) -> dict:
        kept = model.apply(variables, *view(model, batch), capture_intermediates=True, mutable=["intermediates"])[1]
        return kept["intermediates"]

    paths: list[str] = []

    def walk(tree: dict, path: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if name == "__call__":
                if path and hasattr(value[0], "shape"):
                    paths.append("/".join(path))
            else:
                walk(value, (*path, name))

    walk(jax.eval_shape(run, variables, batch), ())
    return paths


def _captured(tree: dict, path: str) -> Array:
    for name in path.split("/"):
        tree = tree[name]
    return tree["__call__"][0]
