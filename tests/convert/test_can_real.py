"""The graph checkpoints that people have, on the data that they were trained for: what their authors measured."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jraph
import numpy as np
import pytest

from convert.__main__ import main
from convert.export import load
from convert.family import build
from convert.sources import open_source
from kdjax.data.can.folders import Can
from kdjax.data.graphs.packs import Graphs, pack
from kdjax.models.graphs.pooling import graph_max
from kdjax.weights import safetensors
from tests.support.graph_packs import graph

pytestmark = pytest.mark.long

PACK = 512  # graphs
ACCURACY = {"01": 0.9867, "02": 0.6874, "03": 0.6306, "04": 0.5498}  # as printed in the notebook of KD-GAT
CAN = {  # file -> (family, variant)
    "gat_lstm_student_hcrl_sa_genA": ("can_gat", "a_student"),
    "gat_student_hcrl_sa_genB": ("can_gat", "b_student"),
    "vgae_teacher_hcrl_sa_genB": ("can_vgae", "b_teacher"),
    "vgae_student_hcrl_sa_genB": ("can_vgae", "b_student"),
    "vgae_best_with_threshold_hcrl_sa": ("can_vgae", "b_teacher"),
}


@pytest.fixture(scope="module")
def converted(reference, tmp_path_factory):
    """file -> (model, variables, path), by the command."""

    @functools.cache
    def make(name: str) -> tuple[Any, dict, Path]:
        dst = tmp_path_factory.mktemp("weights") / f"{name}.safetensors"
        assert main([CAN[name][0], "--src", str(reference / "weights/can" / f"{name}.pth"), "--dst", str(dst)]) == 0
        model, variables = load(dst)
        return model, variables, dst

    return make


@functools.cache
def windows(root: Path, generation: str) -> dict[str, Graphs]:
    found = Can(str(root / "data" / "can_hcrl_sa"), generation, cache="")
    return {name.split("_")[1]: graphs for name, graphs in found.test.items()}


def logit(out: dict, graphs: jraph.GraphsTuple) -> jax.Array:
    return out["logits"][:, 0]


def largest_error(out: dict, graphs: jraph.GraphsTuple) -> jax.Array:
    return graph_max(out["feature_error"][:, None], graphs)[:, 0]


def run(model: Any, variables: dict, sets: dict[str, Graphs], what: Callable) -> dict[str, np.ndarray]:
    """A number for each graph of each set, in packs of one size."""
    cut = {name: range(0, len(graphs), PACK) for name, graphs in sets.items()}
    parts = {name: [np.arange(len(graphs))[i : i + PACK] for i in cut[name]] for name, graphs in sets.items()}
    nodes, edges = np.max([sets[name].sizes()[at].sum(axis=0) for name in sets for at in parts[name]], axis=0)
    module = build(model)
    apply = jax.jit(lambda graphs: what(module.apply(variables, graphs), graphs))

    def each(graphs: Graphs, at: np.ndarray) -> np.ndarray:
        rows = np.pad(at, (0, PACK - len(at)), constant_values=-1)
        return np.asarray(apply(pack(graphs, rows, int(nodes) + 1, int(edges))))[: len(at)]

    return {name: np.concatenate([each(sets[name], at) for at in parts[name]]) for name in sets}


@functools.cache
def golden(root: Path, name: str) -> Any:
    return np.load(root / "goldens" / f"{name}.npz")


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_generation_a_is_as_accurate_as_its_author_says(reference, converted):
    """And its logits are the original's. Raw ids are large numbers: one of the goldens in ten thousand is itself 1.4e-4
    from what float64 gives, so they are compared by the largest logit."""
    expected = golden(reference, "can_hcrl_sa")
    model, variables, _ = converted("gat_lstm_student_hcrl_sa_genA")
    sets = windows(reference, "A")
    for name, logits in run(model, variables, sets, logit).items():
        at = f"test{name}_w50"
        np.testing.assert_array_equal(sets[name].label, expected[f"{at}_labels"])
        theirs = expected[f"{at}_gat_lstm_student_genA_logits"]
        np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
        assert np.quantile(np.abs(logits - theirs), 0.999) < 1e-4
        accuracy = ((logits > 0.5) == (sets[name].label == 1)).mean()
        assert f"{accuracy:.4f}" == f"{ACCURACY[name]:.4f}"


def test_generation_b_classifies_as_the_original(reference, converted):
    expected = golden(reference, "can_hcrl_sa")
    model, variables, _ = converted("gat_student_hcrl_sa_genB")
    sets = windows(reference, "B")
    for name, logits in run(model, variables, sets, logit).items():
        np.testing.assert_array_equal(sets[name].label, expected[f"test{name}_w100_labels"])
        close(logits, expected[f"test{name}_w100_gat_student_genB_logits"])


@pytest.mark.parametrize("size", ["teacher", "student"])
def test_autoencoders_err_as_the_original(reference, converted, size):
    expected = golden(reference, "can_hcrl_sa")
    model, variables, _ = converted(f"vgae_{size}_hcrl_sa_genB")
    for name, worst in run(model, variables, windows(reference, "B"), largest_error).items():
        close(worst, expected[f"test{name}_w100_vgae_{size}_genB_maxnode_mse_zmu"])


@pytest.mark.parametrize("size", ["teacher", "student"])
def test_autoencoders_on_the_first_graphs(reference, converted, size):
    """Eight graphs as they were given to the original: every number of every node."""
    model, variables, _ = converted(f"vgae_{size}_hcrl_sa_genB")
    given = golden(reference, "can_vgae_first8_graphs")
    graphs = graph(given["x"][:, 1:], given["x"][:, 0], *given["edge_index"])
    out = jax.jit(build(model).apply)(variables, graphs)
    at = size[0]
    for ours, theirs in (("features", "cont"), ("z_mean", "mu"), ("z_logvar", "logvar")):
        close(out[ours], given[f"{at}_{theirs}"])
    if size == "teacher":
        np.testing.assert_array_equal(out["id_logits"].argmax(axis=-1), given["t_canid_argmax"])


def test_a_threshold_goes_with_the_weights(converted, capsys):
    path = converted("vgae_best_with_threshold_hcrl_sa")[2]
    assert float(safetensors.load(path)[1]["threshold"]) == 0.05220048129558563
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    assert re.search(r"^threshold +0\.05220048129558563$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("name", CAN)
def test_the_files_are_the_published_models(reference, converted, name, tmp_path):
    """A variant by its name alone; verified, and out again as they came."""
    family, variant = CAN[name]
    model, _, path = converted(name)
    assert (model.name, model.options) == (family, {"variant": variant})
    src, back = reference / "weights/can" / f"{name}.pth", tmp_path / "back.safetensors"
    assert main(["verify", family, "--src", str(src), "--weights", str(path)]) == 0
    assert main(["export", family, "--weights", str(path), "--dst", str(back)]) == 0
    before, after = open_source(src), open_source(back)
    assert before.keys() == after.keys()
    for key, x in before.items():
        assert np.array_equal(x.read(), after[key].read()), key


def test_cora(reference, tmp_path):
    """0.822 of the test nodes, as the file itself says."""
    dst = tmp_path / "cora.safetensors"
    src = reference / "weights/cora_gat/gat_000000.pth"
    assert main(["pyg_gat", "--src", str(src), "--dst", str(dst)]) == 0
    assert main(["verify", "pyg_gat", "--src", str(src), "--weights", str(dst)]) == 0
    told = safetensors.load(dst)[1]
    assert (told["dataset_name"], told["test_acc"]) == ("CORA", "0.822")
    model, variables = load(dst)
    assert (model.name, model.options) == ("node_gat", {"variant": "cora", "num_classes": 7})
    data = np.load(reference / "data/cora/cora.npz")
    x = data["features"] / np.maximum(data["features"].sum(axis=1, keepdims=True), 1e-12)
    cora = graph(x, np.zeros(len(x)), *data["edge_index"])
    logits = jax.jit(build(model).apply)(variables, cora)["logits"]
    test = slice(1708, 2708)
    assert (logits.argmax(axis=-1)[test] == data["labels"][test]).mean() == np.float32(float(told["test_acc"]))
