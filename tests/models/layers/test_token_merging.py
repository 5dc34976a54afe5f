"""ToMe against a plain version in float64, a token at a time: one merge, and a ViT whose tokens merge in each block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.layers.token_merging import merged
from tests.models.vision.test_tinyusfm import close, filled, run

DIM, HEADS = 12, 3
SMALL = {"dim": DIM, "heads": HEADS, "depth": 3, "mlp_ratio": 1.0, "patch_size": 4, "image_size": (12, 20), "merge": 6}
MODELS = {
    "class": {"pool": "mean"},
    "distilled": {"distilled": True},
    "registers": {"registers": 4, "pool": "token_mean", "layer_scale": 0.5},
}


MORE = [(13, 6, 1), (12, 5, 2), (14, 4, 5), (9, 0, 1)]


def merged_one(tokens, sizes, keys, count, kept):
    """Lists of one example's tokens -> the same, fewer; as Section 3 of the paper has it."""
    unit = [key / np.linalg.norm(key) for key in keys]
    patches = range(kept, len(tokens))
    choosing, chosen = [i for i in patches if i % 2 == 0], [i for i in patches if i % 2 == 1]
    edges = []
    for i in choosing:
        j = max(chosen, key=lambda j: unit[i] @ unit[j])
        edges.append((unit[i] @ unit[j], i, j))
    groups = {j: [j] for j in chosen}
    left = set(choosing)
    for _, i, j in sorted(edges, reverse=True)[:count]:
        groups[j].append(i)
        left.remove(i)
    order = [[i] for i in [*range(kept), *sorted(left)]] + [groups[j] for j in chosen]
    weights = [[sizes[i] for i in group] for group in order]
    means = [np.average([tokens[i] for i in group], axis=0, weights=w) for group, w in zip(order, weights, strict=True)]
    return np.array(means), np.array([sum(w) for w in weights])


