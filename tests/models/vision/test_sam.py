"""SAM: published sizes, documented endpoints, options that change how it computes but not what, and clear refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from kdjax.config import ConfigError
from kdjax.models.vision.sam import PARAMETERS, VARIANTS, build_sam, build_sam_seg
from kdjax.models.vision.sam.geometry import pad_to_square
from kdjax.models.vision.sam.image_encoder import ImageEncoder, period, stack_blocks, unstack_blocks
from tests.support.quick import QUICK

SMALL = {
    "depth": 2,
    "global_blocks": (1,),
    "dim": 24,
    "heads": 2,
    "image_size": 32,
    "window": 3,
    "embed_dim": 16,
    "decoder_heads": 2,
    "decoder_mlp_dim": 20,
    "iou_dim": 8,
    "decoder_depth": 1,
}

# These programs run once: what is saved by optimising them is less than it takes.
jit = partial(jax.jit, compiler_options=QUICK)


def shapes(model):
    image = jax.ShapeDtypeStruct((1, *model.options.image_hw, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def filled(model, seed=0):
    """Variables with every leaf random, none at its initial value; nothing is compiled."""
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        x, fan_in = rng.normal(size=leaf.shape), int(np.prod(leaf.shape[:-1]))
        x = 1 + 0.1 * x if path[-1].key == "scale" else x / np.sqrt(fan_in) if path[-1].key == "kernel" else 0.3 * x
        return jnp.asarray(x, jnp.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes(model))


def images(model, batch=1, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, *model.options.image_hw, 3)), jnp.float32)


def close(found, expected, relative=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_counts(variant):
    encoder, whole = PARAMETERS[variant]
    variables = shapes(build_sam(variant))
    assert size(variables["params"]["image_encoder"]) == encoder
    assert size(variables["params"]) == whole
    assert [path[-1] for path in flatten_dict(variables["batch_stats"])] == ["positional_encoding_gaussian_matrix"]


@pytest.mark.parametrize(("variant", "classes"), [("vit_t", 2), ("vit_t", 4), ("vit_b", 3)])
def test_segmenter_endpoints(variant, classes):
    model = build_sam_seg(variant, num_classes=classes)
    variables = shapes(model)
    outputs = jax.eval_shape(model.apply, variables, jnp.zeros((2, *model.options.image_hw, 3)))
    side, grid, k = model.inputs["image"].size, model.options.grid[0], 1 if classes == 2 else classes
    assert set(outputs) == set(model.endpoints)
    assert outputs["logits"].shape == (2, side, side, k)
    assert outputs["low_res_logits"].shape == (2, 4 * grid, 4 * grid, k)
    assert outputs["image_embeddings"].shape == (2, grid, grid, model.options.embed_dim)
    assert outputs["iou_predictions"].shape == (2, k)
    tokens = variables["params"]["mask_decoder"]["mask_tokens"]["embedding"]
    assert tokens.shape == (classes, model.options.embed_dim)
    np.testing.assert_allclose(np.array(model.inputs["image"].mean) * 255, [123.675, 116.28, 103.53])


@pytest.mark.long
def test_one_image_with_several_prompts_is_several_images():
    model = build_sam("vit_t", **SMALL)
    variables, image = filled(model), images(model)
    points = jnp.array([[[3.0, 4.0]], [[20.0, 9.0]]]), jnp.array([[1], [0]])
    one, two = jit(lambda x: [model.apply(variables, y, points) for y in (x, jnp.tile(x, (2, 1, 1, 1)))])(image)
    assert one["image_embeddings"].shape[0] == 1
    close(one["low_res_logits"], two["low_res_logits"])
    assert np.abs(np.diff(one["low_res_logits"], axis=0)).max() > 1e-3


def gradient_of(model, variables, image, endpoint):
    def loss(params):
        outputs = model.apply(variables | {"params": params}, image)
        return ((outputs[endpoint] if endpoint else outputs) ** 2).mean(), outputs

    return jit(jax.grad(loss, has_aux=True))(variables["params"])


def encoder(**options):
    options = SMALL | {"depth": 4, "global_blocks": (1, 3)} | options
    return ImageEncoder(build_sam("vit_t", **options).options)


@pytest.fixture(scope="module")
def plain():
    """An encoder's variables and images, and the gradient and the embeddings with them."""
    model = encoder()
    variables, image = filled(model), images(model, 2)
    return variables, image, *gradient_of(model, variables, image, "")


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"remat": True}, marks=pytest.mark.long),
        pytest.param({"scan": True}, marks=pytest.mark.long),
        {"scan": True, "remat": True},
    ],
    ids=str,
)
def test_remat_and_scan_change_nothing(plain, options):
    variables, image, gradient, embeddings = plain
    model = encoder(**options)
    if "scan" in options:
        stacked = stack_blocks(variables["params"], period(model.options))
        jax.tree.map(np.testing.assert_array_equal, unstack_blocks(stacked), variables["params"])
        variables = {"params": stacked}
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(lambda x: x.shape, shapes(model))
    found, again = gradient_of(model, variables, image, "")
    close(again, embeddings)
    found = unstack_blocks(found) if "scan" in options else found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest(gradient)), found, gradient)


