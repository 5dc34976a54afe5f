"""Swin-V2 beside timm's and transformers', with random weights, stage by stage; and one training step."""

import importlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from convert import families
from convert.family import build, fit, tensors
from convert.originals import swinv2_hf
from convert.originals.swinv2 import steps
from convert.originals.transformers_config import from_config
from convert.sources import Tensor
from kdjax import registry
from kdjax.config import ConfigError, Model
from kdjax.models.vision.swin import PARAMETERS, VARIANTS
from tests.support.quick import QUICK
from tests.support.twins import by_name, close, images, randomised, same_slopes, to_torch

pytestmark = pytest.mark.long

SMALL: dict[str, Any] = {"dim": 12, "depths": (2, 2, 2), "heads": (1, 2, 3), "window": 4, "num_classes": 5}
ODD = SMALL | {"image_size": (88, 120)}  # maps of 22 x 30, 11 x 15, 6 x 8: padded, each in another way
NAMES = {"tiny": "tiny_window8_256", "small": "small_window16_256", "base": "base_window12to24_192to384"}
NAMES["large"] = "large_window12_192"


def timm(variant: str = "tiny", **options: Any) -> torch.nn.Module:
    from tests.support.timm import timm

    return timm.create_model(f"swinv2_{NAMES[variant]}", **{"num_classes": 1000, **options}).eval()


def like(options: Mapping[str, Any], **more: Any) -> torch.nn.Module:
    """timm's model of our options, with random weights."""
    names = {"dim": "embed_dim", "heads": "num_heads", "window": "window_size", "image_size": "img_size"}
    names |= {"pretrained_windows": "pretrained_window_sizes"}
    return steeper(randomised(timm(**{names.get(name, name): x for name, x in options.items()}, **more)))


def steeper(module: torch.nn.Module, by: float = 2.3) -> torch.nn.Module:
    """Cosines are multiplied by about e^`by`; by 10, as training begins, where nothing else is said."""
    with torch.no_grad():
        for name, x in module.named_parameters():
            if name.endswith("logit_scale"):
                x.add_(by)
    return module


def variables(family: str, module: torch.nn.Module, options: Mapping[str, Any]) -> tuple[Any, dict]:
    """Our model with these weights, through the converter."""
    return of_tensors(family, dict(module.state_dict()), options)


def of_tensors(family: str, named: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Any, dict]:
    arrays = {name: x.detach().numpy() for name, x in named.items()}
    source = {name: Tensor("", x.shape, x.dtype, lambda x=x: x) for name, x in arrays.items()}
    converted = fit(families.get(family), source, options)
    return build(converted.model), jax.tree.map(lambda leaf: leaf.read(), converted.variables)


