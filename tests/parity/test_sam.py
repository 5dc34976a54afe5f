"""SAM against segment_anything, stage by stage, with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from kdjax.models.vision.sam import build_sam, build_sam_seg
from kdjax.models.vision.sam.geometry import pad_to_square, postprocess, resize_longest, resize_points, resized
from kdjax.models.vision.sam.image_encoder import ImageEncoder
from kdjax.models.vision.sam.prompt_encoder import PromptEncoder
from tests.support.quick import QUICK
from tests.support.torch_names import to_flax
from tests.support.torch_sam import original

SMALL = {
    "dim": 48,
    "depth": 3,
    "heads": 3,
    "global_blocks": (1,),
    "patch_size": 8,
    "window": 3,
    "embed_dim": 32,
    "mask_channels": 8,
    "decoder_heads": 2,
    "decoder_mlp_dim": 40,
    "iou_dim": 24,
}
jit = functools.partial(jax.jit, compiler_options=QUICK)
SIZES = {"whole windows": 48, "padded windows": 64, "less than a window": 16, "not square": (40, 64)}


@functools.cache
def pair(size, masks=4):
    """(ours, variables, the original) with the same weights."""
    options = SMALL | {"image_size": size}
    theirs = original(build_sam("vit_b", **options).options, masks)
    if masks == 4:
        ours = build_sam(**options)
    else:
        ours = build_sam_seg(num_classes=masks, **options)
    image = jax.ShapeDtypeStruct((1, *ours.options.image_hw, 3), jnp.float32)
    shapes = jax.eval_shape(ours.init, jax.random.key(0), image)
    return ours, to_flax(theirs.state_dict(), shapes, transposed="output_upscaling"), theirs


def images(options, b=1):
    return jnp.asarray(np.random.default_rng(0).normal(size=(b, *options.image_hw, 3)), jnp.float32)


def nchw(x) -> torch.Tensor:
    return torch.tensor(np.moveaxis(np.asarray(x), -1, 1))


def close(ours, theirs: torch.Tensor, channels_first=True):
    theirs = theirs.detach().numpy()
    theirs = np.moveaxis(theirs, 1, -1) if channels_first else theirs
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    assert scale > 1e-2
    np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, rtol=0, atol=1e-5)


def stages(theirs: torch.nn.Module, image) -> dict[str, torch.Tensor]:
    """The output of each part of the original image encoder, channels last."""
    seen = {}
    parts = dict(theirs.image_encoder.named_modules())
    names = [n for n in parts if n == "patch_embed" or n.startswith(("blocks.", "neck."))]
    hooks = [
        parts[n].register_forward_hook(lambda _m, _i, out, n=n: seen.__setitem__(n, out))
        for n in names
        if n.count(".") <= 1
    ]
    with torch.no_grad():
        seen[""] = theirs.image_encoder(nchw(image))
    for hook in hooks:
        hook.remove()
    return {n: torch.movedim(x, 1, -1) if n == "" or n.startswith("neck") else x for n, x in seen.items()}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_image_encoder(size):
    ours, variables, theirs = pair(size)
    image = images(ours.options, 2)
    wanted = stages(theirs, image)
    encoder = ImageEncoder(ours.options)

    @jit
    def run(params, image):
        return encoder.apply({"params": params}, image, capture_intermediates=True, mutable=["intermediates"])

    embeddings, state = run(variables["params"]["image_encoder"], image)
    seen = state["intermediates"]
    for name, output in wanted.items():
        if name:
            close(seen[name.replace(".", "_")]["__call__"][0], output, channels_first=False)
    close(embeddings, wanted[""], channels_first=False)
    assert len(wanted) == 1 + 3 + 4 + 1


@pytest.mark.long
def test_image_encoder_with_the_widths_of_vit_b():
    options = {"depth": 2, "global_blocks": (1,), "image_size": 256}
    ours, theirs = build_sam(**options), original(build_sam("vit_b", **options).options)
    image = images(ours.options)
    variables = to_flax(theirs.state_dict(), jax.eval_shape(ours.init, jax.random.key(0), image), transposed="upscal")
    outputs = jit(functools.partial(ours.apply, multimask_output=False))(variables, image)
    with torch.no_grad():
        embeddings = theirs.image_encoder(nchw(image))
        sparse, dense = theirs.prompt_encoder(None, None, None)
        logits, iou = theirs.mask_decoder(embeddings, theirs.prompt_encoder.get_dense_pe(), sparse, dense, False)
    close(outputs["image_embeddings"], embeddings)
    close(outputs["low_res_logits"], logits)
    close(outputs["iou_predictions"], iou)


def prompts(options, kind: str, p: int) -> dict:
    """Prompts of the kinds named in `kind`; labels include 'no point', coordinates lie off the pixel grid."""
    rng, (h, w) = np.random.default_rng(1), options.image_hw
    made = {}
    if "points" in kind:
        made["points"] = (
            rng.uniform(0, (w, h), (p, 3, 2)).astype(np.float32),
            rng.permuted(np.tile(np.array([1, 0, -1], np.float32), (p, 1)), axis=1),
        )
    if "boxes" in kind:
        made["boxes"] = np.sort(rng.uniform(0, min(h, w), (p, 2, 2)), axis=1).reshape(p, 4).astype(np.float32)
    if "masks" in kind:
        made["masks"] = rng.normal(0, 3, (p, 4 * options.grid[0], 4 * options.grid[1], 1)).astype(np.float32)
    return jax.tree.map(jnp.asarray, made)


def theirs_of(given: dict) -> dict:
    """The same prompts for the original."""
    points = tuple(torch.tensor(np.asarray(x)) for x in given["points"]) if "points" in given else None
    boxes = torch.tensor(np.asarray(given["boxes"])) if "boxes" in given else None
    return {"points": points, "boxes": boxes, "masks": nchw(given["masks"]) if "masks" in given else None}


@pytest.mark.parametrize("kind", ["none", "points", "boxes", "masks", "points boxes", "points boxes masks"])
@pytest.mark.parametrize("size", [64, (40, 64)])
def test_prompt_encoder(size, kind):
    ours, variables, theirs = pair(size)
    given = prompts(ours.options, kind, p=2)
    variables = {name: tree["prompt_encoder"] for name, tree in variables.items()}
    tokens, dense, positions = jit(PromptEncoder(ours.options).apply)(variables, **given)
    with torch.no_grad():
        sparse, wanted = theirs.prompt_encoder(**theirs_of(given))
        close(positions[None], theirs.prompt_encoder.get_dense_pe())
    close(dense, wanted)
    assert tokens.shape == sparse.shape
    if sparse.numel():
        close(tokens, sparse, channels_first=False)


@pytest.mark.parametrize(
    ("size", "kind", "multimask"), [(64, "none", True), (64, "points", False), ((40, 64), "points boxes masks", True)]
)
def test_whole(size, kind, multimask):
    ours, variables, theirs = pair(size)
    image, given = images(ours.options), prompts(ours.options, kind, p=2)
    outputs = jit(functools.partial(ours.apply, multimask_output=multimask))(variables, image, **given)
    with torch.no_grad():
        embeddings = theirs.image_encoder(nchw(image))
        sparse, dense = theirs.prompt_encoder(**theirs_of(given))
        positions = theirs.prompt_encoder.get_dense_pe()
        logits, iou = theirs.mask_decoder(embeddings, positions, sparse, dense, multimask)
    close(outputs["low_res_logits"], logits)
    close(outputs["iou_predictions"], iou)


@pytest.mark.parametrize("classes", [2, 3])
def test_segmenter(classes):
    ours, variables, theirs = pair(64, masks=classes)
    image = images(ours.options, 2)
    outputs = jit(ours.apply)(variables, image)
    with torch.no_grad():
        for i in range(2):  # the original decodes one image at a time
            embeddings = theirs.image_encoder(nchw(image[i : i + 1]))
            sparse, dense = theirs.prompt_encoder(None, None, None)
            logits, iou = theirs.mask_decoder.predict_masks(
                embeddings, theirs.prompt_encoder.get_dense_pe(), sparse, dense
            )
            if classes == 2:
                logits, iou = logits[:, :1], iou[:, :1]
            close(outputs["image_embeddings"][i : i + 1], embeddings)
            close(outputs["low_res_logits"][i : i + 1], logits)
            close(outputs["iou_predictions"][i : i + 1], iou)
            upscaled = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
            close(outputs["logits"][i : i + 1], upscaled)


def test_gradients():
    ours, variables, theirs = pair(64)
    image = images(ours.options)
    weight = np.random.default_rng(2).normal(size=(1, 32, 32, 3)).astype(np.float32)

    def objective(params):
        return (ours.apply(variables | {"params": params}, image)["low_res_logits"] * weight).sum()

    gradients = jit(jax.grad(objective))(variables["params"])
    theirs.zero_grad()
    sparse, dense = theirs.prompt_encoder(None, None, None)
    positions = theirs.prompt_encoder.get_dense_pe()
    logits, _ = theirs.mask_decoder(theirs.image_encoder(nchw(image)), positions, sparse, dense, True)
    (logits * nchw(weight)).sum().backward()
    wanted = to_flax(
        {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in theirs.named_parameters()},
        {"params": variables["params"]},
        transposed="output_upscaling",
    )["params"]
    size = max(np.abs(x).max() for x in jax.tree.leaves(wanted))
    assert size > 1e-2
    for (path, ours_leaf), leaf in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(wanted), strict=True):
        scale = max(np.abs(leaf).max(), 1e-3 * size)
        np.testing.assert_allclose(ours_leaf / scale, leaf / scale, rtol=0, atol=1e-4, err_msg=str(path))


@pytest.mark.parametrize("size", [(50, 37), (20, 90)])
def test_images_of_other_sizes(size):
    """From the image's own pixels to masks in them, as SAM's predictor does."""
    ours, variables, theirs = pair(64)
    side = 64
    image = np.random.default_rng(3).uniform(size=(1, *size, 3)).astype(np.float32)
    spec = ours.inputs["image"]
    small = resize_longest(jnp.asarray(image), side)
    shape = resized(size, side)
    reference = F.interpolate(nchw(image), shape, mode="bilinear", align_corners=False, antialias=True)
    close(small, reference)
    mean, std = (jnp.array(x)[None, None, None] for x in (spec.mean, spec.std))
    outputs = jit(ours.apply)(variables, pad_to_square((small - mean) / std, side))
    masks = postprocess(outputs["low_res_logits"], side, shape, size)
    with torch.no_grad():
        record = {"image": nchw(small)[0] * 255, "original_size": size}
        wanted = theirs([record], multimask_output=True)[0]
        close(outputs["low_res_logits"], wanted["low_res_logits"])
        close(masks, theirs.postprocess_masks(wanted["low_res_logits"], shape, size))
    points = jnp.array([[3.5, 7.0], [30.0, 11.0]])
    wanted = np.asarray(points) * [shape[1] / size[1], shape[0] / size[0]]
    np.testing.assert_allclose(resize_points(points, size, side), wanted, rtol=1e-6)


def test_names_that_do_not_fit_are_all_listed():
    _, variables, theirs = pair(64)
    state = dict(theirs.state_dict())
    state["image_encoder.neck.9.weight"] = state.pop("image_encoder.neck.0.weight")
    state["mask_decoder.iou_token.weight"] = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="does not fit") as caught:
        to_flax(state, variables, transposed="output_upscaling")
    words = ["unused: image_encoder.neck.9.weight", "unfilled: params/image_encoder/neck_0/kernel", "iou_token.weight"]
    assert all(word in str(caught.value) for word in words)
    assert len(str(caught.value).splitlines()) == 4
