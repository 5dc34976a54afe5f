import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Lora, Optim
from kdjax.train import lora, optim

WIDTH, RANK = 12, 3


class Attention(nn.Module):
    """Enough of a transformer: a fused qkv and a projection by their usual names."""

    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(3 * WIDTH, name="qkv")(x), 3, -1)
        scores = jax.nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / WIDTH**0.5, -1)
        return x + nn.Dense(WIDTH, name="proj")(scores @ v)


class Encoder(nn.Module):
    depth: int = 2
    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Attention) if self.remat else Attention
        if self.scan:
            scanned = nn.scan(
                lambda module, x, _: (module(x), None),
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            return scanned(block(name="attn"), x, None)[0]
        for i in range(self.depth):
            x = block(name=f"attn_{i}")(x)
        return x


class Perceptron(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(7, name="fc1")(x))
        return nn.Dense(5, use_bias=False, name="fc2")(x)


FUSED = Lora(rank=RANK, targets=((r".*attn.*/qkv", "q_v"), (r".*attn.*/proj", "all")), scale=0.7)
PLAIN = Lora(rank=RANK, targets=((r"fc\d", "all"),))
FACTORS = Lora(kind="ia3", targets=((r".*attn.*/qkv", "k_v"), (r".*attn.*/proj", "all")))
CASES = {
    "fused": (Encoder(), FUSED, (2, 5, WIDTH)),
    "scanned": (Encoder(scan=True), FUSED, (2, 5, WIDTH)),
    "remat": (Encoder(remat=True), FUSED, (2, 5, WIDTH)),
    "perceptron": (Perceptron(), PLAIN, (3, 6)),
    "scanned factors": (Encoder(scan=True), FACTORS, (2, 5, WIDTH)),
}


@functools.cache
def made(case, trained=True):
    """(model, config, variables, input), the adapters far from their start where `trained`."""
    model, config, shape = CASES[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    collection = lora.init(jax.random.key(1), params, config)
    if trained:
        collection = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.3, p.shape), jnp.float32), collection)
    return model, config, {"params": params, "lora": collection}, x


def adapted(model, config, variables, x):
    with lora.active(config):
        return model.apply(variables, x)


@functools.cache
def compiled(case):
    model, config, _ = CASES[case]
    return jax.jit(functools.partial(adapted, model, config))