def timms_answers(module: Any, image: np.ndarray) -> dict[str, np.ndarray]:
    with torch.no_grad():
        last, maps = module.forward_intermediates(to_torch(image))
        found = {f"stage_{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(maps)}
        found |= {"features": module.forward_head(last, pre_logits=True), "logits": module(to_torch(image))}
    return {name: x.numpy() for name, x in found.items()}


def compare(model: Any, weights: dict, image: np.ndarray, expected: Mapping[str, np.ndarray], relative=1e-5) -> None:
    found = jax.jit(model.apply, compiler_options=QUICK)(weights, image)
    assert set(found) == set(expected) == set(model.endpoints)
    for name, x in expected.items():
        close(found[name], x, relative, name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_parameters_of_every_variant(variant):
    options = {"depths": VARIANTS[variant]["depths"], "heads": VARIANTS[variant]["heads"]}
    ours = registry.get("models", "swinv2")(variant=variant, dim=VARIANTS[variant]["dim"], **options)
    with torch.device("meta"):
        modules = [timm(variant), from_config("AutoModelForImageClassification", described(ours))]
    assert [sum(x.numel() for x in module.parameters()) for module in modules] == [PARAMETERS[variant]] * 2


def described(ours: Any) -> Any:
    return swinv2_hf.described(swinv2_hf.guess(ours), {"image_size": list(ours.options.image_hw)})


@pytest.mark.parametrize(
    "options",
    [
        SMALL | {"image_size": (64, 128)},  # maps of 16 x 32, 8 x 16, 4 x 8: the last is shifted along its rows alone
        SMALL | {"image_size": 96, "window": 12, "pretrained_windows": (8, 8, 4)},  # 24 x 24, 12 x 12, 6 x 6
        SMALL | {"image_size": (16, 80), "window": 5},  # 4 x 20: lower than a window
        {"image_size": 256, "window": 8, "num_classes": 1000},  # tiny as published
        {"image_size": 256, "window": 16, "num_classes": 1000},
    ],
    ids=["not square", "fine-tuned", "low", "tiny, window 8", "tiny, window 16"],
)
def test_timm_stage_by_stage(options):
    module = like(options)
    given = {name: x for name, x in options.items() if name in ("image_size", "window", "pretrained_windows")}
    model, weights = variables("swinv2", module, given)
    image = images(model.options.image_hw, 1 if "dim" not in options else 2)
    compare(model, weights, image, timms_answers(module, image))


@pytest.mark.parametrize(
    "options",
    [ODD, SMALL | {"image_size": 64, "pretrained_windows": (3, 3, 2)}, ODD | {"num_classes": 0, "activation": "silu"}],
    ids=["padded", "square", "features"],
)
def test_transformers_stage_by_stage(options):
    options = options | {"pad_windows": True, "mask": 200.0}
    module: Any = steeper(randomised(swinv2_hf.build(Model("swinv2", **options))))
    names = ("image_size", "window", "pretrained_windows", "activation")
    model, weights = variables("swinv2_hf", module, {name: x for name, x in options.items() if name in names})
    assert model == registry.get("models", "swinv2")(**options)
    image = images(model.options.image_hw)
    with torch.no_grad():
        expected = swinv2_hf.outputs(module, image)
        y = module.module(to_torch(image))  # and what it answers when it is called as people call it
    expected |= {"logits": y.logits.numpy()} if options["num_classes"] else {"features": y.pooler_output.numpy()}
    compare(model, weights, image, expected)


def test_timm_takes_the_mask_once_and_transformers_twice():
    """Where cosines are multiplied by 100, the most that there is, a mask of 100 does not hide everything. Rounding is
    multiplied too, so this is seen in float64, with tables that were not made in float32."""
    options = SMALL | {"image_size": 64, "depths": (2, 1), "heads": (2, 3)}
    module: Any = steeper(like(options), 5.0).double()
    for stage in module.layers:
        for block in stage.blocks:
            block.attn.relative_coords_table = steps(block.attn.window_size, 0)[None]
    image = images((64, 64)).astype(np.float64)
    _, weights = variables("swinv2", module, {"image_size": 64, "window": 4})
    twice = {"mask": 200.0, "pad_windows": True}
    theirs: Any = swinv2_hf.build(Model("swinv2", **options, **twice))
    named = tensors(families.get("swinv2_hf"), Model("swinv2", **options, **twice), weights)
    theirs.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in named})
    once, again = timms_answers(module, image), swinv2_hf.outputs(theirs.double(), image)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, weights)
        for mask, expected in ((100.0, once), (200.0, again)):
            model = registry.get("models", "swinv2")(**options, mask=mask, dtype="float64")
            compare(model, wide, image, expected, 1e-12)
    with pytest.raises(AssertionError):
        close(once["stage_0"], again["stage_0"], 1e-4)


def slopes(model: Any, weights: dict, image: np.ndarray, label: np.ndarray) -> tuple[float, dict[str, np.ndarray]]:
    """Cross-entropy, and its gradient by each parameter."""

    def objective(params: Any, image: Any) -> Any:
        logits = model.apply({"params": params}, image, train=True)["logits"]
        return -jax.nn.log_softmax(logits)[jnp.arange(len(label)), label].mean()

    loss, tree = jax.jit(jax.value_and_grad(objective), compiler_options=QUICK)(weights["params"], image)
    return float(loss), by_name(tree)


def test_one_training_step_of_timms():
    """Without drop path; ours makes its blocks again for it."""
    options = SMALL | {"image_size": (64, 128)}
    module = like(options, drop_path_rate=0.0).train()
    given = {"image_size": (64, 128), "window": 4, "drop_path": 0.0, "remat": True}
    model, weights = variables("swinv2", module, given)
    image, label = images((64, 128), batch=3), np.array([0, 4, 1])
    loss, found = slopes(model, weights, image, label)
    expected = torch.nn.functional.cross_entropy(module(to_torch(image)), torch.from_numpy(label))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    _, theirs = of_tensors("swinv2", {name: x.grad for name, x in module.named_parameters()}, given)
    assert not same_slopes(found, by_name(theirs["params"]))


