"""Reading any layer of any model by its path, without touching the model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array

from kdjax.config import ConfigError, nearest

PACKS = "packs"  # the name of the mapped axis where a model takes one pack of examples at a time


@dataclass(frozen=True)
class Network:
    """A model as a step sees it: variables and a batch in, its endpoints and taps out.

    `taps` are module paths, told from endpoints by a slash ("image_encoder/blocks_5", at the top "/neck"); each output
    arrives under its path. `around` is entered while the model runs, which is how low-rank adapters reach its layers.
    `names` says which field of the batch an input of the model is, where they differ.
    """

    model: Any
    taps: tuple[str, ...] = ()
    around: Callable[[], AbstractContextManager] = nullcontext
    names: tuple[tuple[str, str], ...] = ()

    @property
    def packed(self) -> bool:
        """Whether a row of the batch is a pack of examples: the model is then mapped over the rows."""
        return any(spec.packed for spec in self.model.inputs.values())

    def view(self, batch: dict[str, Any]) -> list[Any]:
        """The fields of `batch` that the model reads, each as it takes it."""
        fields: dict[str, str] = dict(self.names)
        views = []
        for name, spec in self.model.inputs.items():
            field = str(fields.get(name, name))
            if field not in batch:
                raise ConfigError(
                    f"{type(self.model).__name__} reads {name!r}, and the batch has no {field!r}; "
                    f"{nearest(field, batch)}, or say which field it is with inputs={{{name!r}: FIELD}}"
                )
            views.append(spec.view(batch[field]))
        return views

    def __call__(
        self, variables: dict, batch: dict[str, Any], *, train: bool = False, key: Array | None = None
    ) -> tuple[dict[str, Array], dict]:
        """The outputs by name, and the new collections (as they were where `train` is False)."""
        state = {k: v for k, v in variables.items() if k not in ("params", "lora")}
        wanted = {path.strip("/") for path in self.taps}

        def keep(module: nn.Module, method: str) -> bool:
            return method == "__call__" and "/".join(module.path) in wanted

        def run(inputs: list[Any], key: Array | None) -> tuple[dict[str, Array], dict]:
            outputs, changed = self.model.apply(
                variables,
                *inputs,
                train=train,
                rngs={"dropout": key} if key is not None else None,
                capture_intermediates=keep if wanted else False,
                mutable=list(state) if train else [],
            )
            tapped = {path: _captured(changed["intermediates"], path) for path in self.taps}
            return {**outputs, **tapped}, {k: changed.get(k, v) for k, v in state.items()}

        inputs = self.view(batch)
        with self.around():
            if not self.packed:
                return run(inputs, key)
            rows = jax.tree.leaves(inputs)[0].shape[0]
            if rows == 1:  # a map over one pack costs XLA's CPU programs a tenth of their speed
                outputs, collections = run(jax.tree.map(lambda x: x[0], inputs), key)
                return jax.tree.map(lambda x: x[None], outputs), collections
            keys = None if key is None else jax.random.split(key, rows)
            return jax.vmap(run, out_axes=(0, None), axis_name=PACKS)(inputs, keys)

    def shapes(self, variables: dict, batch: dict) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes that the network gives for such a batch; refuses an unknown tap and names those there are."""
        known = self.paths(variables, batch) if self.taps else []
        for path in self.taps:
            if path.strip("/") not in known:
                named = [name if "/" in name else f"/{name}" for name in known]
                raise ConfigError(f"{type(self.model).__name__} has no module {path!r}; {nearest(path, named)}")
        return jax.eval_shape(lambda v, b: self(v, b)[0], variables, batch)

    def paths(self, variables: dict, batch: dict) -> list[str]:
        """The path of every module of the model that returns one array."""

        def run(variables: dict, batch: dict) -> dict:
            inputs = self.view(batch)
            inputs = jax.tree.map(lambda x: x[0], inputs) if self.packed else inputs
            return self.model.apply(variables, *inputs, capture_intermediates=True, mutable=["intermediates"])[1]

        paths: list[str] = []

        def walk(tree: dict, path: tuple[str, ...]) -> None:
            for name, value in tree.items():
                if name == "__call__":
                    if path and hasattr(value[0], "shape"):
                        paths.append("/".join(path))
                else:
                    walk(value, (*path, name))

        walk(jax.eval_shape(run, variables, batch)["intermediates"], ())
        return paths


def _captured(tree: dict, path: str) -> Array:
    for name in path.strip("/").split("/"):
        tree = tree[name]
    return tree["__call__"][0]
