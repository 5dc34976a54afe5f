"""The smallest models and experiment of graphs that have everything a training step can meet."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np

from kdjax import config
from kdjax.config import Data, Experiment, Model, Stage
from kdjax.data import pipeline
from kdjax.data.fields import examples
from kdjax.models.graphs.can_fusion import logit
from kdjax.models.graphs.dqn import Dqn, build_dqn
from kdjax.models.graphs.pooling import graph_mean
from kdjax.models.inputs import GraphInput
from kdjax.train import sharding
from kdjax.train.setup import Learner, prepare
from tests.support.graph_packs import graph, packed
from tests.support.tiny import SGD

DATA = Data("can_traffic", batch_size=8, train_windows=64, test_windows=8, window=50)


class Tiny(nn.Module):
    """One sum over neighbours. Endpoints: `logits` [g, 1], `embedding` [g, d], `nodes` [n, d]."""

    dim: int = 6
    dropout: float = 0.0
    dtype: Any = jnp.float32

    inputs: ClassVar[dict[str, GraphInput]] = {"graphs": GraphInput(10)}

    @nn.compact
    def __call__(self, graphs, train=False):
        x = nn.tanh(nn.Dense(self.dim, dtype=self.dtype, name="lin")(graphs.nodes["x"]))
        x += jraph.segment_sum(x[graphs.senders], graphs.receivers, len(x))
        nodes = nn.Dropout(self.dropout, deterministic=not train)(x)
        embedding = graph_mean(nodes, graphs)
        logits = nn.Dense(1, dtype=self.dtype, name="head")(embedding)
        return {"logits": logits, "embedding": embedding, "nodes": nodes}


class Actor(nn.Module):
    """An agent that sees the mean node of each graph, through eyes that are not to learn."""

    agent: Dqn
    features: int

    @property
    def inputs(self):
        return {"graphs": GraphInput(self.features)}

    def setup(self):
        self.eyes = nn.Dense(2, kernel_init=nn.initializers.normal(1.0))

    def __call__(self, graphs, train=False):
        state = jax.lax.stop_gradient(graph_mean(graphs.nodes["x"], graphs))
        anomaly, probability = jnp.moveaxis(nn.sigmoid(self.eyes(state)), -1, 0)
        q = self.agent_of(state, train)
        alpha = q.argmax(axis=-1) / (q.shape[-1] - 1)
        parts = {"anomaly": anomaly, "probability": probability, "alpha": alpha, "state": state, "q": q}
        return {**parts, "logits": logit((1 - alpha) * anomaly + alpha * probability)[..., None]}

    def agent_of(self, state, train=False):
        return self.agent(state, train)["q"]


def build(**options) -> Tiny:
    return Tiny(**options)


def build_actor(features: int = 10, actions: int = 21, dropout: float = 0.2, dtype: Any = jnp.float32) -> Actor:
    agent = build_dqn("small", hidden=16, layers=1, state=features, actions=actions, dropout=dropout, dtype=dtype)
    return Actor(agent, features)


def model(**options) -> Model:
    return Model("tests.support.tiny_graphs:build", **options)


def stage(**fields) -> Stage:
    return Stage(**{"task": "detection", "data": DATA, "model": model(), "epochs": 2, "optim": SGD, **fields})


def learner(of: Stage, mesh: config.Mesh | None = None, seed: int = 0, earlier: dict | None = None) -> Learner:
    experiment = Experiment(name="tiny", stages={"student": of}, seed=seed, mesh=mesh or config.Mesh(data=1))
    made = sharding.make_mesh(experiment.mesh)
    parts = sharding.parts(made, of.data.batch_size, of.optim.accumulate, "stages.student")
    return prepare("student", of, experiment, made, pipeline.build(of.data, parts), earlier or {})


def single_nodes(states: np.ndarray, label: Any = 0, known: Any = True) -> dict[str, Any]:
    """A pack of graphs of one node each, whose features are their states; `label` and `known` of each or of all."""
    g = len(states)
    batch = {name: field.rows(1) for name, field in examples(g + 1).items()}
    batch["index"][0, :g], batch["class"][0, :g], batch["class_known"][0, :g] = np.arange(g), label, known
    batch["valid"][0, :g] = True
    return batch | {"graphs": packed([[graph(state[None], [0], [], []) for state in states]])}