def largest(tree) -> float:
    return max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))


def test_scanned_blocks_start_differently():
    model = encoder(scan=True, depth=2, global_blocks=())
    params = jit(model.init)(jax.random.key(0), images(model))["params"]
    kernel = params["periods"]["blocks_0"]["attn"]["qkv"]["kernel"]
    assert np.abs(np.subtract(*kernel)).max() > 0.1


@pytest.mark.parametrize(
    ("depth", "blocks", "repeat"), [(12, (2, 5, 8, 11), 3), (24, (5, 11, 17, 23), 6), (4, (1,), 4), (3, (), 1)]
)
def test_period(depth, blocks, repeat):
    assert period(build_sam("vit_b", depth=depth, global_blocks=blocks).options) == repeat


@pytest.fixture(scope="module")
def segmented():
    """A segmenter's variables and images, and the gradient and the outputs with them."""
    model = build_sam_seg("vit_t", num_classes=3, **SMALL)
    variables, image = filled(model), images(model, 2)
    return variables, image, *gradient_of(model, variables, image, "logits")


def test_every_part_gets_a_gradient(segmented):
    """All but the head that predicts the IoU, and what encodes prompts, which are not given."""
    gradient = flatten_dict(segmented[2], sep="/")
    assert all(np.isfinite(leaf).all() for leaf in gradient.values())
    still = {path for path, leaf in gradient.items() if not np.any(leaf)}
    assert {"/".join(path.split("/")[:2]) for path in still if not path.startswith("prompt_encoder")} == {
        "mask_decoder/iou_prediction_head"
    }
    assert "prompt_encoder/no_mask_embed/embedding" not in still


@pytest.mark.long
def test_bfloat16(segmented):
    variables, image, _, exact = segmented
    model = build_sam_seg("vit_t", num_classes=3, **SMALL, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes(model))} == {jnp.dtype("float32")}
    gradient, outputs = gradient_of(model, variables, image, "logits")
    assert outputs["image_embeddings"].dtype == jnp.bfloat16
    assert outputs["logits"].dtype == jnp.float32
    for name in model.endpoints:
        close(np.float32(outputs[name]), exact[name], relative=0.1)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("everywhere", [False, True])
def test_only_global_blocks_look_beyond_their_window(everywhere):
    options = SMALL | {"image_size": (32, 48), "depth": 1, "global_blocks": (0,) if everywhere else ()}
    model = ImageEncoder(build_sam("vit_t", **options).options)
    variables, image = filled(model), images(model)

    @jit
    def block(image):
        _, state = model.apply(variables, image, capture_intermediates=True, mutable=["intermediates"])
        return state["intermediates"]["blocks_0"]["__call__"][0]

    changed = np.abs(block(image.at[:, :8, :8].add(1)) - block(image))[0].max(axis=-1) > 0
    assert changed.shape == (4, 6)
    assert changed[:3, :3].all()
    assert changed.all() == everywhere
    assert changed[3:].any() == changed[:, 3:].any() == everywhere


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variant": "vit_x"}, "no SAM variant 'vit_x'.*vit_l"),
        ({"widow": 7}, "no option 'widow'.*'window'"),
        ({"image_size": 100}, "multiple of the patch size 8, found 100"),
        ({"image_size": (64, 100)}, "multiple of the patch size 8"),
        ({"heads": 5}, "divisor of dim 128, found 5"),
        ({"global_blocks": (4,)}, "below depth 4"),
        ({"embed_dim": 20}, "embed_dim"),
        ({"num_classes": 1}, "counts the background"),
    ],
    ids=str,
)
def test_what_cannot_be_built(options, words):
    with pytest.raises(ConfigError, match=words):
        build_sam_seg(**{"variant": "vit_t"} | options)


def test_what_cannot_be_run():
    model = build_sam("vit_t", **SMALL)

    def run(*image, **prompts):
        return jax.eval_shape(model.apply, shapes(model), jnp.zeros((*image, 3)), **prompts)

    with pytest.raises(ValueError, match=r"built for images of \(32, 32\) pixels and got \(32, 40\)"):
        run(1, 32, 40)
    with pytest.raises(ValueError, match=r"logits of \(16, 16\)"):
        run(1, 32, 32, masks=jnp.zeros((1, 8, 8, 1)))
    with pytest.raises(ValueError, match="found 3 sets for 2 images"):
        run(2, 32, 32, boxes=jnp.ones((3, 4)))
    assert build_sam_seg("vit_t", image_size=(32, 64)).inputs["image"].hw == (32, 64)
    with pytest.raises(ValueError, match="does not fit"):
        pad_to_square(jnp.zeros((1, 20, 40, 3)), 32)
