"""The most confident mistakes of a classifier: the images that it is surest of, and wrong about."""

from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from jaxtyping import Float, Integer, UInt8

from kdjax.report.figures import curves
from kdjax.report.figures.examples import inline
from kdjax.report.tables import percent

MOST = 24  # images
SIDE = 160  # pixels of the longer side of one


def surest(
    labels: Integer[np.ndarray, " n"], predicted: Integer[np.ndarray, " n"], probabilities: Float[np.ndarray, "n k"]
) -> Integer[np.ndarray, " m"]:
    """The examples with a label that is not what was predicted, the surest first."""
    wrong = np.flatnonzero((labels >= 0) & (labels != predicted) & np.isfinite(probabilities).all(axis=1))
    return wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")]


def mistakes(
    images: Callable[[int], UInt8[np.ndarray, "h w 3"]],
    labels: Integer[np.ndarray, " n"],
    predicted: Integer[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n k"],
    names: Sequence[str],
    called: list[str] | None = None,
) -> str:
    """Each with the answer, how sure the model is, the truth, what it gave that, and the image's name in `called`.

    `images` gives the image of an example; labels of -1 are not known. "" without a mistake.
    """
    wrong, known = surest(labels, predicted, probabilities), int((labels >= 0).sum())
    if not len(wrong):
        return ""
    figures = []
    for i in wrong[:MOST].tolist():
        answer, truth = int(predicted[i]), int(labels[i])
        said = escape(f"{names[answer]}: {percent(float(probabilities[i, answer]))}")
        told = escape(f"is {names[truth]}: {percent(float(probabilities[i, truth]))}")
        name = f"<br>{escape(called[i])}" if called else ""
        picture = inline(curves.resize(images(i), SIDE), f"{names[truth]}, taken for {names[answer]}")
        figures.append(f"<figure>{picture}<figcaption><b>{said}</b>{told}{name}</figcaption></figure>")
    first = f"the {len(figures)} surest of " if len(figures) < len(wrong) else ""
    note = f"Shown: {first}{len(wrong):,} mistakes among {known:,} images, the surest first."
    return f'<p class="note">{note}</p><div class="looks">{"".join(figures)}</div>'
