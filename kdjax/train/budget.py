"""How large a batch fits into a budget of bytes, by asking the compiler.

What it counts is not all that a process takes. Measured on a CPU as the growth of the resident set, a step of the large
GAT on real CAN windows takes 112 MiB where 97 are counted (batch 32), 253 of 227 (128) and 802 of 734 (512): 9 to 16 %
more; the first one takes the state (41 MiB) once more, since arrays that came from numpy cannot be given away. A safety
of 0.8 covers that; the interpreter and its libraries, half a gigabyte, come on top.
"""

from collections.abc import Callable

from kdjax.config import ConfigError
from kdjax.train.setup import Learner

TRIES = 6  # sizes that are compiled at most


def fit(build: Callable[[int], Learner], budget: int, unit: int, most: int, safety: float = 1.0) -> int:
    """The largest batch size, a multiple of `unit` up to `most`, with which the stage's training step takes at most
    the share `safety` of `budget` bytes on each device. `build` makes the stage ready for a batch size."""
    return fitting(lambda size: step_bytes(build(size)), int(safety * budget), unit, most)


def fitting(measure: Callable[[int], int], budget: int, unit: int, most: int) -> int:
    """The largest multiple of `unit` up to `most` whose `measure`, which grows with it, is within the budget.

    Two sizes are measured; the line through them says the answer, which is measured too, and if it does not fit or
    more should, the line is drawn anew. Exact where bytes grow in proportion, and never beyond the budget.
    """
    known: dict[int, int] = {}  # bytes, by the number of units

    def fits(units: int) -> bool:
        known[units] = known.get(units) or measure(units * unit)
        return known[units] <= budget

    top = most // unit
    if top < 1:
        raise ConfigError(f"budget: expected batches of {unit} at least, found at most {most}; raise it")
    if not fits(1):
        raise ConfigError(
            f"budget: a batch of {unit} takes {known[1]:,} bytes, and {budget:,} are allowed; allow more, compute in "
            "bfloat16, recompute in the backward pass (remat=True), or take a smaller model"
        )
    low, high, guess = 1, top + 1, min(4, top)  # low fits; high does not, or is beyond the end
    while guess not in known and len(known) < TRIES:
        if fits(guess):
            low = max(low, guess)
        else:
            high = min(high, guess)
        a, b = (low, high) if high in known else sorted(known)[-2:]
        rise = known[b] - known[a]
        guess = a + (budget - known[a]) * (b - a) // rise if rise > 0 else top
        guess = min(max(guess, low), high - 1)
    return low * unit


def step_bytes(learner: Learner) -> int:
    """What a training step takes on each device by the compiler's count: the state, the teachers, the batch, what lies
    between, and results that do not take the place of the old state. Nothing is computed, no array is made.
    """
    analysis = learner.train_fn.lower(*learner.arguments).compile().memory_analysis()
    if analysis is None:
        raise ConfigError("budget: this backend does not tell how many bytes a program takes; set data.batch_size")
    sizes = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes, analysis.output_size_in_bytes
    return sum(sizes) - analysis.alias_size_in_bytes
