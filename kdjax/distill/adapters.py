"""Small maps from a student's features to the shape of a teacher's: its channels, by something trainable, or its grid.
The batch is never mapped."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError, nearest
from kdjax.models.layers.resize import resize


class ConvBnRelu(nn.Module):
    """1x1 convolution without bias, BatchNorm, ReLU: what SAM's image embeddings are met with."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"], train: bool = False) -> Float[Array, "b *n d"]:
        # A 1x1 convolution is a Dense over the last axis, and so works on tokens and vectors as well as on maps.
        x = nn.Dense(self.features, use_bias=False, kernel_init=nn.initializers.he_normal(), name="conv")(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="bn")(x))


class Linear(nn.Module):
    """One affine map of the channels."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b *n c"], train: bool = False) -> Float[Array, "b *n d"]:
        return nn.Dense(self.features, name="proj")(x)


class Patches(NamedTuple):
    """Where a model's patches lie in its images: sides of a patch, pixels from one to the next, sides of the image."""

    side: int
    stride: int
    size: tuple[int, int]

    @property
    def grid(self) -> tuple[int, int]:
        h, w = ((length - self.side) // self.stride + 1 for length in self.size)
        return h, w

    def centres(self, axis: int, count: int) -> np.ndarray:
        """Of so many patches along an axis, as shares of the image's side."""
        return (np.arange(count) * self.stride + self.side / 2) / self.size[axis]


def patches_of(model: Any) -> Patches | None:
    """None of a model that has no patches."""
    side, stride = getattr(model, "receptive_field", None), getattr(model, "stride", None)
    return Patches(side, stride, model.inputs["image"].hw) if side and stride else None


class AdaptivePool(nn.Module):
    """A map on the grid of the teacher's, as PyTorch's adaptive_avg_pool2d: of n rows, row i of m is the mean of rows
    floor(i n / m) to ceil((i + 1) n / m). Nothing is trained, channels stay as they are."""

    grid: tuple[int, int]

    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b g v c"]:
        rows, columns = (_windows(old, new) for old, new in zip(x.shape[1:3], self.grid, strict=True))
        return _mixed(x, rows, columns)


class PatchCentres(nn.Module):
    """The logits of patches at the centres of the teacher's patches; between the student's own, linearly in between,
    beyond them the last one. Nothing is trained. Both models tell their patches by `receptive_field` and `stride`."""

    grid: tuple[int, int]
    student: Patches
    teacher: Patches

    def __call__(self, x: Float[Array, "b h w c"], train: bool = False) -> Float[Array, "b g v c"]:
        return _mixed(x, *(self._shares(axis, x.shape[1 + axis]) for axis in (0, 1)))

    def _shares(self, axis: int, count: int) -> np.ndarray:
        own, wanted = self.student.centres(axis, count), self.teacher.centres(axis, self.grid[axis])
        at = np.interp(wanted, own, np.arange(count))
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(count)[None]))


def _windows(old: int, new: int) -> np.ndarray:
    """[new, old]: the share of each old row in each new one."""
    i, row = np.arange(new)[:, None], np.arange(old)[None]
    inside = (row >= i * old // new) & (row < -(-(i + 1) * old // new))
    return inside / inside.sum(axis=1, keepdims=True)


def _mixed(x: Float[Array, "b h w c"], rows: np.ndarray, columns: np.ndarray) -> Float[Array, "b g v c"]:
    x = jnp.einsum("bhwc,vw->bhvc", x, jnp.asarray(columns, x.dtype), precision="highest")
    return jnp.einsum("bhvc,gh->bgvc", x, jnp.asarray(rows, x.dtype), precision="highest")


ADAPTERS: dict[str, type[nn.Module]] = {
    "conv_bn_relu": ConvBnRelu,
    "linear": Linear,
    "adaptive_pool": AdaptivePool,
    "patch_centres": PatchCentres,
}


def build(
    name: str,
    student_shape: tuple[int, ...],
    teacher_shape: tuple[int, ...],
    patches: tuple[Patches | None, Patches | None] = (None, None),
) -> nn.Module:
    """The adapter that gives features of `student_shape` the channels (last axis) of `teacher_shape`, or a map its
    grid; `patches` are the student's and the teacher's, where these have some."""
    if name not in ADAPTERS:
        raise ConfigError(f"no adapter {name!r}; {nearest(name, ADAPTERS)}")
    if min(len(student_shape), len(teacher_shape)) < 2:
        raise ConfigError(
            f"adapter {name!r} maps features [b, ..., c]; found shapes {student_shape} and {teacher_shape}: "
            "name an endpoint that has channels"
        )
    if name not in ("adaptive_pool", "patch_centres"):
        return ADAPTERS[name](teacher_shape[-1])
    if not len(student_shape) == len(teacher_shape) == 4 or student_shape[-1] != teacher_shape[-1]:
        raise ConfigError(
            f"adapter {name!r} brings a map [b, h, w, c] to another grid; found shapes {student_shape} and "
            f"{teacher_shape}: name two maps of as many channels, or 'linear' for other channels"
        )
    if name == "adaptive_pool":
        return AdaptivePool((teacher_shape[1], teacher_shape[2]))
    shapes = zip(("student", "teacher"), (student_shape, teacher_shape), patches, strict=True)
    student, teacher = (_placed(name, *each) for each in shapes)
    return PatchCentres(teacher.grid, student, teacher)


def _placed(name: str, whose: str, shape: tuple[int, ...], patches: Patches | None) -> Patches:
    """The patches that a map of this shape is of."""
    if patches is not None and patches.grid == shape[1:3]:
        return patches
    there = f"{patches.grid[0]} × {patches.grid[1]} patches" if patches else "no receptive_field and stride"
    raise ConfigError(
        f"adapter {name!r} asks where the patches of both models lie; the {whose} has {there}, found a map of shape "
        f"{shape}: name its 'patch_logits', or take 'adaptive_pool'"
    )


def resize_like(x: Float[Array, "b *n c"], shape: tuple[int, ...]) -> Float[Array, "b *m c"]:
    """`x` laid out in space as features of `shape`: maps [b, h, w, c] are resized bilinearly (pixel centres, edges
    held, no smoothing: PyTorch's align_corners=False); tokens [b, n, c] become a map of n = h * w, or the reverse."""
    if len(x.shape) == len(shape) == 4:
        wanted = (x.shape[0], *shape[1:3], x.shape[3])
        return resize(x, wanted[1:3])
    tokens = [s[1] * s[2] if len(s) == 4 else s[1] for s in (x.shape, shape) if len(s) in (3, 4)]
    if len(tokens) == 2 and tokens[0] == tokens[1]:
        return x.reshape(x.shape[0], *shape[1:-1], x.shape[-1])
    if len(x.shape) == len(shape) == 2:
        return x
    raise ConfigError(
        f"features of shape {x.shape} cannot be laid out as {shape}: expected two maps [b, h, w, c], tokens [b, n, c] "
        "with n = h * w (without a class token), or two vectors [b, c]; name another endpoint for one of them"
    )
