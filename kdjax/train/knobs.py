"""What differs between students of one program only in numbers: an argument of the step, never compiled in.

A sweep is `jax.vmap` of a step over (state, knobs), the batch and the teachers shared; one student is a sweep of one.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.distill.terms import BoundTerm

Knobs = dict[str, Any]


def start(terms: Iterable[BoundTerm], seed: int, over: str = "") -> Knobs:
    """The numbers of a stage's terms:

    lr, a factor of the scheduled learning rate; weights {term}; args {term: {argument: number}}, the arguments of
    losses that are floats; measures {name}, what validation has last measured, for schedules over it (`over` names one
    of the learning rate), and -inf before the first validation; seed.
    """
    terms = list(terms)
    measures = {t.term.schedule.over for t in terms if t.term.schedule and t.term.schedule.over} | ({over} - {""})
    return {
        "lr": np.float32(1.0),
        "weights": {t.name: np.float32(t.term.weight) for t in terms},
        "args": {t.name: {k: np.float32(v) for k, v in t.numbers().items()} for t in terms},
        "measures": {name: np.float32(-np.inf) for name in sorted(measures)},
        "seed": np.uint32(seed % 2**32),
    }


def measured(knobs: Knobs, values: dict[str, float]) -> Knobs:
    """The knobs after a validation."""
    return {**knobs, "measures": {name: np.float32(values[name]) for name in knobs["measures"]}}


def stacked(several: list[Knobs]) -> Knobs:
    """The knobs of a sweep, each number with a leading axis."""
    return jax.tree.map(lambda *numbers: jnp.stack(list(map(jnp.asarray, numbers))), *several)
