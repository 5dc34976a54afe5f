"""How far two computations may differ, and that nothing else passes."""

import functools
from typing import Any

import jax
import numpy as np

from convert import families, verify
from convert.__main__ import main
from convert.family import fit, write
from convert.onto import read
from convert.verify import ROUNDING, TOLERANCE, Difference
from kdjax.config import Model
from kdjax.weights import safetensors
from tests.convert.test_families import SMALL, Case, original, tensor
from tests.support.quick import QUICK

FAMILY = families.get("vit")
TAPS = {"depth": 3, "taps": (0, 1, 2)}


@functools.cache
def steep() -> tuple[Model, dict[str, np.ndarray], dict]:
    """A ViT whose attention is all but a choice of one: (model, the original's tensors, our variables)."""
    case = Case("vit", Model("vit", **SMALL | TAPS, image_size=160, num_classes=7))
    state = {name: x.numpy().copy() for name, x in original(case).state_dict().items()}
    for name, x in state.items():
        if name.endswith("qkv.weight"):
            x[: 2 * SMALL["dim"]] *= 10  # queries and keys
    converted = fit(FAMILY, {name: tensor(x) for name, x in state.items()}, {"heads": 4, "taps": TAPS["taps"]})
    return converted.model, state, read(converted.variables)


def found(state: dict[str, np.ndarray], variables: Any) -> list[Difference]:
    return verify.verify(FAMILY, steep()[0], state, variables, QUICK)


def test_where_float32_tells_no_more_the_originals_own_rounding_decides():
    _, state, variables = steep()
    differences = found(state, variables)
    worst = verify.worst(differences)
    assert worst.same
    assert worst.relative > TOLERANCE
    assert worst.allowed == ROUNDING * worst.rounding < 1e-3
    assert all(one.rounding == worst.rounding for one in differences)


def test_a_fault_in_the_same_weights_is_refused():
    """In each part of a block, by a hundredth: what the original computes then is as far from float64 as before."""
    _, state, variables = steep()
    for name in ("attn.proj.weight", "attn.qkv.bias", "mlp.fc1.weight", "norm2.weight"):
        name = f"blocks.1.{name}"
        worst = verify.worst(found(state | {name: state[name] * np.float32(1.01)}, variables))
        assert not worst.same, name
        assert worst.relative > 2 * worst.allowed, name


def test_what_is_not_a_number_is_not_the_same():
    """Neither where one side has it, nor where both do."""
    _, state, variables = steep()
    broken = jax.tree.map_with_path(lambda path, x: x * np.float32("nan") if path[-2].key == "head" else x, variables)
    worst = verify.worst(found(state, broken))
    assert worst.endpoint == "logits"
    assert not worst.same
    also = {name: x * np.float32("nan") if name.startswith("head.") else x for name, x in state.items()}
    assert not verify.worst(found(also, broken)).same


def test_by_command(tmp_path, capsys):
    """It says why more is allowed; the weights of a broken training are refused."""
    model, state, variables = steep()
    words = ["verify", "vit", "--weights", str(tmp_path / "a.safetensors")]
    safetensors.save(tmp_path / "a.safetensors", variables, safetensors.about(model))
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "float32 does not tell more: the original is" in out
    state = {name: tensor(np.full_like(x, np.inf) if name == "norm.bias" else x) for name, x in state.items()}
    write(fit(FAMILY, state, {"heads": 4, "taps": TAPS["taps"]}), tmp_path / "a.safetensors", {})
    assert main(words) == 2
    assert "differs by nan" in capsys.readouterr().err
