"""MobileViT and MobileNet-V2: documented endpoints, how features are pooled, what dropout drops, what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import InvalidRngError

from kdjax import registry
from kdjax.config import ConfigError
from kdjax.models.layers.inverted_residual import divisible
from kdjax.models.layers.map_pooling import POOLS
from kdjax.models.model import Model
from kdjax.models.vision import mobilenet, mobilevit
from tests.models.vision.test_tinyusfm import shapes

VIT: dict[str, Any] = {"dims": (4, 6, 8), "widths": (8, 8, 8, 16, 16, 24, 32), "heads": 2, "image_size": (45, 70)}
NET: dict[str, Any] = {"multiplier": 0.1, "image_size": (45, 70)}
SIDES = ((23, 35), (12, 18), (6, 9), (3, 5), (2, 3))  # of the maps of such images, rounded up


def build(name, **options):
    return registry.get("models", name)(**options)


def sizes(model) -> dict[str, tuple[int, ...]]:
    assert isinstance(model, Model)
    _, out = shapes(model)
    assert set(out) == set(model.endpoints)
    return {name: x.shape for name, x in out.items()}


@pytest.mark.long
def test_mobilevits_endpoints():
    expected = {f"stage_{i}": (1, *SIDES[i], width) for i, width in enumerate(VIT["widths"][1:-1])}
    assert sizes(build("mobilevit", **VIT, num_classes=5)) == expected | {"features": (1, 32), "logits": (1, 5)}


@pytest.mark.long
def test_mobilenets_endpoints():
    """With a smaller stride the last maps are as large as the one before them."""
    model = build("mobilenetv2", **NET, num_classes=0, pool="channel", output_stride=16, dtype="bfloat16")
    assert model.options.layers[11:] == ((16, 1, 1), (16, 1, 1), (16, 1, 2), (16, 1, 2), (32, 1, 2))
    variables, out = shapes(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    assert {x.dtype for x in out.values()} == {jnp.dtype("bfloat16")}
    maps = {f"stage_{i}": (1, *SIDES[min(i, 3)], width) for i, width in enumerate((8, 8, 8, 16, 32))}
    assert {name: x.shape for name, x in out.items()} == maps | {"features": (1, 15)}


def test_features_are_the_mean_over_space_or_the_first_channel():
    x = jnp.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(POOLS["mean"](x), [[5, 6], [17, 18]])
    np.testing.assert_array_equal(POOLS["channel"](x), [[0, 2, 4, 6, 8, 10], [12, 14, 16, 18, 20, 22]])


def test_tokens_of_a_sequence_have_the_same_place_in_their_patches():
    x = np.arange(2 * 4 * 6).reshape(2, 4, 6, 1).astype(np.float32)
    found = mobilevit.unfolded(jnp.asarray(x), 2)
    expected = [x[b, i::2, j::2].reshape(6, 1) for b in range(2) for i in range(2) for j in range(2)]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(mobilevit.folded(found, (4, 6), 2), x)


def test_widths_are_multiples_of_eight_and_hardly_smaller():
    widths = np.linspace(1, 300, 1000)
    found = np.array([divisible(width) for width in widths])
    assert (found % 8 == 0).all()
    assert (found >= 0.9 * widths).all()
    assert (np.abs(found - widths) <= 8).all()
    assert mobilenet.scaled(16, 0.35) == 8
    assert [divisible(x) for x in (11, 12, 13, 20)] == [16, 16, 16, 24]


@pytest.mark.long
@pytest.mark.parametrize(("name", "options"), [("mobilevit", VIT), ("mobilenetv2", NET)])
def test_dropout_drops_in_training_alone(name, options):
    def trained(rate: float, train: bool) -> None:
        model = build(name, **options, num_classes=2, dropout=rate)
        image = jax.ShapeDtypeStruct((1, 45, 70, 3), jnp.float32)
        apply = lambda variables, image: model.apply(variables, image, train=train, mutable=["batch_stats"])  # noqa: E731
        jax.eval_shape(apply, jax.eval_shape(model.init, jax.random.key(0), image), image)

    trained(0.5, train=False)
    trained(0.0, train=True)
    with pytest.raises(InvalidRngError):  # there is no key to drop by
        trained(0.5, train=True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mobilevit", {"dims": (8, 16)}, "dims: expected 3 positive numbers"),
        ("mobilevit", {"widths": (8, 8, 8, 8, 0, 8, 8)}, "widths: expected 7 positive numbers"),
        ("mobilevit", {"heads": 3}, r"heads: expected a divisor of dims \(64, 80, 96\), found 3"),
        ("mobilevit", {"pool": "chanel"}, "pool: no 'chanel'; did you mean 'channel'"),
        ("mobilevit", {"pool": "channel", "num_classes": 3}, "num_classes: expected 0 where pool is 'channel'"),
        ("mobilevit", {"dropout": 1.0, "expand_ratio": 0.0}, r"expand_ratio: expected.*\n.*dropout: expected a rate"),
        ("mobilevit", {"variant": "xss"}, "did you mean 'xs' or 'xxs'"),
        ("mobilenetv2", {"multiplier": 0.0}, "multiplier: expected a number above 0"),
        ("mobilenetv2", {"output_stride": 4}, r"output_stride: expected one of \(8, 16, 32\), found 4"),
        ("mobilenetv2", {"activation": "relu7", "momentum": 1.0}, r"or 'relu6'.*\n.*momentum: expected"),
        ("mobilenetv2", {"num_classes": -1}, "num_classes: expected at least 0"),
        ("mobilenetv2", {"pool": "channel"}, "found 1000; classify the mean"),
    ],
)
def test_impossible_models_say_what_to_do(name, options, message):
    with pytest.raises(ConfigError, match=message):
        build(name, **options)