def relative(found, expected):
    return float(jnp.abs(found - expected).max() / jnp.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_equals_the_merged_parameters(case):
    _, config, variables, x = made(case)
    found = compiled(case)(variables, x)
    plain = lora.merge(variables["params"], variables["lora"], config)
    assert jax.tree.structure(plain) == jax.tree.structure(variables["params"])
    assert relative(found, compiled(case)({"params": plain}, x)) < 1e-6
    assert relative(found, compiled(case)({"params": variables["params"]}, x)) > 1e-2


@pytest.mark.parametrize("case", CASES)
def test_changes_nothing_at_the_start(case):
    model, config, variables, x = made(case, trained=False)
    without = jax.jit(functools.partial(adapted, model, None))({"params": variables["params"]}, x)
    np.testing.assert_array_equal(compiled(case)({"params": variables["params"]}, x), without)
    np.testing.assert_array_equal(compiled(case)(variables, x), without)
    merged = lora.merge(variables["params"], variables["lora"], config)
    jax.tree.map(np.testing.assert_array_equal, merged, variables["params"])


def test_q_and_v_by_hand_and_k_untouched():
    """SAMed: qkv[..., :d] += (x A_q) B_q and qkv[..., -d:] += (x A_v) B_v, in float64."""
    _, config, variables, x = made("fused")
    dense = {"params": variables["params"]["attn_0"]["qkv"], "lora": variables["lora"]["attn_0"]["qkv"]}
    with lora.active(config):
        found = nn.Dense(3 * WIDTH).apply(dense, x)
    x, w, pair = (jax.tree.map(lambda a: np.asarray(a, np.float64), t) for t in (x, dense["params"], dense["lora"]))
    expected = x @ w["kernel"] + w["bias"]
    expected[..., :WIDTH] += 0.7 * (x @ pair["q_a"]) @ pair["q_b"]
    expected[..., -WIDTH:] += 0.7 * (x @ pair["v_a"]) @ pair["v_b"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    plain = nn.Dense(3 * WIDTH).apply({"params": dense["params"]}, jnp.asarray(x, jnp.float32))
    np.testing.assert_array_equal(found[..., WIDTH:-WIDTH], plain[..., WIDTH:-WIDTH])
    merged = lora.merge({"qkv": variables["params"]["attn_0"]["qkv"]}, {"qkv": dense["lora"]}, config)
    k = slice(WIDTH, 2 * WIDTH)
    np.testing.assert_array_equal(merged["qkv"]["kernel"][:, k], dense["params"]["kernel"][:, k])


def test_factors_by_hand_and_q_untouched():
    """IA3: k and v of qkv times a factor each, bias and all, in float64; merged they are in kernel and bias."""
    _, config, variables, x = made("scanned factors")
    dense = jax.tree.map(lambda leaf: leaf[0], {kind: variables[kind]["attn"]["qkv"] for kind in variables})
    assert set(dense["lora"]) == {"k_scale", "v_scale"}
    dense["params"] |= {"bias": jnp.linspace(-1, 1, 3 * WIDTH)}
    with lora.active(config):
        found, pull = jax.vjp(lambda variables: nn.Dense(3 * WIDTH).apply(variables, x), dense)
    x, w, scale = (jax.tree.map(lambda a: np.asarray(a, np.float64), t) for t in (x, dense["params"], dense["lora"]))
    plain = x @ w["kernel"] + w["bias"]
    factor = np.concatenate([np.ones(WIDTH), scale["k_scale"], scale["v_scale"]])
    np.testing.assert_allclose(found, plain * factor, rtol=1e-5, atol=1e-5)
    merged = lora.merge({"qkv": dense["params"]}, {"qkv": dense["lora"]}, config)["qkv"]
    np.testing.assert_allclose(merged["kernel"], w["kernel"] * factor, rtol=1e-6)
    np.testing.assert_allclose(merged["bias"], w["bias"] * factor, rtol=1e-6)
    del dense["params"]["bias"]
    assert set(lora.merge({"qkv": dense["params"]}, {"qkv": dense["lora"]}, config)["qkv"]) == {"kernel"}
    slope = np.random.default_rng(2).normal(size=plain.shape)
    by_factor = (slope * plain).sum((0, 1))
    (found,) = pull(jnp.asarray(slope, jnp.float32))
    np.testing.assert_allclose(found["lora"]["k_scale"], by_factor[WIDTH : 2 * WIDTH], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["lora"]["v_scale"], by_factor[2 * WIDTH :], rtol=1e-4, atol=1e-4)


def test_factors_start_at_one_and_are_not_pulled_to_zero():
    collection = made("scanned factors", trained=False)[2]["lora"]["attn"]
    assert collection["qkv"]["k_scale"].shape == (2, WIDTH)
    assert all((leaf == 1).all() for leaf in jax.tree.leaves(collection))
    decay = optim.rules(Optim().decay, {"lora": collection})
    assert set(jax.tree.leaves(decay)) == {0.0}


@pytest.mark.parametrize("case", ["fused", "remat"])
def test_the_gradient_is_that_of_the_merged_kernel(case):
    """By the chain rule dL/da = scale * dL/dW b^T and dL/db = scale * a^T dL/dW, with W the merged kernel."""
    model, config, variables, x = made(case)

    def loss(collection):
        return (adapted(model, config, {"params": variables["params"], "lora": collection}, x) ** 2).sum()

    def merged_loss(params):
        return (model.apply({"params": params}, x) ** 2).sum()

    found = jax.jit(jax.grad(loss))(variables["lora"])
    assert jax.tree.structure(found) == jax.tree.structure(variables["lora"])
    by_kernel = jax.jit(jax.grad(merged_loss))(lora.merge(variables["params"], variables["lora"], config))
    pair, g = variables["lora"]["attn_1"]["proj"], by_kernel["attn_1"]["proj"]["kernel"]
    assert relative(found["attn_1"]["proj"]["a"], 0.7 * g @ pair["b"].T) < 1e-5
    assert relative(found["attn_1"]["proj"]["b"], 0.7 * pair["a"].T @ g) < 1e-5
    pair, g = variables["lora"]["attn_0"]["qkv"], by_kernel["attn_0"]["qkv"]["kernel"]
    assert relative(found["attn_0"]["qkv"]["q_a"], 0.7 * g[:, :WIDTH] @ pair["q_b"].T) < 1e-5
    assert relative(found["attn_0"]["qkv"]["v_b"], 0.7 * pair["v_a"].T @ g[:, -WIDTH:]) < 1e-5


def test_scanned_layers_equal_layers_in_a_row():
    _, _, variables, x = made("scanned")
    row = {
        collection: {
            f"attn_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], variables[collection]["attn"]) for i in (0, 1)
        }
        for collection in ("params", "lora")
    }
    assert variables["lora"]["attn"]["qkv"]["q_a"].shape == (2, WIDTH, RANK)
    assert relative(compiled("scanned")(variables, x), compiled("fused")(row, x)) < 1e-6


def test_starts_as_a_torch_linear_and_by_path_alone():
    import torch

    params = {name: {"kernel": jnp.zeros((400, 30))} for name in ("other", "wide")}
    first = lora.init(jax.random.key(0), params, Lora(rank=8, targets=((r"wide", "all"),)))
    both = lora.init(jax.random.key(0), params, Lora(rank=8, targets=((r".*", "all"),)))
    a, reference = np.asarray(first["wide"]["a"]), torch.nn.Linear(400, 8, bias=False).weight.detach().numpy()
    bound = 1 / 400**0.5
    assert a.shape == (400, 8)
    assert max(np.abs(a).max(), np.abs(reference).max()) <= bound
    assert min(np.abs(a).max(), np.abs(reference).max()) > 0.99 * bound
    np.testing.assert_allclose([a.mean(), a.std()], [0, bound / 3**0.5], atol=0.05 * bound)
    assert not both["wide"]["b"].any()
    np.testing.assert_array_equal(a, both["wide"]["a"])
    assert np.abs(a - both["other"]["a"]).max() > 0.1 * bound


@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float32])
def test_bfloat16_computation_stays_bfloat16(given):
    _, config, variables, x = made("fused")
    dense = {"params": variables["params"]["attn_0"]["qkv"], "lora": variables["lora"]["attn_0"]["qkv"]}
    with lora.active(config):
        y = nn.Dense(3 * WIDTH, dtype=jnp.bfloat16).apply(dense, x.astype(given))
        exact = nn.Dense(3 * WIDTH).apply(dense, x)
    plain = nn.Dense(3 * WIDTH).apply({"params": dense["params"]}, x)
    assert y.dtype == jnp.bfloat16
    assert relative(y.astype(jnp.float32), exact) < 0.1 * relative(plain, exact)


