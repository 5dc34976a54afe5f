"""look.html: the data as a student will see them, before anything is trained."""

from collections import Counter
from dataclasses import dataclass, field
from html import escape

import numpy as np
from jaxtyping import Int, UInt8

from kdjax.report import tables
from kdjax.report.figures import curves, legend
from kdjax.report.figures.examples import inline
from kdjax.report.page import document, tiles_html

HEADINGS = {"train": "Training", "val": "Validation", "test": "Test"}
SIDE = 240  # pixels of a picture on the page


@dataclass(frozen=True)
class Shown:
    """An example at the size that is trained on. Without a mask nothing is drawn; `label` is the name of its class, or
    those of its labels."""

    name: str
    image: UInt8[np.ndarray, "s s 3"] | None
    mask: Int[np.ndarray, "s s"] | None = None
    label: str = ""
    known: bool = True  # False: its label may not be used
    augmented: tuple[UInt8[np.ndarray, "s s 3"], Int[np.ndarray, "s s"] | None] | None = None
    caption: str = ""


@dataclass(frozen=True)
class Split:
    """What there is to tell of a split."""

    size: int
    labelled: int
    examples: list[Shown]
    pixels: Int[np.ndarray, " p"]  # of each class; empty without masks
    images: Int[np.ndarray, " k"]  # with that class in them, label after label
    counted: int  # the examples that these two were counted over
    lengths: dict[str, Int[np.ndarray, " m"]] = field(default_factory=dict)  # of its captions, by each tokenizer


@dataclass(frozen=True)
class Look:
    """Everything on the page."""

    title: str
    splits: dict[str, Split]
    labels: dict[str, list[str]]  # the names of the classes of each, "" where there is one alone; the background first
    masks: bool
    weights: tuple[float, ...]  # of the classes, where the task weighs them
    sizes: Counter  # (height, width) of the files, or of what is made
    image_size: int
    augment: dict[str, float]
    notes: list[str]
    item: str = "image"

    @property
    def class_names(self) -> list[str]:
        return [name for names in self.labels.values() for name in names]


def render(look: Look) -> str:
    total, item = sum(split.size for split in look.splits.values()), look.item
    several = [f"{len(names)} classes{label and f' of {label}'}" for label, names in look.labels.items()]
    counts = f"{total:,} {item}s, {' and '.join(several)}{', the background one of them' if look.masks else ''}"
    labelled = look.splits["train"].labelled / max(look.splits["train"].size, 1)
    tiles = [
        *((f"{split.size:,}", f"{HEADINGS[name].lower()} {item}s") for name, split in look.splits.items()),
        (f"{labelled:.0%}", f"of the training {item}s labelled"),
    ]
    sections, begin = [], 0
    for label, names in look.labels.items():
        sections.append((label.capitalize() or "Classes", _classes(look, slice(begin, begin + len(names)))))
        begin += len(names)
    if look.sizes:
        tiles.append((f"{look.image_size} × {look.image_size}", "pixels as the student sees them"))
        sections.append(("Sizes", _sizes(look)))
    if any(split.lengths for split in look.splits.values()):
        sections.append(("Captions", _captions(look)))
    sections += [(HEADINGS[name], _split(look, name, split)) for name, split in look.splits.items()]
    return document(f"{look.title}: a look at the data", f"{counts}.", tiles_html(tiles), sections)


def _swatches(look: Look) -> dict[str, legend.Colour]:
    return legend.colours(len(look.class_names), look.class_names) if look.masks else {}


def _classes(look: Look, of_label: slice) -> str:
    """How often each class of a label is there; what is nowhere in a split stands out."""
    whole = look.splits["train"].pixels
    head = ["class", *([] if not look.masks else ["share of the training pixels"])]
    head += [f"{HEADINGS[name].lower()} {look.item}s with it" for name in look.splits] + (
        ["weight"] if look.weights else []
    )
    swatches, lines = _swatches(look), []
    for k in range(len(look.class_names))[of_label]:
        name = look.class_names[k]
        cells = [f"<td>{100 * whole[k] / max(whole.sum(), 1):.2f} %</td>"] if look.masks else []
        images = [split.images[k] for split in look.splits.values()]
        cells += [f"<td>{n:,}</td>" if n else '<td class="none">none</td>' for n in images]
        cells += [f"<td>{look.weights[k]:.2f}</td>"] if look.weights else []
        colour = f'<i style="background:rgb{swatches[name]}"></i>' if name in swatches else ""
        values = "".join(cells)
        lines.append(f'<tr><th scope="row">{colour}{escape(name)}</th>{values}</tr>')
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    table = f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    parts = [f"{HEADINGS[n].lower()} {s.counted:,} of {s.size:,}" for n, s in look.splits.items() if s.counted < s.size]
    note = f'<p class="note">Counted over labelled {look.item}s: {escape(", ".join(parts))}.</p>' if parts else ""
    return table + note


