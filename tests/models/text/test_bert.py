"""BERT and DistilBERT: published sizes, documented endpoints, padding that nothing depends on, faults in words."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import registry
from kdjax.config import ConfigError, Lora
from kdjax.models.inputs import TokenMaskInput, TokensInput
from kdjax.models.text.bert import DISTILBERT_PARAMETERS, PARAMETERS
from kdjax.train import lora
from tests.models.vision.test_tinyusfm import close, filled, shapes, size
from tests.support.quick import QUICK
from tests.support.twins import by_name, same_slopes

SMALL: dict[str, Any] = {"variant": "base", "dim": 12, "heads": 3, "depth": 2, "positions": 9, "vocab_size": 20}
LENGTHS = np.array([7, 4, 2])


def build(name="bert", **options):
    return registry.build("models", name, {**SMALL, **options})


def run(model, variables, ids, mask):
    return jax.jit(model.apply, compiler_options=QUICK)(variables, ids, mask)


@pytest.fixture(scope="module")
def plain():
    """A model, variables of which none is at its initial value, texts of three lengths, and what it answers."""
    model = build(num_classes=4)
    ids = jnp.asarray(np.random.default_rng(1).integers(0, 20, (3, 7)), jnp.int32)
    mask = jnp.asarray(np.arange(7) < LENGTHS[:, None], jnp.int32)
    variables = filled(model)
    return model, variables, ids, mask, run(model, variables, ids, mask)


@pytest.mark.parametrize(
    ("name", "variant", "options", "expected"),
    [
        ("bert", "tiny", {}, PARAMETERS["tiny"]),
        *(pytest.param("bert", name, {}, PARAMETERS[name], marks=pytest.mark.long) for name in ("mini", "small")),
        *(pytest.param("bert", name, {}, PARAMETERS[name], marks=pytest.mark.long) for name in ("medium", "base")),
        pytest.param("bert", "minilm_l6", {}, PARAMETERS["minilm_l6"], marks=pytest.mark.long),
        pytest.param("bert", "base", {"vocab_size": 28_996}, 108_310_272, marks=pytest.mark.long),  # Bio_ClinicalBERT
        pytest.param("distilbert", "base", {}, DISTILBERT_PARAMETERS["base"], marks=pytest.mark.long),
    ],
)
def test_the_published_size_and_the_documented_endpoints(name, variant, options, expected):
    classes = 3 if name == "bert" else 0  # the pooler, which BertModel counts, is there where classes read it
    model = registry.build("models", name, {"variant": variant, "num_classes": classes, **options})
    variables, out = shapes(model)
    o = model.options
    assert size(variables["params"]) == expected + classes * (o.dim + 1)
    rows = {name: (1, 512, o.dim) for name in ("tokens", *(f"layer_{i}" for i in range(o.depth)))}
    rows |= {"features": (1, o.dim), **({"logits": (1, 3)} if classes else {})}
    assert {name: x.shape for name, x in out.items()} == rows
    assert set(model.endpoints) == set(rows)


def test_what_it_reads():
    given = build(vocabulary="0f").inputs
    assert given == {"input_ids": TokensInput(9, 20, "0f"), "attention_mask": TokenMaskInput(9)}
    assert list(given) == ["input_ids", "attention_mask"]
    for spec in given.values():
        assert spec.shape(4) == jax.ShapeDtypeStruct((4, 9), jnp.int32)
        assert not spec.packed
        assert spec.view(jnp.ones((2, 3), jnp.int32)).shape == (2, 3)


def test_impossible_models_say_what_to_do():
    cases = [
        ({"heads": 5}, "heads: expected a divisor of dim 12, found 5"),
        ({"heads": 0}, "heads: expected a divisor of dim 12, found 0"),
        (
            {"vocab_size": 0, "positions": 0},
            r"vocab_size: expected at least 1, found 0\n  positions: expected at least 1",
        ),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\)"),
        ({"pool": "max"}, "pool: no 'max'; did you mean 'mean'"),
        ({"activation": "gelo"}, "activation: no 'gelo'; did you mean 'gelu'"),
        ({"num_classes": -1}, "num_classes: expected at least 0"),
        ({"variant": "bse"}, "no BERT variant 'bse'; did you mean 'base'"),
        ({"vocabulary": 3}, "vocabulary: expected"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            build(**options)
    with pytest.raises(ConfigError, match="no DistilBERT variant 'tiny'"):
        build("distilbert", variant="tiny")


def test_a_text_that_is_too_long_is_refused():
    ids = jnp.zeros((1, 10), jnp.int32)
    with pytest.raises(ConfigError, match="texts of at most 9 tokens and got 10: cut the texts, or build the model"):
        jax.eval_shape(build().init, jax.random.key(0), ids, ids)


@pytest.mark.long
def test_nothing_depends_on_padding(plain):
    """Neither on what stands there nor on how much there is of it; and a row of padding alone is finite."""
    model, variables, ids, mask, expected = plain
    strange = jnp.where(mask > 0, ids, 19 - ids)
    wider = [jnp.pad(x, ((0, 1), (0, 2))) for x in (strange, mask)]
    found = run(model, variables, *wider)
    for name in ("features", "logits"):
        close(found[name][:3], expected[name])
    for name in ("tokens", "layer_0", "layer_1"):
        close(np.asarray(found[name])[:3, :7][mask > 0], np.asarray(expected[name])[mask > 0])
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.long
def test_features_are_the_first_token_or_the_mean_of_all_but_padding(plain):
    _, variables, ids, mask, out = plain
    tokens = np.float64(out["tokens"])
    np.testing.assert_array_equal(out["features"], out["tokens"][:, 0])
    np.testing.assert_array_equal(out["layer_1"], out["tokens"])
    mean = run(build(pool="mean"), {"params": {**variables["params"]}}, ids, mask)["features"]
    close(mean, np.stack([tokens[i, :n].mean(0) for i, n in enumerate(LENGTHS)]))


@pytest.mark.long
def test_the_classes_read_the_features_through_the_pooler(plain):
    _, variables, ids, mask, out = plain
    params = jax.tree.map(np.float64, variables["params"])
    inside = np.float64(out["features"]) @ params["pooler"]["dense"]["kernel"] + params["pooler"]["dense"]["bias"]
    answer = lambda y: y @ params["classifier"]["kernel"] + params["classifier"]["bias"]  # noqa: E731
    close(out["logits"], answer(np.tanh(inside)))
    distil = build("distilbert", num_classes=4)
    kept = {"params": {**variables["params"], "embeddings": {**variables["params"]["embeddings"]}}}
    del kept["params"]["embeddings"]["token_type_embeddings"]
    found = run(distil, kept, ids, mask)
    inside = np.float64(found["features"]) @ params["pooler"]["dense"]["kernel"] + params["pooler"]["dense"]["bias"]
    close(found["logits"], answer(np.maximum(inside, 0)))


@pytest.mark.long
def test_dropout_is_of_training_alone(plain):
    model, variables, ids, mask, expected = plain
    assert model.options.dropout == 0.1  # which has answered without a key

    def trained(rate):
        model = build(num_classes=4, dropout=rate)
        run = lambda seed: model.apply(variables, ids, mask, train=True, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
        return jax.jit(lambda seed: run(seed)["logits"], compiler_options=QUICK)

    close(trained(0.0)(0), expected["logits"])
    half = trained(0.5)
    one, same, other = half(0), half(0), half(1)
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01
    assert np.abs(one - expected["logits"]).max() > 0.01


@pytest.mark.long
def test_slopes_of_a_batch_that_ends_in_padding_are_those_of_its_texts(plain):
    model, variables, ids, mask, _ = plain

    def slopes(ids, mask, rows):
        loss = lambda v: jnp.square(model.apply(v, ids, mask)["logits"][:rows]).sum()  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(variables)

    padded = [jnp.pad(x, ((0, 2), (0, 2))) for x in (ids, mask)]
    same_slopes(by_name(slopes(*padded, 3)), by_name(slopes(ids, mask, 3)))


@pytest.mark.long
def test_low_rank_pairs_of_queries_and_values(plain):
    model, variables, ids, mask, expected = plain
    asked = Lora(2, ((r"encoder/layer_\d+/attention/self/(query|value)", "all"),))
    pairs = lora.init(jax.random.key(0), variables["params"], asked)
    assert set(lora.matched(variables["params"], asked)) == {
        f"encoder/layer_{i}/attention/self/{name}" for i in (0, 1) for name in ("query", "value")
    }
    pairs = jax.tree.map(lambda x: x + 0.1, pairs)
    with lora.active(asked):
        found = model.apply({**variables, "lora": pairs}, ids, mask)
    merged = run(model, {"params": lora.merge(variables["params"], pairs, asked)}, ids, mask)
    close(found["logits"], merged["logits"])
    assert np.abs(found["logits"] - expected["logits"]).max() > 0.01


@pytest.mark.long
def test_remat_changes_no_gradient(plain):
    _, variables, ids, mask, _ = plain

    def slopes(**options):
        model = build(num_classes=4, **options)
        loss = lambda v: jnp.square(model.apply(v, ids, mask)["logits"]).sum()  # noqa: E731
        return jax.jit(jax.grad(loss), compiler_options=QUICK)(variables)

    same_slopes(by_name(slopes(remat=True)), by_name(slopes()))


@pytest.mark.long
def test_bfloat16_computes_narrow_and_keeps_wide_parameters(plain):
    _, variables, ids, mask, expected = plain
    model = build(num_classes=4, dtype="bfloat16")
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes(model)[0]))
    out = run(model, variables, ids, mask)
    assert all(x.dtype == jnp.bfloat16 for x in out.values())
    assert np.abs(np.float32(out["logits"]) - expected["logits"]).max() < 0.1 * np.abs(expected["logits"]).max()
