"""What files of graph models differ in: the names of PyTorch Geometric's stacks, old and new, and what lies beside."""

import warnings
from typing import Any

import jax
import jraph
import numpy as np
import pytest
import torch

from convert import families
from convert.__main__ import main
from convert.export import export_file, load
from convert.family import ConvertError, build, fit, leaves
from convert.onto import read
from convert.table import slots
from kdjax.config import Model
from kdjax.models.graphs import can_gat, can_vgae
from kdjax.weights import safetensors
from tests.convert.test_families import CASES, original, tensor
from tests.support.graph_packs import random_graphs
from tests.support.quick import QUICK
from tests.support.twins import close, randomised

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch_geometric import nn as pyg

FAMILY = families.get("pyg_gat")


class Layers(torch.nn.Module):
    """As people write it."""

    def __init__(self, conv: Any, stem: str, **options):
        super().__init__()
        first, last = conv(5, 6, heads=3, **options), conv(18, 4, heads=2, concat=False, **options)
        if stem.endswith("."):
            setattr(self, stem[:-1], torch.nn.ModuleList([first, last]))
        else:
            setattr(self, f"{stem}1", first)
            setattr(self, f"{stem}2", last)
        self.both = (first, last)

    def forward(self, x, edges):
        return self.both[1](torch.nn.functional.elu(self.both[0](x, edges)), edges)


STACKS = {
    "conv1": lambda: Layers(pyg.GATConv, "conv"),
    "gat_layer_1": lambda: Layers(pyg.GATConv, "gat_layer_"),
    "convs.0": lambda: Layers(pyg.GATv2Conv, "convs."),
    "layers.0 without loops": lambda: Layers(pyg.GATConv, "layers.", add_self_loops=False),
    "PyG's GAT": lambda: pyg.GAT(5, 6, 3, 4, heads=2, act="elu"),
    "PyG's GATv2": lambda: pyg.GAT(5, 6, 2, 4, v2=True, heads=2, act="elu"),
}


def state(module: torch.nn.Module) -> dict[str, Any]:
    return {name: tensor(x.numpy()) for name, x in module.state_dict().items()}


def computed(module: torch.nn.Module) -> tuple[jraph.GraphsTuple, np.ndarray]:
    """(input of ours, what the module says of the nodes) of random graphs."""
    graphs = jraph.batch_np(random_graphs(5, 5))
    x, senders, receivers = map(torch.from_numpy, (graphs.nodes["x"], graphs.senders, graphs.receivers))
    with torch.no_grad():
        return graphs, module(x, torch.stack([senders, receivers]).long()).numpy()


@pytest.mark.parametrize("at", ["", "module.model."])
@pytest.mark.parametrize("name", STACKS)
def test_stacks_of_pyg_compute_what_they_did(name, at):
    module = randomised(STACKS[name]()).eval()
    options = {"self_loops": False} if "without" in name else {}
    found = fit(FAMILY, {at + key: x for key, x in state(module).items()}, options)
    graphs, expected = computed(module)
    ours = jax.jit(build(found.model).apply, compiler_options=QUICK)(read(found.variables), graphs)
    close(ours["logits"], expected)


def test_goes_out_for_a_list_of_layers(tmp_path):
    """Of PyG's own class, which has its layers in `convs`."""
    module = randomised(STACKS["PyG's GAT"]()).eval()
    found = fit(FAMILY, state(module))
    export_file(FAMILY, found.model, read(found.variables), tmp_path / "back.pth")
    back = STACKS["PyG's GAT"]().eval()
    back.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=True)
    np.testing.assert_array_equal(computed(back)[1], computed(module)[1])


def older(arrays: dict[str, Any]) -> dict[str, Any]:
    """As PyG had saved it before version 2.5."""
    ends = {name: name.removesuffix("lin.weight") for name in arrays if name.endswith(".lin.weight")}
    twice = {f"{at}{lin}.weight": arrays[name] for name, at in ends.items() for lin in ("lin_src", "lin_dst")}
    return {name: x for name, x in arrays.items() if name not in ends} | twice


