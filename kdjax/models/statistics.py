"""What running statistics tell of a model: a BatchNorm remembers how much its inputs varied in training.

Options such as the preprocessing leave no trace in the shape of any tensor, and a model that is built with another one
than its weights were trained with computes nonsense in silence. But then its BatchNorms get inputs that vary much more,
or much less, than they remember. A model names such options by the attribute `choices`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import registry
from kdjax.config import ConfigError, Model
from kdjax.models.layers.batch_norm import BatchNorm

MOST = 8  # images that are looked at
FITS = 1.5  # the largest distance, see below, that pictures of another kind than those of training make up for
ALIKE = 1.0  # distances that differ by less than this tell nothing
APART = 2.0  # a warning asks for so much more than the best one's, and for twice as much
SHOWN = 3  # BatchNorms whose numbers are told
EPSILON = 1e-5  # beside which a variance is none

Deviations = Mapping[str, np.ndarray]  # BatchNorm -> log(variance of its inputs / running variance) of each channel


@dataclass(frozen=True)
class Judgement:
    """How each value of an option fits the running statistics of some weights on some images.

    Its distance is the root of the mean square of all logarithms, each BatchNorm counting as much as the others.
    """

    option: str
    images: int
    deviations: Mapping[str, Deviations]  # value -> of a model that is built with it

    @property
    def distances(self) -> dict[str, float]:
        """The best first."""
        found = {value: distance(deviations) for value, deviations in self.deviations.items()}
        return dict(sorted(found.items(), key=lambda item: item[1]))

    @property
    def alike(self) -> tuple[str, ...]:
        """The best value, and those that cannot be told from it."""
        least = min(self.distances.values())
        return tuple(value for value, found in self.distances.items() if found < least + ALIKE)

    @property
    def fitting(self) -> tuple[str, ...]:
        """As `alike`, () where the images are nothing like those of training whatever the value."""
        return self.alike if min(self.distances.values()) < FITS else ()

    def refutes(self, value: str) -> bool:
        least, found = min(self.distances.values()), self.distances[value]
        return found > least + APART and found > 2 * least

    def mismatch(self, value: str) -> str:
        """A sentence on a value that these weights were not trained with; "" if there is nothing against it."""
        if not self.refutes(value):
            return ""
        numbers = f"{self._numbers(value)}; with {self.alike[0]!r} it is {self._numbers(self.alike[0])}"
        best = f"build the model with {self.option}={self.alike[0]!r}"
        if len(self.alike) > 1:
            others = ", ".join(map(repr, self.alike[1:]))
            best += f", or with {others}: the statistics do not tell these apart"
        return (
            f"{self.option}={value!r} is not what these weights were trained with: on {_images(self.images)}, the mean "
            f"log(variance of the inputs / that of training) of BatchNorms, which should be near 0, is {numbers}. So "
            f"{best}"
        )

    def summary(self) -> str:
        """The distances of all values, and what follows from them."""
        numbers = ", ".join(f"{value} {found:.2f}" for value, found in self.distances.items())
        verdict = " or ".join(self.fitting) + " fits" if self.fitting else "none fits"
        if len(self.fitting) > 1:
            verdict = f"{', '.join(self.fitting)} fit about equally and cannot be told apart"
        told = f"{verdict}: by {_images(self.images)}, the inputs of BatchNorms are from those of training as far as"
        return f"{self.option}: {told} {numbers} (root mean square of log variance ratios)"

    def _numbers(self, value: str) -> str:
        means = {name: float(found.mean()) for name, found in self.deviations[value].items()}
        shown = [f"{mean:.2f} at {name}" for name, mean in list(means.items())[:SHOWN]]
        more = f" and {len(means) - SHOWN} more" if len(means) > SHOWN else ""
        return ", ".join(shown) + more


def mismatch(model: Model, variables: Mapping, images: Any) -> str:
    """A warning where an option of the model is not what `variables` were trained with, "" where all seems well.

    `images` are [b, h, w, 3], uint8 or floats in [0, 1], of the kind that the model is to see; a few will do.
    """
    module = registry.build("models", model.name, model.options)
    choices = getattr(module, "choices", {})
    if not choices or distance(deviations(model, variables, images)) < FITS:
        return ""
    found = {option: judge(model, variables, images, option) for option in choices}
    return "\n".join(filter(None, (one.mismatch(getattr(module.options, name)) for name, one in found.items())))


def judge(model: Model, variables: Mapping, images: Any, option: str) -> Judgement:
    """Of every value of the option; one that the images are not of the right size for is left out."""
    found = {}
    for value in registry.build("models", model.name, model.options).choices[option]:
        try:
            found[value] = deviations(Model(model.name, **{**model.options, option: value}), variables, images)
        except ConfigError:  # such as odd sides
            continue
    return Judgement(option, min(len(images), MOST), found)


def deviations(model: Model, variables: Mapping, images: Any) -> Deviations:
    """Of a model that is not training, in the order in which it computes."""
    module, found = registry.build("models", model.name, model.options), {}
    (spec,) = module.inputs.values()
    images = jnp.asarray(images[:MOST])
    images = images / jnp.float32(255) if images.dtype == jnp.uint8 else images

    def look(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if context.method_name == "__call__" and isinstance(context.module, BatchNorm | nn.BatchNorm):
            x = args[0].astype(jnp.float32)
            stored = context.module.get_variable("batch_stats", "var")
            ratio = (x.var(axis=tuple(range(x.ndim - 1))) + EPSILON) / (stored + EPSILON)
            found["/".join(context.module.path)] = np.asarray(jnp.log(ratio))
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        module.apply(jax.tree.map(jnp.asarray, dict(variables)), spec.view(images))
    return found


def distance(deviations: Deviations) -> float:
    return math.sqrt(np.mean([np.mean(np.square(found)) for found in deviations.values()])) if deviations else 0.0


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
