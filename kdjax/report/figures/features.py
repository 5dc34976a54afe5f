"""Feature maps of a few examples beside their images, as a section of the report."""

from html import escape

import numpy as np
from jaxtyping import Float, Float64, UInt8
from PIL import Image

from kdjax.report.figures import curves
from kdjax.report.figures.examples import panel

_SIDE = 224  # pixels of the longer side of a panel

Map = Float[np.ndarray, "_ _ _"]  # height, width and channels of their own
Colours = Float64[np.ndarray, "_ _ 3"]


def maps(images: UInt8[np.ndarray, "n h w 3"] | Float[np.ndarray, "n h w 3"], sides: dict[str, list[Map]]) -> str:
    """Each image, bytes or floats in [0, 1], and beside it the feature map [h', w', c] that every model has of it.

    The colours are the first three principal components of a model's features, over all of these images. Those of the
    second model and of the following are turned to resemble the first one's as nearly as a rotation can: a principal
    component has no colour of its own, and so the same thing has the same colour wherever models agree.
    """
    if not len(images) or not sides:
        return ""
    components = {title: _components(features) for title, features in sides.items()}
    first = next(iter(components.values()))
    coloured = {title: _bytes(_turned(parts, first)) for title, parts in components.items()}
    rows = []
    for i, image in enumerate(images):
        if image.dtype != np.uint8:
            image = (255 * np.clip(image, 0, 1)).round().astype(np.uint8)
        shown = curves.resize(image, _SIDE)
        cells = [panel(shown, f"image {i + 1}", "image")]
        for title, pictures in coloured.items():
            # Nearest neighbours show how fine the map really is.
            picture = Image.fromarray(pictures[i]).resize(shown.shape[1::-1], Image.Resampling.NEAREST)
            shape = " × ".join(map(str, sides[title][i].shape))
            caption = f"{escape(title)}<br>{shape}"
            cells.append(panel(np.asarray(picture), f"image {i + 1}: features of {title}", caption))
        rows.append(f'<div class="panels">{"".join(cells)}</div>')
    note = "Red, green and blue are the first three principal components of the features of each model."
    return "".join(rows) + f'<p class="note">{note}</p>'


def _components(features: list[Map]) -> list[Colours]:
    """The first three principal components of all maps together, 0 where there is none.

    The first has variance 1, the others the root of their share of its variance: equal ones would show noise.
    """
    from sklearn.decomposition import PCA  # takes a second to import, and training needs none of it

    rows = np.concatenate([part.reshape(-1, part.shape[-1]) for part in features]).astype(np.float64)
    components = np.zeros((len(rows), 3))
    if 0 < np.ptp(rows, axis=0).max() < np.inf:  # else the model collapsed or diverged
        parts = PCA(min(3, *rows.shape), random_state=0).fit_transform(rows)
        spread = parts.std(axis=0)
        real = spread > 1e-6 * spread[0]  # the others are rounding
        components[:, : parts.shape[1]][:, real] = parts[:, real] / np.sqrt(spread[real] * spread[0])
    ends = np.cumsum([part.shape[0] * part.shape[1] for part in features])[:-1]
    split = np.split(components, ends)
    return [part.reshape(*source.shape[:2], 3) for part, source in zip(split, features, strict=True)]


def _turned(components: list[Colours], reference: list[Colours]) -> list[Colours]:
    """Rotated, or mirrored, to lie as near to the reference as possible (orthogonal Procrustes)."""
    from scipy.linalg import orthogonal_procrustes

    if components is reference:
        return components
    resized = [_resized(part, *target.shape[:2]) for part, target in zip(components, reference, strict=True)]
    ours, theirs = (np.concatenate([part.reshape(-1, 3) for part in side]) for side in (resized, reference))
    rotation, _ = orthogonal_procrustes(ours, theirs)
    return [part @ rotation for part in components]


def _resized(part: Colours, height: int, width: int) -> Colours:
    planes = [Image.fromarray(part[..., c].astype(np.float32)) for c in range(3)]
    resized = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) for plane in planes]
    return np.stack(resized, axis=-1).astype(np.float64)


def _bytes(components: list[Colours]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Two standard deviations either way span the colours."""
    return [(255 * np.clip(0.5 + part / 4, 0, 1)).round().astype(np.uint8) for part in components]
