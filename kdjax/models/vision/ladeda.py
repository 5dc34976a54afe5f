"""LaDeDa and Tiny-LaDeDa (Cavia et al. 2024, arXiv 2406.09398): is an image generated, told patch by patch.

No convolution is padded, so that a logit sees one patch of the image and nothing else: LaDeDa is a ResNet-50 most of
whose 3 × 3 convolutions are 1 × 1, as in BagNet (arXiv 1904.00760). Module names follow the original's:
`layer1_0/downsample_0`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError, nearest
from kdjax.models.inputs import IMAGENET_MEAN, IMAGENET_STD, ImageInput, normal_faults
from kdjax.models.layers.batch_norm import BatchNorm
from kdjax.models.layers.conv1x1 import Conv1x1
from kdjax.models.layers.conv3x3 import Conv3x3, conv3x3
from kdjax.models.layers.dense import dense
from kdjax.models.layers.preprocess import EVEN, PREPROCESSES
from kdjax.models.options import options_of

POOLINGS = ("mean", "topk")
LEAST, SHARE = 5, 10  # "topk" is the mean of a tenth of the logits, rounded up, and of five at least
EXPANSION = 4  # a block's output is so many times as wide as its inside
STRIDES = (2, 2, 2, 1)  # of each layer's first block
FIELDS = (5, 9, 17, 33)  # the receptive field where so many layers begin with a 3 × 3 convolution

VARIANTS: dict[str, dict[str, Any]] = {
    "base": {},
    "small": {"widths": (16, 32, 64, 128), "depths": (1, 1, 1, 1), "stem_momentum": 0.9},  # for runs of minutes
}
PARAMETERS = {5: 13_510_721, 9: 13_641_793, 17: 14_166_081, 33: 16_263_233}  # of the base variant, by receptive field
TINY_PARAMETERS = 1_297

KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
HEAD = nn.initializers.normal(0.02)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchwiseOptions(ABC):
    """What both have in common."""

    family: ClassVar[str]

    image_size: int | tuple[int, int] = 256  # that images are resized to; the model itself takes any size
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the channels in [0, 1]: what the model's images are normalised by
    std: tuple[float, ...] = IMAGENET_STD
    preprocess: str = "npr"  # what is seen of the normalised image, a name of PREPROCESSES
    pooling: str = "mean"  # of the patches' logits to the image's: their mean, or "topk", that of the largest
    dtype: Any = "float32"  # of the computation; parameters stay float32

    def __post_init__(self):
        if faults := self.faults():
            raise ConfigError(f"{self.family} cannot be built:\n  " + "\n  ".join(faults))

    @property
    def hw(self) -> tuple[int, int]:
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    @abstractmethod
    def patch(self) -> tuple[int, int]:
        """Sides of the patch that a logit sees, and pixels from one patch to the next."""

    def faults(self) -> list[str]:
        """All that keeps a model from being built."""
        faults = [f"image_size: {fault}" for fault in self.size_faults(self.hw)]
        if self.preprocess not in PREPROCESSES:
            faults.append(f"preprocess: no {self.preprocess!r}; {nearest(self.preprocess, PREPROCESSES)}")
        if self.pooling not in POOLINGS:
            faults.append(f"pooling: no {self.pooling!r}; {nearest(self.pooling, POOLINGS)}")
        return faults + normal_faults(self.mean, self.std)

    def size_faults(self, size: tuple[int, int]) -> list[str]:
        """What is wrong with images of such sides."""
        return [*self.small(size), *_odd(self.preprocess, size)]

    def small(self, size: tuple[int, int]) -> list[str]:
        field, _ = self.patch
        found = f"expected at least {field} pixels a side, which is what a logit sees, found {_sides(size)}"
        return [found] if min(size) < field else []

    def check(self, image: Float[Array, "b h w 3"]) -> None:
        """Refuses images that are too small or odd."""
        if faults := self.size_faults((image.shape[1], image.shape[2])):
            raise ConfigError(f"images for {self.family}: {'; '.join(faults)}: resize or crop the images")

    def seen(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Computed as the image comes: in half precision, differences of neighbours would be lost."""
        return PREPROCESSES[self.preprocess](image).astype(self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options(PatchwiseOptions):
    """The dimensions of a LaDeDa and how it computes."""

    family: ClassVar[str] = "LaDeDa"

    receptive_field: int = 9  # sides of the patch that a logit sees: 5, 9, 17 or 33 pixels
    widths: tuple[int, ...] = (64, 128, 256, 512)  # inside the blocks of each layer; their outputs are four times wider
    depths: tuple[int, ...] = (3, 4, 6, 3)  # blocks of each layer
    # What the statistics of `bn1` keep at each step. The original's needs thousands of steps to forget its start.
    stem_momentum: float = 0.999

    @property
    def patch(self) -> tuple[int, int]:
        return self.receptive_field, int(np.prod(STRIDES))

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the kernel in the middle of each layer's first block."""
        return tuple(3 if field <= self.receptive_field else 1 for field in FIELDS)

    def faults(self) -> list[str]:
        faults = PatchwiseOptions.faults(self)  # super() does not know a class that was made anew for its slots
        if self.receptive_field not in FIELDS:
            faults.append(f"receptive_field: expected one of {FIELDS}, found {self.receptive_field}")
        for name in ("widths", "depths"):
            sizes = getattr(self, name)
            if len(sizes) != len(STRIDES) or min(sizes) < 1:
                faults.append(f"{name}: expected {len(STRIDES)} numbers above 0, one per layer, found {sizes}")
        if not 0 <= self.stem_momentum < 1:
            faults.append(f"stem_momentum: expected a share in [0, 1), found {self.stem_momentum}")
        return faults


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyOptions(PatchwiseOptions):
    """The dimensions of a Tiny-LaDeDa and how it computes."""

    family: ClassVar[str] = "Tiny-LaDeDa"

    preprocess: str = "right_diag"
    width: int = 8
    crop: int = 0  # cuts the image into crops of so many pixels a side, each seen alone; 0 sees it whole
    stride: int = 0  # pixels from one crop to the next

    @property
    def patch(self) -> tuple[int, int]:
        return (self.crop, self.stride) if self.crop else (5, 2)

    def faults(self) -> list[str]:
        faults = PatchwiseOptions.faults(self)
        if self.width < 1:
            faults.append(f"width: expected at least 1, found {self.width}")
        if bool(self.crop) != bool(self.stride):
            faults.append(f"crop and stride: expected both or neither, found {self.crop} and {self.stride}")
        if 0 < self.crop < 5:
            faults.append(f"crop: expected at least 5 pixels, which is what a logit sees, found {self.crop}")
        if self.crop:
            faults += [f"crop: {fault}" for fault in _odd(self.preprocess, (self.crop, self.crop))]
        return faults

    def size_faults(self, size: tuple[int, int]) -> list[str]:
        return self.small(size) if self.crop else PatchwiseOptions.size_faults(self, size)


def _odd(preprocess: str, size: tuple[int, int]) -> list[str]:
    """Whether what is preprocessed may not have such sides."""
    found = f"expected even sides, since {preprocess} takes cells of 2 × 2, found {_sides(size)}"
    return [found] if preprocess in EVEN and any(side % 2 for side in size) else []


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


class Patchwise(nn.Module):
    """A model that gives each patch of an image a logit. Patch (i, j) is the square of `receptive_field` pixels whose
    top left pixel is (i · `stride`, j · `stride`)."""

    options: Any

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return {"image": ImageInput(self.options.image_size, self.options.mean, self.options.std)}

    @property
    def receptive_field(self) -> int:
        return self.options.patch[0]

    @property
    def stride(self) -> int:
        return self.options.patch[1]

    @property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """The options that running statistics tell."""
        return {"preprocess": tuple(PREPROCESSES)}

    def stem(self, width: int, image: Float[Array, "b h w 3"]) -> Float[Array, "b g v {width}"]:
        """Two convolutions with nothing between them, 1 × 1 and 3 × 3, as the one that they are together."""
        narrow = Kernel((1, 1, 3, width), name="conv1")()
        wide = Kernel((3, 3, width, width), name="conv2")()
        kernel = jnp.einsum("cd,ijde->ijce", narrow[0, 0], wide, precision="highest")
        return conv3x3(self.options.seen(image), kernel.astype(self.options.dtype))

    def judged(self, x: Float[Array, "b h w c"]) -> dict[str, Array]:
        """The endpoints that the last map gives."""
        logits = dense(1, dtype=self.options.dtype, kernel_init=HEAD, name="fc")(x)
        return {"patch_logits": logits, "logits": pooled(logits, self.options.pooling), "features": x.mean((1, 2))}


class Ladeda(Patchwise):
    """Image of any size -> a logit of being generated, of the image and of each of its patches.

    Endpoints: `logits` [b, 1]; `patch_logits` [b, h, w, 1], of patches of `receptive_field` pixels 8 pixels apart;
    `features` [b, d], the mean of the last map; `layer_1` .. `layer_4` [b, h, w, d], the map after each layer.
    """

    options: Options

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ("logits", "patch_logits", "features", *(f"layer_{i + 1}" for i in range(len(STRIDES))))

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o, maps = self.options, {}
        o.check(image)
        x = self.stem(o.widths[0], image)
        x = nn.relu(BatchNorm(o.dtype, o.stem_momentum, name="bn1")(x, train))
        for i, (width, depth) in enumerate(zip(o.widths, o.depths, strict=True)):
            for j in range(depth):
                side, stride = (1, 1) if j else (o.sides[i], STRIDES[i])
                x = Bottleneck(width, o.dtype, side, stride, first=not j, name=f"layer{i + 1}_{j}")(x, train)
            maps[f"layer_{i + 1}"] = x
        return {**self.judged(x), **maps}


class Bottleneck(nn.Module):
    """Narrow, look around, widen; and the input beside it, in the first block of a layer brought to the same width.

    Where the middle looks around, its map is smaller than the input's, which loses its last row and column.
    """

    width: int
    dtype: Any
    side: int
    stride: int
    first: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v d"]:
        conv = partial(Conv1x1, dtype=self.dtype, use_bias=False, kernel_init=KERNEL)
        norm, wide = partial(BatchNorm, self.dtype), EXPANSION * self.width
        strided = lambda y: y[:, :: self.stride, :: self.stride]  # noqa: E731
        y = nn.relu(norm(name="bn1")(conv(self.width, name="conv1")(x), train))
        if self.side == 1:
            y = conv(self.width, name="conv2")(strided(y))
        else:
            y = Conv3x3(self.width, self.dtype, self.stride, KERNEL, name="conv2")(y)
        y = nn.relu(norm(name="bn2")(y, train))
        y = norm(name="bn3")(conv(wide, name="conv3")(y), train)
        if self.first:
            x = norm(name="downsample_1")(conv(wide, name="downsample_0")(strided(x)), train)
        return nn.relu(y + x[:, : y.shape[1], : y.shape[2]])


class Kernel(nn.Module):
    """The kernel of a convolution that is not computed by itself."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> Float[Array, "i j c d"]:
        return self.param("kernel", KERNEL, self.shape)


class TinyLadeda(Patchwise):
    """Image of any size -> a logit of being generated, of the image and of each of its patches, by 1,297 parameters.

    Endpoints: `logits` [b, 1]; `patch_logits` [b, h, w, 1], of patches of `receptive_field` pixels 2 pixels apart;
    `features` [b, d], the mean of the last map; `layer_1` [b, h, w, d], the last map.

    With `crop` and `stride` each crop of the image is preprocessed and seen alone, and is one patch: of crops of 10
    pixels 8 apart there are as many as LaDeDa9 has patches, each a pixel larger. The parameters are the same.
    """

    options: TinyOptions

    @property
    def endpoints(self) -> tuple[str, ...]:
        return ("logits", "patch_logits", "features", "layer_1")

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], train: bool = False) -> dict[str, Array]:
        o, b = self.options, len(image)
        o.check(image)
        if o.crop:
            rows, columns = (np.arange(0, side - o.crop + 1, o.stride) for side in image.shape[1:3])
            image = _crops(image, rows, columns, o.crop)
        x = self.stem(o.width, image)
        x = nn.relu(BatchNorm(o.dtype, name="bn1")(x, train))
        x = Convolutions(o.width, o.dtype, name="layer1_0")(x, train)
        if o.crop:
            x = x.mean((1, 2)).reshape(b, len(rows), len(columns), o.width)
        return {**self.judged(x), "layer_1": x}


class Convolutions(nn.Module):
    """The layer of a Tiny-LaDeDa: a bottleneck's first two convolutions, without the rest."""

    width: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], train: bool) -> Float[Array, "b g v c"]:
        x = Conv1x1(self.width, self.dtype, use_bias=False, kernel_init=KERNEL, name="conv1")(x)
        x = nn.relu(BatchNorm(self.dtype, name="bn1")(x, train))
        x = Conv3x3(self.width, self.dtype, 2, KERNEL, name="conv2")(x)
        return nn.relu(BatchNorm(self.dtype, name="bn2")(x, train))


