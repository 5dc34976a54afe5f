"""Grad-CAM++: the formula, the layers it can be asked for, and where its heat lies."""

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kdjax
from kdjax.config import ConfigError
from kdjax.deploy import gradcam
from kdjax.distill.taps import Network
from kdjax.models.inputs import ImageInput
from kdjax.tasks.classification import Classification

CONVNET = {"widths": (4, 6, 8), "depths": (1, 1, 2), "image_size": 16, "num_classes": 3}
VIT = {"dim": 16, "depth": 3, "heads": 2, "taps": (0, 2), "image_size": 32, "patch_size": 8, "num_classes": 3}
TASK = Classification(3)
plus_plus = jax.jit(gradcam.plus_plus)


def shapes(side, rows=2):
    return {"image": jax.ShapeDtypeStruct((rows, side, side, 3), jnp.float32)}


def start(model):
    """Variables that are nowhere zero, the biases least of all."""
    image = jnp.zeros((1, *model.inputs["image"].hw, 3))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(
        lambda x: rng.normal(0, max(x.size / x.shape[-1], 8) ** -0.5, x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0), image),
    )
    shift = lambda path, x: np.abs(x) + 0.5 if path[-1].key in ("scale", "var") else x  # noqa: E731
    return jax.tree_util.tree_map_with_path(shift, drawn)


def found(name, **options):
    """The layers of a registered model, of which nothing is computed."""
    model = kdjax.build(name, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.inputs["image"].hw, 3)))
    return gradcam.layers(Network(model), variables, shapes(model.inputs["image"].hw[0]))


@cache
def convnet():
    return found("convnet", **CONVNET)


def literal(maps, slopes):
    """The paper's equations in float64, as they are printed."""
    maps, slopes = maps.astype(np.float64), slopes.astype(np.float64)
    cams = np.zeros(maps.shape[:3])
    for b, k in np.ndindex(len(maps), maps.shape[-1]):
        a, g = maps[b, ..., k], slopes[b, ..., k]
        alpha = g**2 / (2 * g**2 + a.sum() * g**3)
        cams[b] += (alpha * np.maximum(g, 0)).sum() * a
    return np.maximum(cams, 0)


# -- the formula -----------------------------------------------------------------------------------------------------


def test_the_weights_are_the_papers():
    rng = np.random.default_rng(0)
    maps = np.maximum(rng.normal(size=(3, 5, 4, 7)), 0).astype(np.float32)
    slopes = (rng.normal(size=maps.shape) * 0.02).astype(np.float32)
    cams = plus_plus(jnp.asarray(maps), jnp.asarray(slopes))
    assert (np.asarray(cams) > 0).any()
    np.testing.assert_allclose(cams, literal(maps, slopes), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(plus_plus(jnp.asarray(maps), jnp.zeros_like(slopes)), 0)


def test_a_map_of_both_signs_does_not_divide_by_nothing():
    maps = np.zeros((1, 1, 2, 2), np.float32)
    maps[0, 0, :, 0], maps[0, 0, :, 1] = (-3.0, 1.0), (1.0, 2.0)
    slopes = np.full_like(maps, 1.0)  # of the first map 2 g² + ΣA g³ is 0
    cam = np.asarray(plus_plus(jnp.asarray(maps), jnp.asarray(slopes)))
    np.testing.assert_allclose(cam, [[[0.0, 2 * 1.0 + 2 / 5 * 2.0]]], rtol=1e-6)


# -- the layers ------------------------------------------------------------------------------------------------------


def test_an_endpoint_is_the_module_that_gives_it():
    layers = convnet()
    assert {name: layer.path for name, layer in layers.endpoints.items()} == {
        "stage_0": "stages_0_0",
        "stage_1": "stages_1_0",
        "stage_2": "stages_2_1",
    }
    assert layers.last() == [gradcam.Layer("stage_2", "stages_2_1", (4, 4)), layers.modules["stages_2_0"]]
    assert layers.named("stages_1_0/conv_1/conv").grid == (8, 8)
    assert layers.named("/stem").grid == (16, 16)


@pytest.mark.parametrize("how", [{}, pytest.param({"remat": True}, marks=pytest.mark.long)])
def test_tokens_have_the_grid_of_the_models_maps(how):
    layers = found("vit", variant="vit_ti16", **VIT, **how)
    assert layers.endpoints["block_2"] == gradcam.Layer("block_2", "blocks_2", (4, 4))
    assert layers.named("blocks_1/attn/qkv").grid == (4, 4)
    assert [layer.path for layer in layers.last()] == ["blocks_2", "blocks_1"]
    tokens = jnp.arange(17.0)[None, :, None]
    np.testing.assert_array_equal(layers.named("tokens").places(tokens)[0, :, :, 0], np.arange(1, 17).reshape(4, 4))


@pytest.mark.long
def test_of_a_model_of_several_parts_the_first_ones_last_map():
    part = {"name": "convnet", "options": CONVNET}
    layers = found("peers", first=part, second={**part, "options": CONVNET | {"depths": (1, 1, 1)}})
    assert layers.last()[0].path == "first/stages_2_1"
    assert layers.endpoints["second.stage_2"].path == "second/stages_2_0"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stage_9", "--gradcam=stage_9: the model has no such layer; did you mean 'stage_2'"),
        ("stages_2_1/conv", "no such layer; did you mean 'stages_2_1/conv_1'"),
        (
            "features",
            r"features: expected a map \[b, h, w, c\] or tokens .*, found \['b', 8\]; known: stage_0, stage_1,",
        ),
        ("head", r"head: expected a map .*found \['b', 3\].* and modules by path, such as stages_2_1"),
    ],
)
def test_another_layer_is_refused(name, said):
    with pytest.raises(ConfigError, match=said):
        convnet().named(name)