def _sizes(look: Look) -> str:
    most = look.sizes.most_common(6)
    rows = [("", [f"{w} × {h}", f"{n:,}", ""]) for (h, w), n in most]
    rest = sum(look.sizes.values()) - sum(n for _, n in most)
    rows += [("", [f"{len(look.sizes) - len(most)} other sizes", f"{rest:,}", ""])] if rest else []
    square = sum(n for (h, w), n in look.sizes.items() if h == w)
    told = [f"Every image becomes {look.image_size} × {look.image_size} pixels, antialiased."]
    if square < sum(look.sizes.values()):
        told.append(f"{sum(look.sizes.values()) - square:,} are not square: they are squeezed.")
    small = sum(n for (h, w), n in look.sizes.items() if min(h, w) < look.image_size)
    told += [f"{small:,} are smaller than that and are enlarged."] if small else []
    told += _notes(look) if look.item == "image" else []
    notes = f'<p class="note">{escape(" ".join(told))}</p>'
    return tables.table_html(["width × height", "images", ""], rows) + notes


def _captions(look: Look) -> str:
    """How many tokens captions have, by each tokenizer; and what was noted of the records."""
    head = ["tokenizer", "split", "captions", "tokens on average", "tokens of the longest", ""]
    rows = [
        ("", [whose or "the only one", HEADINGS[name].lower(), f"{len(n):,}", *_average_and_longest(n), ""])
        for name, split in look.splits.items()
        for whose, n in split.lengths.items()
    ]
    notes = f'<p class="note">{escape(" ".join(_notes(look)))}</p>' if look.notes else ""
    return tables.table_html(head, rows) + notes


def _average_and_longest(lengths: Int[np.ndarray, " m"]) -> list[str]:
    return [f"{lengths.mean():.1f}", f"{lengths.max():,}"] if len(lengths) else [tables.MISSING] * 2


def _notes(look: Look) -> list[str]:
    return [f"{note[:1].upper()}{note[1:]}." for note in look.notes]


def _split(look: Look, name: str, split: Split) -> str:
    told = f"{len(split.examples)} of {split.size:,}"
    if name == "train":
        applied = ", ".join(f"{k} {v:g}" for k, v in look.augment.items() if v)
        told += f"; on the right as the first epoch augments it ({applied})" if applied else "; nothing is augmented"
        told += f"; {split.labelled:,} labels may be used" if split.labelled < split.size else ""
    swatches = legend.html(_swatches(look)) if look.masks else ""
    figures = "".join(_example(look, example) for example in split.examples)
    layout = " captioned" if any(example.caption for example in split.examples) else ""
    layout = " pairs" if any(example.augmented for example in split.examples) else layout
    return f'{swatches}<p class="note">{escape(told)}.</p><div class="looks{layout}">{figures}</div>'


def _example(look: Look, example: Shown) -> str:
    pictures = [] if example.image is None else [_picture(example.image, example.mask)]
    pictures += [_picture(*example.augmented)] if example.augmented else []
    captions = [example.name, f"{example.name}, augmented"]
    images = "".join(inline(p, caption) for p, caption in zip(pictures, captions, strict=False))
    if example.mask is not None:
        inside = [look.class_names[k] for k in np.unique(example.mask) if k]
        label = ", ".join(inside) or "nothing but background"
    else:
        label = example.label
    label = label if example.known else "label not used"
    caption = f"<p>{escape(example.caption)}</p>" if example.caption else ""
    return f"<figure>{images}<figcaption><b>{escape(label)}</b>{escape(example.name)}{caption}</figcaption></figure>"


def _picture(image: UInt8[np.ndarray, "s s 3"], mask: Int[np.ndarray, "s s"] | None) -> UInt8[np.ndarray, "t t 3"]:
    large = curves.resize(image, SIDE)
    return large if mask is None else curves.overlay(large, curves.resize_mask(mask, SIDE))
