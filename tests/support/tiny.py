"""The smallest model and experiment that have everything a training step can meet."""

import functools
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kdjax import config
from kdjax.config import Data, Experiment, Model, Optim, Stage
from kdjax.data import pipeline
from kdjax.distill.teachers import build_model
from kdjax.models.inputs import ImageInput
from kdjax.train import sharding
from kdjax.train.setup import Learner, initial, prepare


class Block(nn.Module):
    """A fused qkv, mixed without attention, and a projection."""

    dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        q, k, v = jnp.split(nn.Dense(3 * self.dim, dtype=self.dtype, name="qkv")(x), 3, -1)
        return x + nn.Dense(self.dim, dtype=self.dtype, name="proj")(jnp.tanh(q) * jnp.tanh(k) + v)


class Tiny(nn.Module):
    """Patches -> blocks -> a logit per pixel. Endpoints: `logits` [b, h, w, k], `block_i`, `features` [b, g, g, d]."""

    size: int = 16
    patch: int = 4
    dim: int = 32
    depth: int = 1
    classes: int = 1
    mean: tuple[float, ...] = (0.4, 0.5, 0.6)
    std: tuple[float, ...] = (0.2, 0.25, 0.3)
    norm: bool = True
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @property
    def inputs(self):
        return {"image": ImageInput(self.size, tuple(self.mean), tuple(self.std))}

    @property
    def endpoints(self):
        return ("logits", "features", *(f"block_{i}" for i in range(self.depth)))

    @nn.compact
    def __call__(self, image, train=False):
        b, g, p = len(image), self.size // self.patch, self.patch
        x = image.reshape(b, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, g, g, -1)
        x = nn.Dense(self.dim, dtype=self.dtype, name="embed")(x)
        out = {}
        for i in range(self.depth):
            x = out[f"block_{i}"] = Block(self.dim, self.dtype, name=f"blocks_{i}")(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, dtype=self.dtype, name="bn")(x)
        x = out["features"] = nn.Dropout(self.dropout, deterministic=not train)(jnp.tanh(x))
        x = nn.Dense(p * p * self.classes, dtype=self.dtype, name="head")(x)
        x = x.reshape(b, g, g, p, p, self.classes).transpose(0, 1, 3, 2, 4, 5)
        return {**out, "logits": x.reshape(b, self.size, self.size, self.classes)}


def build(**options) -> Tiny:
    return Tiny(**options)


def model(**options) -> Model:
    return Model("tests.support.tiny:build", **options)


DATA = Data("ultrasound", image_size=16, batch_size=8, size=32, train=16, val=8, test=8)
SGD = Optim("sgd", lr=0.1, schedule="constant", momentum=0.9)


def stage(**fields) -> Stage:
    fields = {"task": "segmentation", "data": DATA, "model": model(), "epochs": 2, "optim": SGD, **fields}
    return Stage(**fields)


_datasets: dict[str, pipeline.Dataset] = {}


def dataset(data: Data) -> pipeline.Dataset:
    key = str(config.to_dict(data))
    _datasets[key] = _datasets.get(key) or pipeline.build(data)
    return _datasets[key]


def learner(of: Stage, mesh: config.Mesh | None = None, seed: int = 0, earlier: dict | None = None) -> Learner:
    experiment = Experiment(name="tiny", stages={"student": of}, seed=seed, mesh=mesh or config.Mesh(data=1))
    made = sharding.make_mesh(experiment.mesh)
    sharding.parts(made, of.data.batch_size, of.optim.accumulate, "stages.student")
    return prepare("student", of, experiment, made, dataset(of.data), earlier or {})


def weights(of: Model, seed: int = 0) -> dict:
    """Random variables of a model, none of them zero, as they come from a file."""
    shapes = jax.eval_shape(functools.partial(initial, build_model(of)), jax.random.key(0))
    rng = np.random.default_rng(seed)
    made = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
    if "batch_stats" in made:
        made["batch_stats"]["bn"]["var"] = np.abs(made["batch_stats"]["bn"]["var"]) + 0.5
    return made


def batch(of: Learner, seed: int = 0, labelled: int | None = None, valid: int | None = None) -> dict[str, np.ndarray]:
    """A random batch, of which the first so many are labelled and real; all of them if none is said."""
    n, s = of.stage.data.batch_size, of.stage.data.image_size
    rng, rows = np.random.default_rng(seed), np.arange(n)
    return {
        "image": rng.integers(0, 256, (n, s, s, 3)).astype(np.uint8),
        "mask": (rng.random((n, s, s)) < 0.4).astype(np.int32),
        "class": rng.integers(0, 3, n).astype(np.int32),
        "mask_known": rows < (n if labelled is None else labelled),
        "class_known": rows < (n if labelled is None else labelled),
        "valid": rows < (n if valid is None else valid),
        "index": rng.permutation(100)[:n].astype(np.int32),
        "view": np.zeros(n, np.int32),
    }


def with_optim(**changes) -> Optim:
    return replace(SGD, **changes)


def largest_difference(a, b) -> float:
    """The largest difference of two trees, each leaf relative to its own largest entry."""

    def one(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        assert x.shape == y.shape
        return np.abs(x - y).max(initial=0) / max(np.abs(y).max(initial=0), 1e-30) if (x != y).any() else 0.0

    return max(jax.tree.leaves(jax.tree.map(one, a, b)), default=0.0)
