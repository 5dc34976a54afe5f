"""How a model's measure falls as its test images are damaged: compressed, blurred, made smaller."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.images import degrade
from kdjax.train.evaluation import evaluate
from kdjax.train.setup import Learner

MOST = 384  # test images that are damaged: more would take longer and tell the same
STRENGTHS: dict[str, tuple[str, Callable, tuple[float, ...]]] = {  # kind -> what it is, how it is done, how strongly
    "jpeg": ("JPEG compression, quality", degrade.jpeg, (95.0, 85.0, 70.0, 50.0, 30.0)),
    "blur": ("blur, sigma in pixels", degrade.blur, (0.5, 1.0, 1.5, 2.0)),
    "resize": ("resizing there and back, factor", degrade.rescale, (0.9, 0.75, 0.5)),
}
NONE = "none"


def robustness(learner: Learner, variables: dict) -> dict[str, dict[str, float]]:
    """For each kind of damage that the task asks for the measure by its strength, on the same test images."""
    if not learner.task.damages:
        return {}
    variables, n = learner.place(variables), learner.dataset.sizes["test"]
    places = np.unique(np.linspace(0, n - 1, min(MOST, n)).round().astype(int))
    images = [name for name, field in learner.dataset.fields.items() if field.kind == "image"]

    def measured(change: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> float:
        return evaluate(learner, variables, "test", places, change)[0][learner.task.primary]

    def damaged(function: Callable, strength: Any, batch: dict[str, Any]) -> dict[str, Any]:
        return {**batch, **{name: np.asarray(stored(function)(batch[name], strength)) for name in images}}

    whole, falls = measured(), {}
    for kind in learner.task.damages:
        heading, function, strengths = STRENGTHS[kind]
        values = {f"{s:g}": measured(partial(damaged, function, s)) for s in strengths}
        falls[heading] = {NONE: whole, **values}
    return falls


@cache
def stored(function: Callable) -> Any:
    """The compiled damage of images as files have them, in whole numbers from 0 to 255."""

    def run(image: jax.Array, strength: Any) -> jax.Array:
        made = jax.vmap(function, (0, None))(image.astype(jnp.float32) / 255, strength)
        return jnp.clip(jnp.round(made * 255), 0, 255).astype(jnp.uint8)

    return jax.jit(run)
