"""How a model's measures fall as its test data are damaged: images compressed, blurred, made smaller; or all parts of
its input gone but one."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.data.images import degrade
from kdjax.report import tables
from kdjax.train.evaluation import evaluate
from kdjax.train.setup import Learner

MOST = 384  # test images that are damaged: more would take longer and tell the same
STRENGTHS: dict[str, tuple[str, Callable, tuple[float, ...]]] = {  # kind -> what it is, how it is done, how strongly
    "jpeg": ("JPEG compression, quality", degrade.jpeg, (95.0, 85.0, 70.0, 50.0, 30.0)),
    "blur": ("blur, sigma in pixels", degrade.blur, (0.5, 1.0, 1.5, 2.0)),
    "resize": ("resizing there and back, factor", degrade.rescale, (0.9, 0.75, 0.5)),
}
NONE = "none"
THERE = "_there"  # ends the name of the flag that says for which examples a part of the input is there

Batch = dict[str, Any]


class Damage(NamedTuple):
    """What is done to the batches of a test, and what is told of it."""

    changes: dict[str, Callable[[Batch], Batch]]  # by what each is called, such as its strength
    measures: dict[str, str]  # heading -> the measure that stands under it
    none: str = NONE  # what a test without it is called
    most: int | None = MOST  # test examples, evenly taken; None: all


def robustness(learner: Learner, variables: dict) -> dict[str, dict[str, float]]:
    """Under each heading of the damages that the task asks for a measure by what was done, on the same examples."""
    falls: dict[str, dict[str, float]] = {}
    damages = [damage for kind in learner.task.damages if (damage := KINDS[kind](learner)).changes]
    if not damages:
        return falls
    variables, n = learner.place(variables), learner.dataset.sizes["test"]

    def measured(most: int | None, change: Callable[[Batch], Batch] = dict) -> dict[str, float]:
        places = None if most is None else np.unique(np.linspace(0, n - 1, min(most, n)).round().astype(int))
        return evaluate(learner, variables, "test", places, change)[0]

    whole = cache(measured)
    for damage in damages:
        values = {damage.none: whole(damage.most)}
        values |= {name: measured(damage.most, change) for name, change in damage.changes.items()}
        for heading, measure in damage.measures.items():
            falls[heading] = {name: measures[measure] for name, measures in values.items()}
    return falls


def of_images(kind: str, learner: Learner) -> Damage:
    """All images of the batch, each strength in turn."""
    heading, function, strengths = STRENGTHS[kind]
    images = [name for name, field in learner.dataset.fields.items() if field.kind == "image"]

    def damaged(strength: float, batch: Batch) -> Batch:
        return {**batch, **{name: np.asarray(stored(function)(batch[name], strength)) for name in images}}

    changes = {f"{strength:g}": partial(damaged, strength) for strength in strengths}
    return Damage(changes, {heading: learner.task.primary})


def one_part(learner: Learner) -> Damage:
    """Of a model that reads several parts, an image and a text, each in turn with all others absent."""
    there: list[str] = [name for name in learner.model.inputs if name.endswith(THERE)]
    flags = [learner.stage.inputs.get(name, name) for name in there]
    parts = {flag.removesuffix(THERE): flag for flag in flags}
    if len(parts) < 2:
        return Damage({}, {})

    def alone(part: str, batch: Batch) -> Batch:
        return {**batch, **{flag: np.zeros_like(batch[flag]) for name, flag in parts.items() if name != part}}

    changes = {f"{part} alone": partial(alone, part) for part in parts}
    headings = {tables.heading(measure): measure for measure in learner.task.measures}
    return Damage(changes, headings, none=" and ".join(parts), most=None)


KINDS: dict[str, Callable[[Learner], Damage]] = {
    **{kind: partial(of_images, kind) for kind in STRENGTHS},
    "one_part": one_part,
}


@cache
def stored(function: Callable) -> Any:
    """The compiled damage of images as files have them, in whole numbers from 0 to 255."""

    def run(image: jax.Array, strength: Any) -> jax.Array:
        made = jax.vmap(function, (0, None))(image.astype(jnp.float32) / 255, strength)
        return jnp.clip(jnp.round(made * 255), 0, 255).astype(jnp.uint8)

    return jax.jit(run)
