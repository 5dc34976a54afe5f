"""What a model expects of each of its inputs; a step makes the model's own view of the batch by it."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import jraph
from jaxtyping import Array, Float, Int

from kdjax.config import ConfigError
from kdjax.models.layers.resize import resize

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@runtime_checkable
class Input(Protocol):
    """One field of the batch as a model reads it."""

    packed: ClassVar[bool]  # True: a row of the batch is a pack of examples, and the model takes one row at a time

    def shape(self, rows: int) -> Any:
        """The smallest value of so many rows that the model takes, as shapes."""
        ...

    def view(self, value: Any) -> Any:
        """The field as the model takes it."""
        ...


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image: its sides in pixels, one number for a square, and the mean and standard deviation of its channels in
    [0, 1]."""

    packed: ClassVar[bool] = False

    size: int | tuple[int, int]  # (height, width)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def channels(self) -> int:
        return len(self.mean)

    @property
    def hw(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def shape(self, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *self.hw, self.channels), jnp.float32)

    def view(self, value: Float[Array, "b h w c"]) -> Float[Array, "b s t c"]:
        """An image in [0, 1], resized to the model's sides and normalised per channel."""
        value = resize(value, self.hw, antialias=True)
        mean = jnp.asarray(self.mean, jnp.float32)[None, None, None, :]
        std = jnp.asarray(self.std, jnp.float32)[None, None, None, :]
        return (value - mean) / std


def normal_faults(mean: tuple[float, ...], std: tuple[float, ...]) -> list[str]:
    """What is wrong with the mean and the standard deviation of an image's three channels."""
    faults = []
    if len(mean) != 3:
        faults.append(f"mean: expected one of each of 3 channels, found {mean}")
    if len(std) != 3 or min(std) <= 0:
        faults.append(f"std: expected one above 0 of each of 3 channels, found {std}")
    return faults


@dataclass(frozen=True, slots=True)
class GraphInput:
    """A pack of graphs: how many features its nodes have, and how many ids there are (0 where nodes have none).

    Nodes are {"x": [n, features], "id": [n]}; a plain array of features is taken too, as nodes without ids.
    """

    packed: ClassVar[bool] = True

    features: int
    num_ids: int = 0

    def shape(self, rows: int) -> jraph.GraphsTuple:
        """Of packs of one graph with one node and one edge, and of the padding that every pack ends with."""

        def array(shape: tuple[int, ...], dtype: Any) -> Any:
            return jax.ShapeDtypeStruct((rows, *shape), dtype)

        return jraph.GraphsTuple(
            nodes={"x": array((2, self.features), jnp.float32), "id": array((2,), jnp.int32)},
            edges=None,
            senders=array((1,), jnp.int32),
            receivers=array((1,), jnp.int32),
            n_node=array((2,), jnp.int32),
            n_edge=array((2,), jnp.int32),
            globals=None,
        )

    def view(self, value: jraph.GraphsTuple) -> jraph.GraphsTuple:
        if isinstance(value.nodes, dict):
            return value
        nodes = jnp.asarray(value.nodes)
        return value._replace(nodes={"x": nodes, "id": jnp.zeros(nodes.shape[:-1], jnp.int32)})


@dataclass(frozen=True, slots=True)
class ArrayInput:
    """Anything that a model takes as it comes: token ids, masks, vectors. `size` is the shape of one example."""

    packed: ClassVar[bool] = False

    size: tuple[int, ...]
    dtype: str = "float32"

    def shape(self, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, *self.size), self.dtype)

    def view(self, value: Any) -> Any:
        return value


@dataclass(frozen=True, slots=True)
class TokensInput:
    """The tokens of a text as numbers below `vocab_size`, at most `length` of them: a batch may be shorter.

    `vocabulary` is the digest of the tokenizer's table (kdjax/vocabulary.py); "" where it is not known.
    """

    packed: ClassVar[bool] = False

    length: int
    vocab_size: int
    vocabulary: str = ""

    def shape(self, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, self.length), jnp.int32)

    def view(self, value: Int[Array, "b n"]) -> Int[Array, "b n"]:
        return value


@dataclass(frozen=True, slots=True)
class TokenMaskInput:
    """Which of at most `length` tokens are there: 1 for a token, 0 for the padding behind them."""

    packed: ClassVar[bool] = False

    length: int

    def shape(self, rows: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, self.length), jnp.int32)

    def view(self, value: Int[Array, "b n"]) -> Int[Array, "b n"]:
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOptions:
    """What the options of every model that cuts its images into square patches begin with."""

    family: ClassVar[str]

    image_size: int | tuple[int, int] = 224  # pixels, (height, width) where they differ
    patch_size: int = 16
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the channels in [0, 1]: what the model's images are normalised by
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        if faults := self.faults():
            raise ConfigError(f"{self.family} cannot be built:\n  " + "\n  ".join(faults))

    def faults(self) -> list[str]:
        """All that keeps a model from being built."""
        faults = []
        if any(side <= 0 or side % self.patch_size for side in self.image_hw):
            faults.append(
                f"image_size: expected a multiple of the patch size {self.patch_size}, found {self.image_size}"
            )
        return faults + normal_faults(self.mean, self.std)

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        h, w = self.image_hw
        return h // self.patch_size, w // self.patch_size

    @property
    def inputs(self) -> dict[str, ImageInput]:
        return {"image": ImageInput(self.image_size, self.mean, self.std)}

    def check(self, image: Float[Array, "b h w 3"]) -> None:
        """Refuses images of another size than the model's."""
        if image.shape[1:3] != self.image_hw:
            raise ConfigError(
                f"{self.family} was built for images of {self.image_hw} pixels and got {image.shape[1:3]}: resize the "
                f"images, or build the model with that image_size (a multiple of the patch size {self.patch_size})"
            )
