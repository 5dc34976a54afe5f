"""Stacks of graph attention: PyTorch Geometric's GATConv and GATv2Conv, and the layers of pytorch-GAT."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert.families.vit import depth
from convert.family import ConvertError, Family, Shapes, build, nearest
from convert.table import LINEAR, Row, linear, same
from kdjax.config import Model

PARTS = r"lin\.weight|lin_[lr]\.(weight|bias)|att(_src|_dst)?|bias"  # of a convolution of PyG


def rows(model: Model) -> tuple[Row, ...]:
    return conv_rows("convs.{i}") if geometric(model) else layer_rows()


def geometric(model: Model) -> bool:
    """Whether its names are PyG's; pytorch-GAT has one kind of layer, for graphs that bring their self-loops."""
    o = build(model).options
    return o.self_loops or o.conv != "gat" or model.options.get("variant", "cora") != "cora"


def layer_rows() -> tuple[Row, ...]:
    """Of pytorch-GAT."""
    layer, conv = "gat_net.{i}", "convs_{i}"
    return (
        Row((f"{layer}.linear_proj.weight",), f"params/{conv}/lin/kernel", LINEAR),
        *same(f"{layer}.scoring_fn_source", rank=3, target=f"{conv}/att_src"),
        *same(f"{layer}.scoring_fn_target", rank=3, target=f"{conv}/att_dst"),
        *same(f"{layer}.bias", rank=1, target=f"{conv}/bias"),
    )


def conv_rows(conv: str) -> tuple[Row, ...]:
    """Of a GATConv or a GATv2Conv of PyG."""
    return (
        *linear(f"{conv}.lin", f"{conv}.lin_l", f"{conv}.lin_r"),
        *same(f"{conv}.att_src", f"{conv}.att_dst", f"{conv}.att", rank=3),
        *same(f"{conv}.bias", rank=1),
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


# -- a stack of them, and nothing else -------------------------------------------------------------------------------


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Layers called conv1, conv2 or layers.0, layers.1 become convs.0, convs.1."""
    found = newer(tensors)
    layers = {name: match for name in found if (match := re.fullmatch(rf"(.*?)([0-9]{{1,4}})\.({PARTS})", name))}
    weights = [match for match in layers.values() if match[3] in ("lin.weight", "lin_l.weight")]
    if len({match[1] for match in weights}) != 1:
        return found
    first = min(int(match[2]) for match in weights)
    names = {
        name: f"convs.{int(match[2]) - first}.{match[3]}" for name, match in layers.items() if match[1] == weights[0][1]
    }
    return {names.get(name, name): x for name, x in found.items()}


def model_of(shapes: Shapes) -> Model:
    if "gat_net.0.linear_proj.weight" in shapes:
        variant, layers = "cora", [shapes[f"gat_net.{i}.scoring_fn_source"] for i in range(depth(shapes, "gat_net"))]
        told: dict[str, Any] = {"features": shapes["gat_net.0.linear_proj.weight"][1]}
    else:
        convs = [conv_options(shapes, f"convs.{i}") for i in range(depth(shapes, "convs"))]
        variant, layers = "cora_pyg", [(1, of["heads"], of["hidden"]) for of in convs]
        told = {"features": width_into(shapes, "convs.0"), "conv": convs[0]["conv"]}
    told |= {"heads": tuple(heads for _, heads, _ in layers), "hidden": tuple(width for *_, width in layers[:-1])}
    return Model("node_gat", **nearest("node_gat", [variant], told), num_classes=layers[-1][-1])


FAMILY = Family(
    name="pyg_gat",
    told="PyTorch Geometric's GATConv or GATv2Conv, one after the other, conv1.lin.weight ...; pytorch-GAT's Cora",
    variants={name: Model("node_gat", variant=name) for name in ("cora", "cora_pyg")},
    rows=rows,
    model_of=model_of,
    original="convert.originals.node_gat",
    prepared=prepared,
    untold=lambda model: ("self_loops",) if geometric(model) else (),
    kept=("dataset_name", "test_acc"),
)
