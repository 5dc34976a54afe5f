import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from kdjax.config import ConfigError, Model, Teacher, Term
from kdjax.distill import adapters
from kdjax.distill.adapters import Patches
from kdjax.distill.teachers import build_model
from kdjax.tasks.classification import Classification
from kdjax.train.setup import objective_of
from tests.support import tiny

SHAPES = {"vectors": (6, 5), "tokens": (6, 7, 5), "maps": (6, 3, 4, 5)}
GRIDS = ("adaptive_pool", "patch_centres")  # which give a map another grid, and leave channels alone
PATCHES = (Patches(5, 2, (9, 12)), Patches(6, 3, (9, 12)))  # 3 × 4 and 2 × 3 of them
CASES = [(name, what) for name in adapters.ADAPTERS for what in SHAPES if name not in GRIDS or what == "maps"]


def made(name, shape):
    wanted = (shape[0], 2, 3, shape[-1]) if name in GRIDS else (*shape[:-1], 9)
    adapter = adapters.build(name, shape, wanted, PATCHES)
    x = jax.random.normal(jax.random.key(0), shape) + 0.5
    variables = adapter.init(jax.random.key(1), x)
    return adapter, variables, x


@pytest.mark.parametrize(("name", "what"), CASES)
@pytest.mark.parametrize("train", [False, True])
def test_maps_channels_or_the_grid_and_never_the_batch(name, what, train):
    """Permuting the examples permutes the result; and in evaluation no example sees another."""
    shape = SHAPES[what]
    adapter, variables, x = made(name, shape)
    order = np.random.default_rng(0).permutation(shape[0])

    def run(x):
        return adapter.apply(variables, x, train=train, mutable=["batch_stats"])[0]

    y = run(x)
    assert y.shape == ((shape[0], 2, 3, shape[-1]) if name in GRIDS else (*shape[:-1], 9))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(run(x[order]), y[order], rtol=1e-5, atol=1e-6)
    if not train:
        np.testing.assert_allclose(run(x[:1]), y[:1], rtol=1e-5, atol=1e-6)


def test_conv_bn_relu_agrees_with_torch():
    adapter, variables, x = made("conv_bn_relu", (2, 3, 4, 5))
    conv, bn = torch.nn.Conv2d(5, 9, 1, bias=False), torch.nn.BatchNorm2d(9)
    rng = np.random.default_rng(0)
    affine = {"scale": rng.uniform(0.5, 2, 9), "bias": rng.normal(size=9)}
    stats = {"mean": rng.normal(size=9), "var": rng.uniform(0.5, 2, 9)}
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(np.array(variables["params"]["conv"]["kernel"])).T[:, :, None, None])
        bn.weight.copy_(torch.tensor(affine["scale"]))
        bn.bias.copy_(torch.tensor(affine["bias"]))
        bn.running_mean.copy_(torch.tensor(stats["mean"]))
        bn.running_var.copy_(torch.tensor(stats["var"]))
    cast = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)  # noqa: E731
    variables = {"params": {**variables["params"], "bn": cast(affine)}, "batch_stats": {"bn": cast(stats)}}
    picture = torch.tensor(np.array(x)).permute(0, 3, 1, 2)
    bn.eval()
    expected = torch.relu(bn(conv(picture))).permute(0, 2, 3, 1).detach().numpy()
    np.testing.assert_allclose(adapter.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
    bn.train()
    expected = torch.relu(bn(conv(picture))).permute(0, 2, 3, 1).detach().numpy()
    found, changed = adapter.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(changed["batch_stats"]["bn"]["mean"], bn.running_mean, rtol=1e-5, atol=1e-6)


def test_linear_is_an_affine_map():
    adapter, variables, x = made("linear", (4, 5))
    bias = jnp.arange(9.0)
    proj = {**variables["params"]["proj"], "bias": bias}
    found = adapter.apply({"params": {"proj": proj}}, x)
    expected = np.asarray(x, np.float64) @ np.asarray(proj["kernel"], np.float64) + np.asarray(bias)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(6, 8), (2, 3), (7, 5), (1, 1), (5, 3)])
def test_maps_are_resized_as_torch_does(size):
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 4)).astype(np.float32)
    found = adapters.resize_like(jnp.asarray(x), (2, *size, 9))
    reference = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(found, reference.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-6)


def test_tokens_and_maps_meet_row_by_row():
    tokens = jnp.arange(2 * 6 * 3.0).reshape(2, 6, 3)
    grid = adapters.resize_like(tokens, (2, 2, 3, 8))
    assert grid.shape == (2, 2, 3, 3)
    np.testing.assert_array_equal(grid[:, 1, 2], tokens[:, 5])
    np.testing.assert_array_equal(adapters.resize_like(grid, (2, 6, 8)), tokens)
    np.testing.assert_array_equal(adapters.resize_like(tokens, (2, 6, 8)), tokens)
    np.testing.assert_array_equal(adapters.resize_like(tokens[:, 0], (2, 8)), tokens[:, 0])


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((2, 7, 3), (2, 2, 3, 8)),
        ((2, 2, 3, 3), (2, 7, 8)),
        ((2, 6, 3), (2, 7, 8)),
        ((2, 3), (2, 1, 8)),
        ((2, 6, 3), (2, 8)),
    ],
)
def test_what_cannot_be_laid_out_is_refused(have, want):
    with pytest.raises(ConfigError, match="cannot be laid out as"):
        adapters.resize_like(jnp.zeros(have), want)


