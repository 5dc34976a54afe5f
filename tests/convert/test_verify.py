"""How far two computations may differ, and that nothing else passes."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch

from convert import families, verify
from convert.__main__ import main
from convert.family import fit, write
from convert.onto import read
from convert.originals import sam, vit
from convert.verify import MARGIN, TOLERANCE, Difference
from kdjax.config import Model
from kdjax.weights import safetensors
from tests.convert.test_families import SMALL, TELL, TINY, Case, original, tensor
from tests.support.quick import QUICK

FAMILY = families.get("vit")
TAPS = {"depth": 3, "taps": (0, 1, 2)}


@functools.cache
def drawn(steepness: float, seed: int = 0) -> tuple[Model, dict[str, np.ndarray], dict]:
    """A ViT whose attention, where it is steep, is a choice of one: (model, the original's tensors, our variables)."""
    case = Case("vit", Model("vit", **SMALL | TAPS, image_size=96, num_classes=7))
    state = {name: x.numpy().copy() for name, x in original(case).state_dict().items()}
    draw = np.random.default_rng(seed)
    for name, x in state.items():
        x += 0.1 * draw.normal(size=x.shape).astype(np.float32)
        if name.endswith("qkv.weight"):
            x[: 2 * SMALL["dim"]] *= steepness  # queries and keys
    converted = fit(FAMILY, {name: tensor(x) for name, x in state.items()}, {"heads": 4, "taps": TAPS["taps"]})
    return converted.model, state, read(converted.variables)


def compared(state: dict[str, np.ndarray], variables: Any) -> list[Difference]:
    return verify.verify(FAMILY, drawn(1)[0], state, variables, QUICK)


@pytest.mark.parametrize("seed", range(4))
def test_where_float32_tells_no_more_there_is_no_false_alarm(seed):
    """Float64 agrees to its last digits, however far apart float32 is."""
    _, state, variables = drawn(10, seed)
    differences = compared(state, variables)
    worst = max(differences, key=lambda one: one.relative)
    assert verify.worst(differences).same
    assert worst.relative > 1e-6
    assert worst.allowed == max(TOLERANCE, MARGIN * max(worst.spread, worst.rounding)) < 1e-2


def with_epsilon(build: Callable, norm: str, eps: float) -> Callable:
    def built(model: Model) -> torch.nn.Module:
        module = build(model)
        module.get_submodule(norm).eps = eps
        return module

    return built


@pytest.mark.parametrize(("steepness", "eps"), [(1, 1e-5), (1, 1e-3), (10, 1e-5)])
def test_a_single_wrong_epsilon_is_caught(steepness, eps, monkeypatch):
    """Of each layer norm of the original in turn."""
    _, state, variables = drawn(steepness)
    build = vit.build
    norms = [name for name, module in build(drawn(1)[0]).named_modules() if isinstance(module, torch.nn.LayerNorm)]
    for norm in norms:
        monkeypatch.setattr(vit, "build", with_epsilon(build, norm, eps))
        worst = verify.worst(compared(state, variables))
        assert worst.excess > 100, norm
    assert len(norms) == 7


def test_a_fault_in_the_same_weights_is_refused():
    """In each part of a block, by a hundredth: what the original computes then is as far from float64 as before."""
    _, state, variables = drawn(10)
    for name in ("attn.proj.weight", "attn.qkv.bias", "mlp.fc1.weight", "norm2.weight"):
        name = f"blocks.1.{name}"
        worst = verify.worst(compared(state | {name: state[name] * np.float32(1.01)}, variables))
        assert worst.excess > 100, name


@pytest.mark.long
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_random_sams_whatever_their_condition(scale, monkeypatch):
    """As in the test of ViTs above: no false alarm of 7 seeds, and one wrong epsilon in each part stands out."""
    family, model, build = families.get("sam"), Model("sam", **TINY, image_size=32), sam.build
    shapes = {name: x.shape for name, x in build(model).state_dict().items()}
    for seed in range(7):
        draw = np.random.default_rng(seed)
        state = {name: (scale * draw.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
        converted = fit(family, {name: tensor(x) for name, x in state.items()}, {name: TINY[name] for name in TELL})
        variables = read(converted.variables)
        # beside values in the thousands no epsilon is anything
        wrong = ("image_encoder.blocks.2.norm1", "mask_decoder.transformer.layers.0.norm2") if scale == 1 else ()
        for norm in ("", *wrong):
            monkeypatch.setattr(sam, "build", with_epsilon(build, norm, 1e-3) if norm else build)
            worst = verify.worst(verify.verify(family, converted.model, state, variables, QUICK))
            assert worst.same == (not norm), (seed, norm)


def test_what_is_no_number_on_one_side_alone_is_not_the_same():
    _, state, variables = drawn(1)
    broken = jax.tree.map_with_path(lambda path, x: x * np.float32("nan") if path[-2].key == "head" else x, variables)
    worst = verify.worst(compared(state, broken))
    assert worst.endpoint == "logits"
    assert not worst.same


def test_the_same_weights_are_the_same_where_they_are_no_numbers():
    """That tells nothing of these values, and all of the others."""
    _, state, variables = drawn(1)
    broken = jax.tree.map_with_path(lambda path, x: x * np.float32("nan") if path[-2].key == "head" else x, variables)
    also = {name: x * np.float32("nan") if name.startswith("head.") else x for name, x in state.items()}
    found = compared(also, broken)
    assert verify.worst(found).same
    assert {one.endpoint: one.no_numbers for one in found if one.no_numbers} == {"logits": 7}
    assert "logits: 7 of 7 values are infinite or no numbers on both sides" in "\n".join(
        verify.remarks(found, None, "")
    )
    also["norm.bias"] = also["norm.bias"] + np.float32(1e-3)
    assert verify.worst(compared(also, broken)).endpoint in ("features", "tokens")
    assert not verify.worst(compared(also, broken)).same


def test_by_command(tmp_path, capsys):
    """It says what was proved and what both sides assume."""
    model, state, variables = drawn(10)
    words = ["verify", "vit", "--weights", str(tmp_path / "a.safetensors")]
    safetensors.save(tmp_path / "a.safetensors", variables, safetensors.about(model) | {"assumed": "heads=4"})
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "both sides assume heads=4" in out
    assert "the same: within" in out
    state = {name: tensor(np.full_like(x, np.inf) if name == "norm.bias" else x) for name, x in state.items()}
    write(fit(FAMILY, state, {"heads": 4, "taps": TAPS["taps"]}), tmp_path / "a.safetensors", {})
    assert main(words) == 0
    assert "WARNING, features: 48 of 48 values are infinite" in capsys.readouterr().out