def test_abstract_parameters_suffice():
    model, config, variables, x = made("fused")
    abstract = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    shapes = jax.eval_shape(functools.partial(lora.init, lora=config), jax.random.key(0), abstract)
    assert jax.tree.map(jnp.shape, variables["lora"]) == jax.tree.map(lambda s: s.shape, shapes)


def test_the_first_matching_target_decides():
    params = made("fused")[2]["params"]
    found = lora.matched(params, Lora(targets=((r"attn_0/qkv", "q_v"), (r".*/qkv", "all"))))
    assert found == {"attn_0/qkv": "q_v", "attn_1/qkv": "all"}


def test_what_cannot_work_is_refused_all_at_once():
    params = made("fused")[2]["params"]
    targets = ((r".*/attn/qkw", "all"), (r".*/proj", "qv"), (r".*/qkv", "all"))
    with pytest.raises(ConfigError) as error:
        lora.init(jax.random.key(0), params, Lora(rank=0, targets=targets))
    text = str(error.value)
    assert "'.*/attn/qkw' matches no Dense layer; there are: attn_*/proj, attn_*/qkv\n" in text
    assert "no kind 'qv'; did you mean 'q_v'?" in text
    assert "rank: expected at least 1, found 0" in text
    with pytest.raises(ConfigError, match="no kind 'ia4'; did you mean 'ia3'"):
        lora.matched(params, Lora(kind="ia4", targets=((r".*/qkv", "all"),)))
    with pytest.raises(ConfigError, match="fc1: 'q_v' needs a width of three equal parts, found 7"):
        lora.matched(made("perceptron")[2]["params"], Lora(targets=((r"fc1", "q_v"),)))


def test_other_layers_with_adapters_are_refused():
    """A 1-D convolution's kernel looks like stacked Dense kernels, so it can be matched, but not be adapted."""
    model, x = nn.Sequential([nn.Conv(6, (3,))]), jnp.ones((2, 5, 4))
    config = Lora(targets=((r".*", "all"),))

    def start(key):
        params = model.init(key, x)["params"]
        return {"params": params, "lora": lora.init(key, params, config)}

    variables = jax.eval_shape(start, jax.random.key(0))
    with pytest.raises(ConfigError, match=r"works on nn.Dense, but .*layers_0 is Conv"):
        jax.eval_shape(functools.partial(adapted, model, config), variables, x)


def test_merging_into_another_model_is_refused():
    _, config, variables, _ = made("fused")
    with pytest.raises(ConfigError, match="adapters for attn_0/"):
        lora.merge(made("perceptron")[2]["params"], variables["lora"], config)