def test_unknown_and_meaningless_adapters_are_refused():
    with pytest.raises(ConfigError, match="no adapter 'conv_bn'; did you mean 'conv_bn_relu'"):
        adapters.build("conv_bn", (2, 3), (2, 4))
    with pytest.raises(ConfigError, match="an endpoint that has channels"):
        adapters.build("linear", (2,), (2, 4))


@pytest.mark.parametrize(("old", "new"), [((126, 126), (31, 31)), ((7, 5), (3, 5)), ((4, 6), (7, 4))], ids=str)
def test_adaptive_pool_has_the_windows_of_torch(old, new):
    x = jax.random.normal(jax.random.key(0), (2, *old, 3))
    adapter = adapters.build("adaptive_pool", x.shape, (2, *new, 3))
    assert adapter.init(jax.random.key(0), x) == {}
    expected = torch.nn.functional.adaptive_avg_pool2d(torch.tensor(np.array(x)).permute(0, 3, 1, 2), new)
    np.testing.assert_allclose(adapter.apply({}, x), expected.permute(0, 2, 3, 1).numpy(), rtol=1e-5, atol=1e-6)


def centres(side: int, stride: int, count: int) -> np.ndarray:
    return np.arange(count) * stride + (side - 1) / 2


@pytest.mark.parametrize("size", [(256, 224), (33, 41)], ids=str)
def test_patch_centres_reads_where_the_teacher_looks(size):
    """LaDeDa9's patches are 8 pixels apart and Tiny's 2: each centre of the one is a centre of the other. So a map
    that says where it is, and any that is linear in that, is read without error."""
    student, teacher = Patches(5, 2, size), Patches(9, 8, size)
    row, column = (centres(5, 2, count) for count in student.grid)
    x = np.stack(np.broadcast_arrays(row[:, None], column[None], np.add.outer(row, 3 * column)), axis=-1)[None]
    adapter = adapters.build("patch_centres", x.shape, (1, *teacher.grid, 3), (student, teacher))
    found = adapter.apply({}, jnp.asarray(x, jnp.float32))
    row, column = (centres(9, 8, count) for count in teacher.grid)
    expected = np.stack(np.broadcast_arrays(row[:, None], column[None], np.add.outer(row, 3 * column)), axis=-1)
    np.testing.assert_array_equal(found[0], expected)


def test_patch_centres_of_images_of_two_sizes():
    """The same place in the picture, half as many pixels from the edge."""
    student, teacher = Patches(5, 2, (65, 65)), Patches(9, 8, (130, 130))
    x = np.broadcast_to((np.arange(student.grid[0]) * 2.0 + 2.5)[None, :, None, None], (1, *student.grid, 1))
    adapter = adapters.build("patch_centres", x.shape, (1, *teacher.grid, 1), (student, teacher))
    found = adapter.apply({}, jnp.asarray(x, jnp.float32))
    expected = np.clip((np.arange(teacher.grid[0]) * 8 + 4.5) / 2, 2.5, None)  # the student's first centre
    np.testing.assert_allclose(found[0, :, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "have", "want", "patches", "message"),
    [
        ("adaptive_pool", (2, 6, 1), (2, 4, 1), PATCHES, "brings a map .* to another grid"),
        ("adaptive_pool", (2, 6, 6, 3), (2, 4, 4, 1), PATCHES, "'linear' for other channels"),
        ("patch_centres", (2, 3, 4, 1), (2, 2, 3, 1), (PATCHES[0], None), "the teacher has no receptive_field"),
        ("patch_centres", (2, 6, 6, 1), (2, 2, 3, 1), PATCHES, "the student has 3 × 4 patches, found a map of shape"),
    ],
)
def test_what_has_no_such_grid_is_refused(name, have, want, patches, message):
    with pytest.raises(ConfigError, match=message):
        adapters.build(name, have, want, patches)


@pytest.mark.parametrize("name", GRIDS)
def test_a_term_brings_patch_logits_to_the_grid_of_the_teachers(name):
    """Also where channels agree, and with nothing to train."""
    small = {"widths": (4, 4, 4, 4), "depths": (1, 1, 1, 1), "image_size": 32}
    teacher = Teacher(model=Model("ladeda", **small), weights="file")
    terms = {"ce": Term("ce", label="class", weight=0.0)}
    terms["patches"] = Term("mse", "patch_logits", "t:patch_logits", adapter=name)
    stage = tiny.stage(model=Model("tiny_ladeda", image_size=32), teachers={"t": teacher}, terms=terms)
    objective = objective_of(stage, Classification(1), build_model(stage.model), {}, tiny.dataset(stage.data))
    (term,) = objective.terms
    assert [x.shape for x in term.examples.values()] == [(2, 3, 3, 1)] * 2
    assert term.adapter_start(jax.random.key(0)) == {}
