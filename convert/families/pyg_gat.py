"""Stacks of graph attention: PyTorch Geometric's GATConv and GATv2Conv, and the layers of pytorch-GAT."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.family import ConvertError
from convert.table import Row, linear, same


def conv_rows(conv: str) -> tuple[Row, ...]:
    """Of a GATConv or a GATv2Conv of PyG."""
    return (
        *linear(f"{conv}.lin", f"{conv}.lin_l", f"{conv}.lin_r"),
        *same(f"{conv}.att_src", f"{conv}.att_dst", f"{conv}.att", f"{conv}.bias"),
    )


def conv_options(shapes: Mapping[str, tuple[int, ...]], at: str) -> dict[str, Any]:
    """What the shapes of the convolution at this name tell."""
    conv = "gatv2" if f"{at}.att" in shapes else "gat"
    _, heads, hidden = shapes[f"{at}.att" if conv == "gatv2" else f"{at}.att_src"]
    return {"conv": conv, "heads": heads, "hidden": hidden}


def width_into(shapes: Mapping[str, tuple[int, ...]], at: str) -> int:
    return shapes[f"{at}.lin.weight" if f"{at}.lin.weight" in shapes else f"{at}.lin_l.weight"][1]


def newer(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """A GATConv saved before PyG 2.5 has its one layer twice, as lin_src and as lin_dst."""
    found = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(.*)\.lin_src\.weight", name):
            once, again = found.pop(name), found.pop(f"{match[1]}.lin_dst.weight", None)
            if again is not None and not np.array_equal(once.read(), again.read(), equal_nan=True):
                raise ConvertError(
                    f"{name} and {match[1]}.lin_dst.weight differ: a convolution between two kinds of nodes, and "
                    "kdjax has those of one kind"
                )
            found[f"{match[1]}.lin.weight"] = once
    return found
