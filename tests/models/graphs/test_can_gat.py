"""GATWithJK: published sizes, documented endpoints, and options that change how it computes but not what."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.models.graphs.can_gat import PARAMETERS, VARIANTS, build_can_gat
from tests.models.vision.test_tinyusfm import close, size
from tests.support.graph_packs import eaten
from tests.support.quick import QUICK

SMALL = {"hidden": 4, "heads": 2, "num_ids": 9, "embed_dim": 3, "features": 5}


def shapes(model):
    variables = jax.eval_shape(model.init, jax.random.key(0), *eaten(model))
    return variables, jax.eval_shape(model.apply, variables, *eaten(model))


def started(model, seed=0):
    return jax.jit(model.init, compiler_options=QUICK)(jax.random.key(seed), *eaten(model))


@pytest.mark.parametrize("variant", PARAMETERS)
def test_the_published_sizes(variant):
    num_ids, logits, expected = PARAMETERS[variant]
    variables, out = shapes(build_can_gat(variant, num_ids=num_ids, binary_logit=logits == 1))
    assert size(variables["params"]) == expected
    assert out["logits"].shape == (9, logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_endpoint_is_there_and_documented(variant):
    model = build_can_gat(variant)
    o = model.options
    variables, out = shapes(model)
    assert set(out) == set(model.endpoints)
    width = o.hidden * o.heads
    assert out["embedding"].shape == (9, width if o.jumping == "lstm" else width * o.layers)
    assert out["layer_1"].shape == (24, width)
    assert ("lin" in variables["params"]) == variant.startswith("a_")
    assert ("id_embedding" in variables["params"]) == bool(o.num_ids)
    assert model.inputs["graphs"].shape(3).nodes["x"].shape == (3, 2, 10)


def test_the_names_of_the_checkpoints():
    params = shapes(build_can_gat("b_student"))[0]["params"]
    assert set(params) == {"id_embedding", "convs_0", "convs_1", "fc_layers_0", "fc_layers_3", "fc_layers_6"}
    assert params["convs_0"]["lin"]["kernel"].shape == (18, 64)
    params = shapes(build_can_gat("a_student"))[0]["params"]
    assert params["jk"]["lstm"]["weight_ih_l0_reverse"].shape == (512, 128)


@pytest.mark.long
@pytest.mark.parametrize("jumping", ["cat", "lstm"])
def test_remat_gives_the_same(jumping):
    plain, again = (build_can_gat(jumping=jumping, remat=remat, **SMALL) for remat in (False, True))
    variables, inputs = started(plain), eaten(plain)

    def slopes(model):
        def loss(params):
            out = model.apply({"params": params}, *inputs, train=True, rngs={"dropout": jax.random.key(1)})
            return jnp.square(out["logits"]).sum()

        return jax.tree.leaves(jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"]))

    for found, expected in zip(slopes(again), slopes(plain), strict=True):
        close(found, expected)


@pytest.mark.long
def test_bfloat16_is_near():
    inputs = eaten(build_can_gat(**SMALL))
    wide, narrow = (build_can_gat(dtype=dtype, **SMALL) for dtype in ("float32", "bfloat16"))
    variables = started(wide)
    found, expected = narrow.apply(variables, *inputs)["logits"], wide.apply(variables, *inputs)["logits"]
    assert found.dtype == jnp.bfloat16
    close(np.asarray(found, np.float32), expected, 0.03)
    assert np.abs(np.asarray(found, np.float32) - expected).max() > 0


def test_dropout_is_for_training_alone():
    model = build_can_gat(**SMALL)
    variables, inputs = started(model), eaten(model)
    run = jax.jit(lambda key: model.apply(variables, *inputs, train=True, rngs={"dropout": key})["layer_0"])
    one, other = run(jax.random.key(0)), run(jax.random.key(1))
    plain = model.apply(variables, *inputs)["layer_0"]
    assert not np.array_equal(one, other)
    kept = np.asarray(one) != 0
    close(np.asarray(one)[kept], np.asarray(plain)[kept] / 0.8)
    share = kept.sum() / (np.asarray(plain) != 0).sum()
    assert 0.6 < share < 0.95


def test_impossible_models_say_what_to_do():
    cases = [
        ({"variant": "b_studnt"}, "no GATWithJK variant 'b_studnt'; did you mean 'b_student'"),
        ({"jumping": "max", "conv": "gcn", "heads": 0}, "jumping: no 'max'.*\n.*conv: no 'gcn'.*\n.*heads: expected"),
        ({"num_classes": 1}, "num_classes: expected at least 2, found 1"),
        ({"dropout": 1.0}, r"dropout: expected a rate in \[0, 1\), found 1.0"),
        ({"hiden": 3}, "GATWithJK has no option 'hiden'; did you mean 'hidden'"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError) as error:
            build_can_gat(**options)
        assert re.search(message, str(error.value))