def pooled(logits: Float[Array, "b h w 1"], pooling: str) -> Float[Array, "b 1"]:
    """The image's logit, of those of its patches."""
    flat = logits.reshape(len(logits), -1)
    if pooling == "topk":
        n = flat.shape[1]
        flat = jax.lax.top_k(flat, min(n, max(LEAST, -(-n // SHARE))))[0]
    return flat.mean(axis=1, keepdims=True)


def _crops(image: Float[Array, "b h w c"], rows: np.ndarray, columns: np.ndarray, side: int) -> Float[Array, "n s s c"]:
    """Squares with their top left pixels in these rows and columns, image by image."""
    reach = np.arange(side)[None]
    strips = image[:, rows[:, None] + reach]  # [b, rows, side, w, c]
    crops = strips[:, :, :, columns[:, None] + reach].swapaxes(2, 3)
    return crops.reshape(-1, side, side, image.shape[-1])


def build_ladeda(variant: str = "base", **overrides) -> Ladeda:
    """`overrides` are fields of Options."""
    return Ladeda(options_of(Options, "LaDeDa", VARIANTS, variant, overrides))


def build_tiny_ladeda(**overrides) -> TinyLadeda:
    """`overrides` are fields of TinyOptions."""
    return TinyLadeda(options_of(TinyOptions, "Tiny-LaDeDa", {"": {}}, "", overrides))
