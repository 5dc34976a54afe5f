"""What a model expects of its input; the trainer makes each model's own view of the batch by it."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kdjax.config import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """A square image: side in pixels, and the mean and standard deviation of its channels in [0, 1]."""

    size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    @property
    def channels(self) -> int:
        return len(self.mean)

    def example(self, batch: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of the smallest batch that the model eats."""
        return {"image": jax.ShapeDtypeStruct((batch, self.size, self.size, self.channels), jnp.float32)}


@dataclass(frozen=True, slots=True)
class GraphInput:
    """Packs of graphs: the number of node features, and of ids (0 where the nodes have none)."""

    features: int
    num_ids: int = 0

    def example(self, batch: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
        """One graph of two nodes, the second being the padding that every pack has, and one edge."""
        shapes = {
            "x": ((2, self.features), jnp.float32),
            **dict.fromkeys(("id", "graph"), ((2,), jnp.int32)),
            **dict.fromkeys(("senders", "receivers"), ((1,), jnp.int32)),
            "valid": ((1,), jnp.bool),
        }
        return {k: jax.ShapeDtypeStruct((batch, *shape), dtype) for k, (shape, dtype) in shapes.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchOptions:
    """What the options of every model that cuts its images into square patches begin with."""

    family: ClassVar[str]

    image_size: int | tuple[int, int] = 224  # pixels, (height, width) where they differ
    patch_size: int = 16
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the channels in [0, 1]: what the model's images are normalised by
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self):
        if wrong := self.faults():
            raise ConfigError(f"{self.family} cannot be built:\n  " + "\n  ".join(wrong))

    def faults(self) -> list[str]:
        """All that keeps a model from being built."""
        wrong = []
        if any(side <= 0 or side % self.patch_size for side in self.image_hw):
            wrong.append(
                f"image_size: expected a multiple of the patch size {self.patch_size}, found {self.image_size}"
            )
        if len(self.mean) != 3:
            wrong.append(f"mean: expected one of each of 3 channels, found {self.mean}")
        if len(self.std) != 3 or min(self.std) <= 0:
            wrong.append(f"std: expected one above 0 of each of 3 channels, found {self.std}")
        return wrong

    @property
    def image_hw(self) -> tuple[int, int]:
        return (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        h, w = self.image_hw
        return h // self.patch_size, w // self.patch_size

    @property
    def input_spec(self) -> ImageInput:
        height, width = self.image_hw
        if height != width:
            raise ConfigError(f"image_size: training and prediction use square images, found {height} x {width}")
        return ImageInput(height, self.mean, self.std)

    def check(self, image: Float[Array, "b h w 3"]) -> None:
        """Refuses images of another size than the model's."""
        if image.shape[1:3] != self.image_hw:
            raise ValueError(
                f"{self.family} was built for images of {self.image_hw} pixels and got {image.shape[1:3]}: resize the "
                f"images, or build the model with that image_size (a multiple of the patch size {self.patch_size})"
            )