# tokens, of which so many join others, and so many are no patches
@pytest.mark.parametrize(
    ("n", "count", "kept"), [(12, 3, 1), (13, 4, 2), *(pytest.param(*x, marks=pytest.mark.long) for x in MORE)]
)
def test_one_merge(n, count, kept):
    rng = np.random.default_rng(n + count)
    x, key = rng.normal(size=(2, n, 5)), rng.normal(size=(2, n, 4))
    size = rng.integers(1, 9, size=(2, n)).astype(float)
    merge = jax.jit(merged, static_argnums=(3, 4))
    found, sizes = merge(*(jnp.asarray(a, jnp.float32) for a in (x, size, key)), count, kept)
    assert found.shape == (2, n - count, 5)
    for i in range(2):
        tokens, expected = merged_one(x[i], size[i], key[i], count, kept)
        np.testing.assert_allclose(found[i], tokens, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(sizes[i], expected)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def features_of_one(o, params, image):
    """[h, w, 3] -> features and tokens, in float64."""
    p = jax.tree.map(np.float64, params)
    (h, w), s = o.grid, o.patch_size
    patches = [image[y * s : y * s + s, x * s : x * s + s].reshape(-1) for y in range(h) for x in range(w)]
    x = np.array(patches) @ p["patch_embed"]["proj"]["kernel"].reshape(-1, DIM) + p["patch_embed"]["proj"]["bias"]
    first = [p[name][0] for name in ("cls_token", "dist_token") if name in p]
    x = np.concatenate([*first, x]) + p["pos_embed"][0]
    x = np.concatenate([x[: len(first)], p["reg_token"][0], x[len(first) :]]) if o.registers else x
    kept, sizes = len(x) - h * w, np.ones(len(x))
    for i in range(o.depth):
        block = p[f"blocks_{i}"]
        gamma = [block.get(f"gamma_{i}", 1.0) for i in (1, 2)]
        qkv = linear(norm(x, block["norm1"]), block["attn"]["qkv"]).reshape(-1, 3, HEADS, DIM // HEADS)
        q, k, v = qkv.swapaxes(0, 1)
        scores = np.einsum("nhc,mhc->hnm", q, k) / np.sqrt(DIM // HEADS) + np.log(sizes)
        y = np.einsum("hnm,mhc->nhc", softmax(scores, -1), v).reshape(-1, DIM)
        x = x + linear(y, block["attn"]["proj"]) * gamma[0]
        x, sizes = merged_one(x, sizes, k.mean(1), min(o.merge, (len(x) - kept) // 2), kept)
        y = linear(norm(x, block["norm2"]), block["mlp"]["fc1"])
        x = x + linear(y * (1 + erf(y / np.sqrt(2))) / 2, block["mlp"]["fc2"]) * gamma[1]
    x = norm(x, p["norm"])
    mean = np.average(x[kept:], axis=0, weights=sizes[kept:])
    return {"token": x[0], "mean": mean, "token_mean": np.concatenate([x[0], mean])}[o.pool], x


@pytest.mark.parametrize(
    "name", ["registers", *(pytest.param(name, marks=pytest.mark.long) for name in ("class", "distilled"))]
)
def test_a_vit_whose_tokens_merge(name):
    model = registry.get("models", "vit")(**SMALL, **MODELS[name], num_classes=0)
    variables, image = filled(model), jnp.asarray(np.random.default_rng(1).normal(size=(2, 12, 20, 3)), jnp.float32)
    assert model.options.merges == [6, 4, 2]
    found = run(model, variables, image)
    assert set(found) == set(model.endpoints) == {"features", "tokens"}
    assert found["tokens"].shape == (2, model.options.before + 3, DIM)
    for i in range(2):
        features, tokens = features_of_one(model.options, variables["params"], np.float64(image[i]))
        close(found["features"][i], features)
        close(found["tokens"][i], tokens)


@pytest.mark.long
def test_a_merge_of_none_is_the_plain_model():
    plain = registry.get("models", "vit")(**SMALL | {"merge": 0, "taps": (1,)}, num_classes=2)
    variables, image = filled(plain), jnp.asarray(np.random.default_rng(1).normal(size=(1, 12, 20, 3)), jnp.float32)
    features, _ = features_of_one(plain.options, variables["params"], np.float64(image[0]))
    found = run(plain, variables, image)
    close(found["features"][0], features)
    assert found["block_1"].shape == (1, 3, 5, DIM)


@pytest.mark.long
def test_merging_trains_recomputed_and_narrow():
    """Slopes are those of the same model, not recomputed; in bfloat16 they are numbers, and parameters stay wide."""

    def slopes(**options):
        model = registry.get("models", "vit")(**SMALL, **MODELS["registers"], num_classes=2, drop_path=0.1, **options)
        variables, image = filled(model), jnp.asarray(np.random.default_rng(1).normal(size=(2, 12, 20, 3)), jnp.float32)

        def loss(variables):
            out = model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(0)})
            return jnp.square(out["logits"].astype(jnp.float32)).sum()

        return jax.jit(jax.grad(loss))(variables)

    plain, again, narrow = slopes(), slopes(remat=True), slopes(dtype="bfloat16")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max()), again, plain)
    assert all(x.dtype == jnp.float32 and jnp.isfinite(x).all() for x in jax.tree.leaves(narrow))


def test_where_tokens_cannot_merge():
    for options, message in [
        ({"merge": 8}, "merge: expected at most half of the 15 patches, found 8"),
        (
            {"taps": (0, 2)},
            r"taps: expected \(\) where tokens merge, found \(0, 2\): .* features, tokens and, with classes",
        ),
        ({"scan": True}, "scan: expected False where tokens merge"),
        ({"relative": True}, "relative: expected registers=0, merge=0 and class_position"),
    ]:
        with pytest.raises(ConfigError, match=message):
            registry.get("models", "vit")(**SMALL | options)


def test_gradients_pass_through_a_merge():
    """A token's slope is its share of the mean that it has become."""
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, 7, 4)), jnp.float32)
    size = jnp.asarray([[1.0, 2, 3, 1, 5, 1, 2]])
    slope = jax.jit(jax.grad(lambda x: merged(x, size, x, 2, 1)[0].sum()))(x)
    np.testing.assert_allclose(slope.sum(), 5 * 4, rtol=1e-6)
    assert float(jnp.abs(slope - 1).max()) > 0.1