def test_one_training_step_of_transformers_with_padded_windows():
    options = ODD | {"pad_windows": True, "mask": 200.0, "drop_path": 0.0}
    module: Any = steeper(randomised(swinv2_hf.build(Model("swinv2", **options)))).train()
    given = {name: options[name] for name in ("image_size", "window", "drop_path")}
    model, weights = variables("swinv2_hf", module, given)
    image, label = images((88, 120)), np.array([0, 4])
    _, found = slopes(model, weights, image, label)
    module.module(to_torch(image), labels=torch.from_numpy(label)).loss.backward()
    inside = {name: x.grad for name, x in module.module.named_parameters()}
    _, theirs = of_tensors("swinv2_hf", {name: inside[at] for name, at in module.inside.items()}, given)
    assert not same_slopes(found, by_name(theirs["params"]))


def test_the_comparison_would_notice():
    """Each fault that a port of this model could have shows in the logits."""
    options = SMALL | {"image_size": (64, 128), "pretrained_windows": (3, 3, 2)}
    module, image = like(options), images((64, 128))
    given = {name: options[name] for name in ("image_size", "window", "pretrained_windows")}
    model, weights = variables("swinv2", module, given)
    good = timms_answers(module, image)
    ends = ("logit_scale", "q_bias", "v_bias", "cpb_mlp.0.weight", "cpb_mlp.2.weight", "downsample.norm.bias")
    for end in (*ends, "norm1.weight", "norm2.bias", "patch_embed.norm.bias"):
        changed = {n: x * 1.01 if n.endswith(end) else x for n, x in module.state_dict().items()}
        _, bad = of_tensors("swinv2", changed, given)
        with pytest.raises(AssertionError):
            compare(model, bad, image, good)
    for change in ({"pretrained_windows": ()}, {"window": 8}, {"mask": 0.0}):
        with pytest.raises(AssertionError):
            compare(registry.get("models", "swinv2")(**options | change), weights, image, good)


def test_sizes_at_which_transformers_has_other_windows_are_no_comparison():
    for size in ((64, 128), (72, 120)):  # not square where a map is its window; 18 rows, 9, and 4 for it instead of 5
        options = SMALL | {"image_size": size, "pad_windows": True, "mask": 200.0}
        with pytest.raises(ConfigError, match="stage 2: transformers has square windows alone, of 4, shifted by 0"):
            swinv2_hf.build(Model("swinv2", **options))


@pytest.mark.parametrize("classes", [5, 0])
def test_the_authors_files_come_in_as_timms(classes):
    """Their stages end with the merging that timm's begin with, their head has no `fc`, and they hold what follows from
    the window; which tells the window."""
    options = SMALL | {"image_size": 96, "window": 12, "num_classes": classes}
    module = like(options)
    state = dict(module.state_dict())
    model, weights = variables("swinv2", module, {"image_size": 96, "window": 12})
    authors = {}
    for name, x in state.items():
        parts = name.replace("head.fc", "head").split(".")
        if parts[2:3] == ["downsample"]:
            parts[1] = str(int(parts[1]) - 1)
        authors[".".join(parts)] = x
    buffers = {"relative_coords_table": (1, 23, 23, 2), "relative_position_index": (144, 144)}
    for name, shape in buffers.items():
        authors[f"layers.0.blocks.0.attn.{name}"] = torch.zeros(shape)
    authors["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 144, 144)
    found, theirs = of_tensors("swinv2", authors, {"image_size": 96})
    assert found == model
    jax.tree.map(np.testing.assert_array_equal, theirs, weights)


def test_features_alone_of_a_classifier():
    for family in ("swinv2", "swinv2_hf"):
        options = SMALL | {"image_size": 64, "pad_windows": family == "swinv2_hf"}
        module = importlib.import_module(f"convert.originals.{family}").build(Model("swinv2", **options))
        model, weights = variables(family, module, {"image_size": 64, "window": 4, "num_classes": 0})
        assert "head" not in weights["params"]
        assert "logits" not in model.endpoints