@pytest.mark.parametrize("name", ["pyg_gat", "can_gat a", "can_vgae"])
def test_older_files_have_a_layer_twice(name):
    case = CASES[name]
    family, arrays = families.get(case.family), state(original(case))
    new, old = fit(family, arrays), fit(family, older(arrays))
    assert old.model == new.model
    assert family.likeness_of(older(arrays)) == 1
    for slot, expected in zip(old.slots, new.slots, strict=True):
        np.testing.assert_array_equal(old.leaf(slot), new.leaf(expected))
    twice = older(arrays)
    copy = next(key for key in twice if key.endswith("lin_dst.weight"))
    twice[copy] = tensor(twice[copy].read() + 1)
    with pytest.raises(ConvertError, match="between two kinds of nodes"):
        fit(family, twice)


@pytest.mark.parametrize(
    ("family", "module"), [("can_gat", can_gat), ("can_vgae", can_vgae)], ids=["can_gat", "can_vgae"]
)
def test_shapes_tell_every_variant(family, module):
    for variant in module.VARIANTS:
        model = Model(family, variant=variant)
        made = families.get(family)
        shapes = {n: shape for slot in slots(made.rows(model), leaves(model)) for n, shape in slot.shapes.items()}
        found = made.model_of(shapes)
        same = {"dropout": 0.0}  # which no shape tells
        assert build(Model(family, **found.options, **same)) == build(Model(family, **model.options, **same))


def test_another_family_is_told_by_its_name(tmp_path, capsys):
    path = tmp_path / "vgae.pth"
    torch.save(original(CASES["can_vgae"]).state_dict(), path)
    assert main(["can_gat", "--src", str(path), "--dst", str(tmp_path / "x")]) == 2
    assert "it looks like can_vgae" in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-3000])
    assert main(["can_vgae", "--src", str(path), "--dst", str(tmp_path / "x")]) == 2
    assert "fetch it again" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"vgae.pth"}


def test_a_stack_with_more_in_it_is_refused():
    """Of edge features, a skip connection, or a classifier there is nothing in our model."""
    arrays = state(STACKS["conv1"]())
    for name in ("conv1.lin_edge.weight", "conv1.res.weight", "lin.weight", "conv3.weight"):
        with pytest.raises(ConvertError, match=f"1 faults:\n  unused: .*{name.removeprefix('conv1.')}"):
            fit(FAMILY, arrays | {name: tensor(np.zeros((3, 2), np.float32))})
    uneven = dict(arrays)
    del uneven["conv2.bias"]
    with pytest.raises(ConvertError, match=r"for want of convs\.1\.bias"):
        fit(FAMILY, uneven)


def test_a_threshold_beside_the_weights_is_kept_and_shown(tmp_path, capsys):
    src, dst = tmp_path / "best.pth", tmp_path / "vgae.safetensors"
    torch.save({"state_dict": original(CASES["can_vgae"]).state_dict(), "threshold": 0.25, "epoch": 3}, src)
    assert main(["can_vgae", "--src", str(src), "--dst", str(dst)]) == 0
    metadata = safetensors.load(dst)[1]
    assert metadata["threshold"] == "0.25"
    assert "epoch" not in metadata
    assert build(load(dst)[0]) == build(CASES["can_vgae"].model)
    capsys.readouterr()
    assert main(["inspect", str(dst)]) == 0
    assert "threshold  0.25\n" in capsys.readouterr().out


def test_inspect_knows_each_family(tmp_path, capsys):
    for name, told in (
        ("can_gat a", "can_gat"),
        ("can_vgae", "can_vgae"),
        ("pyg_gat", "pyg_gat"),
        ("pytorch-GAT", "pyg_gat"),
    ):
        torch.save(original(CASES[name]).state_dict(), tmp_path / "a.pth")
        assert main(["inspect", str(tmp_path / "a.pth")]) == 0
        assert f"looks like {told}: {CASES[name].model.name}" in capsys.readouterr().out
