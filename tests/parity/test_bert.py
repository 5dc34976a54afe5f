"""BERT and DistilBERT beside transformers', with random weights and texts of several lengths, layer by layer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from convert import families
from convert.family import fit
from convert.sources import Tensor
from kdjax import registry
from tests.support.quick import QUICK
from tests.support.twins import by_name, close, randomised, same_slopes

pytestmark = pytest.mark.long  # in every run tests/convert/test_families.py compares a classifier

LENGTHS = np.array([[13], [2], [8], [5]])
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 100},
    "wide": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512},
}
KINDS = [("bert", "small"), ("bert", "wide"), ("distilbert", "small"), ("distilbert", "wide")]


@functools.cache
def theirs(kind: str, size: str) -> Any:
    told = {"vocab_size": 60, "max_position_embeddings": 20, "num_labels": 3, **SIZES[size]}
    if kind == "bert":
        return randomised(transformers.BertForSequenceClassification(transformers.BertConfig(**told)).eval())
    hidden = told.pop("intermediate_size")
    config = transformers.DistilBertConfig(**told, hidden_dim=hidden)
    return randomised(transformers.DistilBertForSequenceClassification(config).eval())


def texts() -> tuple[np.ndarray, np.ndarray]:
    """Padding is number 0, which is no word's: of that row transformers drops the slope."""
    mask = (np.arange(13) < LENGTHS).astype(np.int32)
    return np.random.default_rng(0).integers(1, 60, (4, 13), np.int32) * mask, mask


def ours(kind: str, size: str, values: dict[str, torch.Tensor], **options: Any) -> tuple[Any, dict]:
    """Model and variables, of tensors by the names of theirs."""

    def tensor(name: str, x: torch.Tensor) -> Tensor:
        return Tensor(name, tuple(x.shape), np.dtype(np.float32), lambda: x.detach().numpy())

    given = {"heads": SIZES[size]["num_attention_heads"], **options}
    converted = fit(families.get(kind), {name: tensor(name, x) for name, x in values.items()}, given)
    model = registry.build("models", converted.model.name, converted.model.options)
    return model, jax.tree.map(lambda leaf: leaf.read(), converted.variables)


def states(module: Any, dtype: torch.dtype = torch.float32) -> dict[str, np.ndarray]:
    ids, mask = (torch.from_numpy(x).long() for x in texts())
    module = module.to(dtype)
    with torch.no_grad():
        out = module(ids, attention_mask=mask, output_hidden_states=True)
    module.to(torch.float32)
    _, *layers = out.hidden_states
    return {"logits": out.logits.numpy(), **{f"layer_{i}": x.numpy() for i, x in enumerate(layers)}}


def compared(found: dict[str, Any], expected: dict[str, np.ndarray], relative: float) -> None:
    mask = texts()[1]
    last = expected[f"layer_{len(expected) - 2}"]
    expected = {**expected, "tokens": last, "features": last[:, 0]}
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        here = np.asarray(found[name])
        close(*((here[mask > 0], x[mask > 0]) if x.ndim == 3 else (here, x)), relative, name)


@pytest.mark.parametrize(("kind", "size"), KINDS)
def test_layer_by_layer(kind, size):
    module = theirs(kind, size)
    model, variables = ours(kind, size, module.state_dict())
    found = jax.jit(model.apply, compiler_options=QUICK)(variables, *texts())
    compared(found, states(module), 1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_in_float64_it_is_the_same_function(kind):
    module = theirs(kind, "small")
    with jax.enable_x64(True):
        model, variables = ours(kind, "small", module.state_dict(), dtype="float64")
        variables = jax.tree.map(np.float64, variables)
        found = jax.jit(model.apply, compiler_options=QUICK)(variables, *texts())
    compared(found, states(module, torch.float64), 1e-12)


def test_the_mean_is_over_the_tokens_that_are_there():
    module = theirs("bert", "small")
    model, variables = ours("bert", "small", module.bert.state_dict(), pool="mean")
    assert model.num_classes == 0
    found = jax.jit(model.apply, compiler_options=QUICK)(variables, *texts())["features"]
    last = states(module)["layer_2"]
    close(found, np.stack([x[:n].mean(0) for x, (n,) in zip(last, LENGTHS, strict=True)]))


@pytest.mark.parametrize(("kind", "size"), KINDS[:3])
def test_slopes_of_one_step(kind, size):
    """Of a sum of squares over the logits and the tokens that are there, for every parameter."""
    module = theirs(kind, size)
    model, variables = ours(kind, size, module.state_dict())
    ids, mask = texts()
    given = [jnp.asarray(x) for x in (ids, mask)]
    there = jnp.asarray(mask, jnp.float32)[..., None]

    def loss(variables):
        out = model.apply(variables, *given)
        return jnp.square(out["logits"]).sum() + jnp.square(out["tokens"] * there).sum() / 10

    found = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables)
    module.zero_grad()
    tokens, masked = (torch.from_numpy(x).long() for x in (ids, mask))
    out = module(tokens, attention_mask=masked, output_hidden_states=True)
    (out.logits.square().sum() + (out.hidden_states[-1] * masked[..., None]).square().sum() / 10).backward()
    slopes = {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in module.named_parameters()}
    nothing = same_slopes(by_name(found), by_name(ours(kind, size, slopes)[1]))
    assert nothing == {name for name in by_name(found) if name.endswith("/key/bias")}  # softmax does not see it


def test_the_comparison_would_notice():
    """A mask that is not followed, and one wrong number anywhere."""
    module, (ids, mask) = theirs("bert", "small"), texts()
    model, variables = ours("bert", "small", module.state_dict())
    run = jax.jit(model.apply, compiler_options=QUICK)
    expected = states(module)
    with pytest.raises(AssertionError):
        compared(run(variables, ids, np.ones_like(mask)), expected, 1e-5)
    for at in ("bert.embeddings.token_type_embeddings.weight", "bert.encoder.layer.1.attention.self.query.bias"):
        state = {name: x * 1.01 if name == at else x for name, x in module.state_dict().items()}
        with pytest.raises(AssertionError):
            compared(run(ours("bert", "small", state)[1], ids, mask), expected, 1e-5)
