"""Records of an image and a text with two labels, both of which either part tells a little of, and a model that reads
both and says how it weighs them."""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from kdjax.config import Data, Experiment, Log, Mesh, Model, Optim, Stage, Task, Teacher, Term
from kdjax.data.fields import FLAG, Field
from kdjax.models.inputs import ArrayInput, ImageInput

SIDE, LENGTH, VOCABULARY = 8, 6, 12
TEST = 30  # records of the test split
LABELS = {"modality": 2, "location": 3}


class Records:
    """`n` of them; every fifth lacks its location."""

    fields: ClassVar[dict[str, Field]] = {
        "image": Field((SIDE, SIDE, 3), "uint8", "image"),
        "image_there": FLAG,
        "text_there": FLAG,
        "input_ids": Field((LENGTH,), "int32", "tokens"),
        "attention_mask": Field((LENGTH,), "int32", "tokens"),
        **{name: Field((), "int32", "class", -1) for name in LABELS},
    }
    num_classes = 2

    def __init__(self, n: int = 200):
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        rng = np.random.default_rng(i)
        modality, location = i % 2, i // 2 % 3
        image = rng.integers(0, 90, (SIDE, SIDE, 3)).astype(np.uint8) + np.uint8(120 * modality)
        tokens = rng.integers(3, VOCABULARY, LENGTH).astype(np.int32)
        tokens[:2] = 2, 3 + 2 * location + modality
        return {
            "name": f"record {i}",
            "image": image,
            "image_there": True,
            "text_there": True,
            "input_ids": tokens,
            "attention_mask": np.ones(LENGTH, np.int32),
            "modality": modality,
            "location": None if i % 5 == 4 else location,
        }


class TwoParts(nn.Module):
    """A vector of each part, weighed against each other. Endpoints: `logits_LABEL`, `fused`, `shares`."""

    labels: Mapping[str, int]
    dim: int = 8
    dtype: Any = jnp.float32

    @property
    def inputs(self):
        tokens = ArrayInput((LENGTH,), "int32")
        there = {name: ArrayInput((), "bool") for name in ("image_there", "text_there")}
        return {"image": ImageInput(SIDE), "input_ids": tokens, "attention_mask": tokens, **there}

    @property
    def endpoints(self):
        return (*(f"logits_{name}" for name in self.labels), "fused", "shares")

    @nn.compact
    def __call__(self, image, input_ids, attention_mask, image_there, text_there, train=False):
        seen = nn.Dense(self.dim, name="see")(image.mean(axis=(1, 2)))
        words = nn.Embed(VOCABULARY, self.dim, name="words")(input_ids) * attention_mask[..., None]
        parts = jnp.stack([seen * image_there[:, None], words.sum(axis=1) * text_there[:, None]], axis=1)
        shares = jax.nn.softmax(nn.Dense(2, name="weigh")(parts.reshape(len(parts), -1)))
        fused = jnp.tanh((parts * shares[..., None]).sum(axis=1))
        logits = {f"logits_{name}": nn.Dense(k, name=name)(fused) for name, k in self.labels.items()}
        return {**logits, "fused": fused, "shares": shares}


def build(labels: Mapping[str, int] = LABELS, **options) -> TwoParts:
    return TwoParts(labels=FrozenDict(labels), **options)


def experiment(**fields: Any) -> Experiment:
    """A teacher, a student that hears both of its heads, and the control of the student."""
    data = Data(f"{__name__}:Records", image_size=SIDE, batch_size=12)
    task = Task("answers", labels=tuple(LABELS))

    def stage(dim: int, **more) -> Stage:
        model, optim = Model(f"{__name__}:build", dim=dim), Optim("adam", lr=3e-2)
        return Stage(task=task, data=data, model=model, optim=optim, grad_norms_every=0, **more)

    teacher = stage(16, epochs=8, title="large")
    student = stage(4, epochs=1, title="small", teachers={"large": Teacher(stage="teacher")})
    student.terms = {f"kl_{name}": Term("kl", f"logits_{name}", f"large:logits_{name}") for name in LABELS}
    given = {"mesh": Mesh(data=1), "log": Log(tensorboard=False), "quick_compile": True, **fields}
    return Experiment(name="two_parts", stages={"teacher": teacher, "student": student}, **given)