@pytest.mark.long
def test_layers_of_a_scan_are_refused():
    layers = found("vit", variant="vit_ti16", **VIT, scan=True)
    with pytest.raises(ConfigError, match=r"the last map 'block_2' comes of no module alone, as inside nn\.scan"):
        layers.last()
    with pytest.raises(ConfigError, match="the model has no such layer"):
        layers.named("blocks_1")


# -- where the heat lies ---------------------------------------------------------------------------------------------


class Coloured(nn.Module):
    """How much of each colour there is, as the score of a class: in a map, or in tokens behind two others."""

    tokens: bool = False

    @property
    def inputs(self):
        return {"image": ImageInput(12, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}

    @property
    def endpoints(self):
        return ("logits", "map")

    @nn.compact
    def __call__(self, image, train=False):
        b, c = len(image), 3
        pure = jnp.maximum(image - (image.sum(-1, keepdims=True) - image), 0).reshape(b, 6, 2, 6, 2, c).mean((2, 4))
        x = jnp.concatenate([jnp.ones((b, 2, c)), pure.reshape(b, -1, c)], 1) if self.tokens else pure
        x = Same(name="same")(x)
        places = x[:, 2:].reshape(b, 6, 6, c) if self.tokens else x
        return {"map": places, "logits": places.mean((1, 2))}


class Same(nn.Module):
    def __call__(self, x):
        return x


@pytest.mark.parametrize("tokens", [False, True])
def test_the_patch_that_decides_has_the_heat(tokens):
    image = np.full((2, 12, 12, 3), 90, np.uint8)
    image[0, 2:4, 6:8] = (255, 0, 0)
    image[0, 8:10, 0:2] = (0, 200, 0)
    image[1, 10:12, 10:12] = (0, 0, 255)
    network = Network(Coloured(tokens))
    (layer,) = gradcam.candidates(network, {}, shapes(12), "map")
    assert layer.path == "same"
    batch = {"image": image, "index": np.arange(2)}
    for of, places in ((None, [(1, 3), (5, 5)]), (1, [(4, 0), None]), (2, [None, (5, 5)])):
        rows = gradcam.explaining(network, TASK, layer, of)({}, batch)
        np.testing.assert_array_equal(rows["logits"].argmax(-1), [0, 2])
        for cam, place in zip(np.asarray(rows["cam"]), places, strict=True):
            assert [tuple(at) for at in np.argwhere(cam > 0)] == ([place] if place else [])


@pytest.mark.long
def test_a_layer_that_the_score_does_not_read_is_passed_over_or_refused():
    """Of a transformer's last block the class token alone counts."""
    model = kdjax.build("vit", variant="vit_ti16", **VIT)
    variables, network = start(model), Network(model)
    last, before = gradcam.candidates(network, variables, shapes(32), gradcam.LAST)
    assert gradcam.first_read(network, variables, 32, [last, before]).path == "blocks_1"
    with pytest.raises(ConfigError, match="no place of block_2 has a say in the class score"):
        gradcam.first_read(network, variables, 32, [last])


# -- beside PyTorch --------------------------------------------------------------------------------------------------


def beside_torch(module, model, variables, layer, hooked, places, of):
    """Our heat in float32, and that of the same model in PyTorch, by hooks, in float64."""
    import torch

    side = model.inputs["image"].hw[0]
    image = np.random.default_rng(1).integers(0, 256, (3, side, side, 3), np.uint8)
    network = Network(model)
    rows = gradcam.explaining(network, TASK, network_layer(network, variables, side, layer), of)(
        variables, {"image": image, "index": np.arange(3)}
    )
    kept = {}
    hooked.register_forward_hook(lambda module, inputs, output: kept.update(maps=output))
    hooked.register_full_backward_hook(lambda module, inputs, outputs: kept.update(slopes=outputs[0]))
    view = np.asarray(network.view({"image": jnp.asarray(image, jnp.float32) / 255})[0], np.float64)
    logits = module(torch.from_numpy(view).permute(0, 3, 1, 2).requires_grad_())
    logits = logits["logits"] if isinstance(logits, dict) else logits
    np.testing.assert_allclose(rows["logits"], logits.detach(), rtol=1e-4, atol=1e-5)
    chosen = logits.argmax(1) if of is None else torch.full((3,), of)
    logits.gather(1, chosen[:, None]).sum().backward()
    maps, slopes = (places(kept[name].detach().numpy()) for name in ("maps", "slopes"))
    assert (2 + maps.sum((1, 2), keepdims=True) * slopes > 1)[slopes > 0].all()  # where the printed formula is ours
    expected = literal(maps, slopes)
    assert (expected > 0).any()
    np.testing.assert_allclose(rows["cam"], expected, rtol=1e-4, atol=1e-4 * expected.max())


def network_layer(network, variables, side, name):
    (layer, *_) = gradcam.candidates(network, variables, shapes(side), name)
    return layer


@pytest.mark.long
@pytest.mark.parametrize("of", [None, 2])
def test_a_vits_tokens_as_hooks_in_torch_have_them(of):
    from convert.originals import vit as plain
    from kdjax.config import Model
    from tests.support.twins import converted, randomised

    model = kdjax.build("vit", variant="vit_ti16", **VIT)
    module = randomised(plain.build(Model("vit", variant="vit_ti16", **VIT))).eval()
    variables = converted(module, model)
    module = module.double()
    tokens = lambda x: x[:, 1:].reshape(len(x), 4, 4, -1)  # noqa: E731
    beside_torch(module, model, variables, "blocks_1", module.blocks[1], tokens, of)


@pytest.mark.long
@pytest.mark.parametrize(("name", "stage"), [("stage_2", 2), ("stage_0", 0)])
def test_a_convnets_maps_as_hooks_in_torch_have_them(name, stage):
    import torch

    model = kdjax.build("convnet", **CONVNET)
    variables = start(model)
    module = twin(variables).double().eval()
    nhwc = lambda x: x.transpose(0, 2, 3, 1)  # noqa: E731
    assert isinstance(module, torch.nn.Module)
    beside_torch(module, model, variables, name, module.stages[stage], nhwc, None)


def twin(variables):
    """A convnet in PyTorch with our weights, written anew."""
    import torch
    from torch import nn as tnn
    from torch.nn import functional as F

    params, stats = variables["params"], variables["batch_stats"]
    tensor = lambda x: torch.from_numpy(np.asarray(x, np.float64))  # noqa: E731

    def conv_norm(x, path, stride=1):
        p, s = params, stats
        for key in path:
            p, s = p[key], s[key]
        kernel = tensor(p["conv"]["kernel"]).permute(3, 2, 0, 1)
        x = F.conv2d(x, kernel, tensor(p["conv"]["bias"]) if "bias" in p["conv"] else None, stride, 1)
        norm = [tensor(a) for a in (s["norm"]["mean"], s["norm"]["var"], p["norm"]["scale"], p["norm"]["bias"])]
        return F.batch_norm(x, *norm, eps=1e-5)

    class Stage(tnn.Module):
        def __init__(self, i):
            super().__init__()
            self.i = i

        def forward(self, x):
            for j in range(CONVNET["depths"][self.i]):
                name, stride = f"stages_{self.i}_{j}", 2 if self.i and not j else 1
                y = conv_norm(F.relu(conv_norm(x, (name, "conv_0"), stride)), (name, "conv_1"))
                if "shortcut" in params[name]:
                    x = x[:, :, ::stride, ::stride]
                    kernel = tensor(params[name]["shortcut"]["kernel"]).reshape(x.shape[1], -1)
                    x = torch.einsum("bchw,cd->bdhw", x, kernel)
                    if "bias" in params[name]["shortcut"]:
                        x = x + tensor(params[name]["shortcut"]["bias"])[None, :, None, None]
                x = F.relu(x + y)
            return x

    class Twin(tnn.Module):
        def __init__(self):
            super().__init__()
            self.stages = tnn.ModuleList(Stage(i) for i in range(len(CONVNET["depths"])))

        def forward(self, x):
            x = F.relu(conv_norm(x, ("stem",)))
            for stage in self.stages:
                x = stage(x)
            head = params["head"]
            return x.mean((2, 3)) @ tensor(head["kernel"]) + tensor(head["bias"])

    return Twin()
