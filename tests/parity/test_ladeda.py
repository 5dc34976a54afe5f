"""LaDeDa and Tiny-LaDeDa beside the same models in PyTorch, with random weights; and one training step of both."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torch.nn import functional as F

from convert import families, verify
from convert.originals import ladeda as plain
from convert.table import slots
from kdjax import registry
from kdjax.config import Model
from kdjax.models.layers.preprocess import PREPROCESSES
from kdjax.models.vision.ladeda import FIELDS, PARAMETERS, TINY_PARAMETERS, TinyLadeda
from tests.support.quick import QUICK
from tests.support.twins import by_name, close, compared, converted, images, randomised, to_torch

SMALL: dict[str, Any] = {"widths": (4, 6, 8, 10), "depths": (1, 2, 1, 1)}


def pair(name: str, **options) -> tuple[Any, Any]:
    return randomised(plain.build(Model(name, **options))), registry.get("models", name)(**options)


@pytest.mark.parametrize("field", FIELDS)
def test_the_parameters_of_every_receptive_field(field):
    with torch.device("meta"):
        module = plain.build(Model("ladeda", receptive_field=field))
    assert sum(x.numel() for x in module.parameters()) == PARAMETERS[field]


def test_the_parameters_of_tiny():
    assert sum(x.numel() for x in plain.build(Model("tiny_ladeda")).parameters()) == TINY_PARAMETERS


@pytest.mark.parametrize("name", PREPROCESSES)
def test_preprocessing(name):
    image = images((6, 8))
    found = PREPROCESSES[name](jnp.asarray(image))
    expected = plain.preprocessed(to_torch(image), name).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("field", "size", "grid", "options"),
    [
        (5, (33, 47), (4, 6), {"preprocess": "raw", "pooling": "topk"}),
        (9, (33, 33), (4, 4), {"preprocess": "right_diag"}),
        (9, (224, 224), (27, 27), {"preprocess": "npr", "pooling": "topk"}),
        (17, (33, 63), (3, 6), {"preprocess": "x_grad"}),
        (33, (33, 40), (1, 1), {"preprocess": "raw"}),
    ],
    ids=str,
)
def test_ladeda_stage_by_stage(field, size, grid, options):
    module, model = pair("ladeda", receptive_field=field, image_size=size, **options, **SMALL)
    found = compared(plain, module, model, images(size))
    assert found["patch_logits"].shape == (2, *grid, 1)


@pytest.mark.parametrize(
    ("size", "grid", "options"),
    [
        ((256, 256), (126, 126), {"preprocess": "npr"}),
        ((224, 224), (110, 110), {"pooling": "topk"}),
        ((33, 41), (15, 19), {"preprocess": "left_diag"}),
        ((64, 50), (7, 6), {"crop": 10, "stride": 8}),
        ((51, 43), (6, 5), {"crop": 10, "stride": 8, "preprocess": "npr"}),
    ],
    ids=str,
)
def test_tiny_stage_by_stage(size, grid, options):
    module, model = pair("tiny_ladeda", image_size=size, **options)
    found = compared(plain, module, model, images(size))
    assert found["patch_logits"].shape == (2, *grid, 1)


@pytest.mark.long
@pytest.mark.parametrize("size", [224, 256])
def test_the_published_ladeda(size):
    """In float64 too; in float32 it is as near as the original is to itself in float64."""
    described = Model("ladeda", image_size=size, preprocess="npr")
    module, model = randomised(plain.build(described)), registry.get("models", "ladeda")(**described.options)
    arrays = {name: x.numpy() for name, x in module.state_dict().items()}
    found = verify.verify(families.get("ladeda"), described, arrays, converted(module, model))
    assert {one.endpoint for one in found} == set(model.endpoints)
    assert verify.worst(found).same, verify.worst(found).fault


def step(module: Any, model: Any, image: np.ndarray, relative: float = 1e-5) -> None:
    """Loss, the gradient of every parameter, and the running statistics."""
    variables, label = converted(module, model), np.array([0, 1, 1], image.dtype)[:, None]
    variables = jax.tree.map(lambda x: np.asarray(x, image.dtype), variables)

    def objective(params, image):
        out, changed = model.apply({**variables, "params": params}, image, train=True, mutable=["batch_stats"])
        logits = out["logits"]
        return (jnp.logaddexp(0, logits) - logits * label).mean(), changed

    run = jax.jit(jax.value_and_grad(objective, has_aux=True), compiler_options=QUICK)
    (loss, changed), grads = run(variables["params"], image)
    view = to_torch(image).contiguous()  # PyTorch 2.13 writes where it may not in gradients of channels that come last
    expected = F.binary_cross_entropy_with_logits(module.train()(view), torch.from_numpy(label))
    expected.backward()
    np.testing.assert_allclose(loss, expected.item(), rtol=relative)
    theirs = tensors(module, model)
    for name, x in by_name(changed["batch_stats"]).items():
        close(x, theirs[f"batch_stats/{name}"], relative, name)
    for name, x in by_name(grads).items():
        close(x, theirs[f"params/{name}"], 10 * relative, name)


def tensors(module: Any, model: Any) -> dict[str, np.ndarray]:
    """The slopes of the parameters and the running statistics, by our names."""
    state = {name: x.grad for name, x in module.named_parameters()} | dict(module.named_buffers())
    family = families.get("tiny_ladeda" if isinstance(model, TinyLadeda) else "ladeda")
    leaves = {"/".join(path): x for path, x in flatten_dict(shapes(model)).items()}
    found = slots(family.rows(Model("")), leaves)
    return {slot.target: slot.parts[0].row.how.together(state[slot.tensors[0]].numpy()) for slot in found}


def shapes(model: Any) -> dict:
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("ladeda", (33, 41), {"preprocess": "right_diag", **SMALL}),
        ("ladeda", (66, 58), {"receptive_field": 17, "pooling": "topk", **SMALL}),
        ("tiny_ladeda", (33, 41), {}),
        ("tiny_ladeda", (32, 40), {"preprocess": "npr", "pooling": "topk"}),
        ("tiny_ladeda", (34, 26), {"crop": 10, "stride": 8}),
    ],
    ids=str,
)
def test_one_training_step(name, size, options):
    step(*pair(name, image_size=size, **options), images(size, 3))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "size", "options"),
    [("ladeda", 224, {"variant": "small"}), ("tiny_ladeda", 224, {}), ("tiny_ladeda", 256, {"preprocess": "npr"})],
    ids=str,
)
def test_one_training_step_at_full_size(name, size, options):
    """In float64: over so many positions, what cancels in float32 is not told to five digits by either side."""
    module, _ = pair(name, image_size=size, **options)
    with jax.enable_x64(True):
        model = registry.get("models", name)(image_size=size, **options, dtype="float64")
        step(module.double(), model, images((size, size), 3).astype(np.float64), 1e-10)


@pytest.mark.parametrize(("name", "at"), [("ladeda", "layer1_0/conv2/kernel"), ("tiny_ladeda", "conv1/kernel")])
def test_the_comparison_would_notice(name, at):
    module, model = pair(name, image_size=34, **(SMALL if name == "ladeda" else {}))
    variables, image = converted(module, model), images((34, 34))
    path = lambda p: jax.tree_util.keystr(p, simple=True, separator="/")  # noqa: E731
    changed = jax.tree_util.tree_map_with_path(lambda p, x: x * 1.001 if path(p).endswith(at) else x, variables)
    found = jax.jit(model.apply, compiler_options=QUICK)(changed, image)
    with pytest.raises(AssertionError):
        close(found["logits"], plain.outputs(module, image)["logits"])
