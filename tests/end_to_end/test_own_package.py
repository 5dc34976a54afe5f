"""A stranger's package, written from the design alone: a loss with a memory bank, a model of two towers with two labels
of which one may be missing, and a teacher that is the student's own average. Nothing of kdjax is touched."""

import json
import sys

import numpy as np
import pytest

from kdjax import registry
from kdjax.weights import safetensors
from tests.support.command import command

DATA = '''
import numpy as np


class Notes:
    """Images with a note of six words; how severe a case is has been told for every second one."""

    def __init__(self, count: int = 48, num_classes: int = 3):
        self.count, self.num_classes = count, num_classes

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        rng = np.random.default_rng(i)
        kind = i % self.num_classes
        image = rng.integers(0, 60, (20, 24, 3)).astype(np.uint8)
        image[:, 8 * kind : 8 * kind + 8] += 150
        example = {"image": image, "words": rng.integers(0, 9, 6).astype(np.int32), "class": kind, "name": f"case {i}"}
        return {**example, "severity": float(kind) if i % 2 else None}
'''

MODELS = """
import flax.linen as nn
import jax.numpy as jnp
from kdjax.models.inputs import ArrayInput, ImageInput


class TwoTowers(nn.Module):
    width: int = 16
    num_classes: int = 3
    dtype: str = "float32"

    @property
    def inputs(self):
        return {"image": ImageInput(16), "words": ArrayInput((6,), "int32")}

    @property
    def endpoints(self):
        return ("logits", "severity", "embedding")

    @nn.compact
    def __call__(self, image, words, train=False):
        seen = nn.Dense(self.width, name="vision")(image.reshape(len(image), -1))
        read = nn.Embed(9, self.width, name="text")(words).mean(1)
        embedding = nn.tanh(seen + read)
        severity = nn.Dense(1, name="severity")(embedding)[:, 0]
        logits = nn.Dense(self.num_classes, name="head")(embedding)
        return {"logits": logits, "severity": severity, "embedding": embedding}


def build(**options):
    return TwoTowers(**options)
"""

LOSSES = '''
import flax.linen as nn
import jax
import jax.numpy as jnp


class Bank(nn.Module):
    """An example is nearer to its own embedding by the teacher than to those in a bank of earlier ones."""

    size: int = 16

    @nn.compact
    def __call__(self, student, teacher, *, where=None):
        bank = self.variable("memory", "bank", jnp.zeros, (self.size, teacher.shape[-1]))
        near, far = (student * teacher).sum(-1, keepdims=True), student @ bank.value.T
        if not self.is_initializing():
            bank.value = jnp.concatenate([teacher, bank.value])[: self.size]
        return -jax.nn.log_softmax(jnp.concatenate([near, far], -1))[:, 0]
'''

CONFIG = """
from kdjax.config import Data, Experiment, Model, Optim, Stage, Task, Teacher, Term


def get_config(variant=""):
    data = Data("stranger.data:Notes", image_size=16, num_classes=3, batch_size=8, split=(0.6, 0.2, 0.2))
    terms = {
        "severity": Term("mse", "severity", label="severity", weight=0.5),
        "bank": Term("stranger.losses:Bank", "embedding", "mean:embedding", weight=0.1),
    }
    student = Stage(
        task=Task("classification"), data=data, model=Model("stranger.models:build"), epochs=4,
        teachers={"mean": Teacher(average=True)}, terms=terms, optim=Optim("adamw", lr=3e-3, ema=0.9),
    )
    experiment = Experiment(name="stranger", stages={"student": student}, control=False, quick_compile=True)
    experiment.log.every, experiment.log.tensorboard = 1, False
    return experiment
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "stranger"
    folder.mkdir()
    for name, text in {"__init__": "", "data": DATA, "models": MODELS, "losses": LOSSES, "config": CONFIG}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_trusted", {"tests"})
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        sys.modules.pop(name)


@pytest.mark.long
def test_it_trains_with_everything_of_its_own(package, tmp_path):
    ended = command(f"--config={package / 'config.py'}", f"--workdir={tmp_path / 'run'}")
    assert ended.code == 0, ended.error
    stage = tmp_path / "run" / "stages" / "student"
    records = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["split"] == "train"]
    assert all({"terms/ce", "terms/severity", "terms/bank"} <= r.keys() for r in steps)
    assert np.mean([r["terms/severity"] for r in steps[-3:]]) < np.mean([r["terms/severity"] for r in steps[:3]])
    assert np.mean([r["terms/ce"] for r in steps[-3:]]) < np.mean([r["terms/ce"] for r in steps[:3]])
    (row,) = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    assert row["metrics"]["accuracy"]["mean"] > 0.6
    variables, about = safetensors.load(stage / "model.safetensors")
    assert set(variables) == {"params"}, "neither the bank nor the average is left in what is deployed"
    assert safetensors.model_in(about).name == "stranger.models:build"

    again = command(f"--config={package / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--mode=eval")
    assert again.code == 0, again.error
    refused = command(f"--workdir={tmp_path / 'run'}", "--mode=eval", "--stage=student")
    assert refused.code == 0, "the package was named by the config in this very process"


def test_a_missing_label_changes_nothing_whatever_stands_in_its_place(package):
    """The term over a label that may be missing counts the examples that have it."""
    import jax

    from kdjax import launch
    from kdjax.config import Mesh
    from kdjax.data import pipeline
    from kdjax.experiment.saved import own_names
    from kdjax.train import sharding
    from kdjax.train.setup import prepare

    experiment = launch.load(str(package / "config.py"))
    registry.trust(*own_names(experiment))
    stage = experiment.stages["student"]
    learner = prepare("student", stage, experiment, sharding.make_mesh(Mesh(data=1)), pipeline.build(stage.data), {})
    state, fixed, _ = learner.start({}, {})
    batch = next(learner.dataset.train(8, seed=0))
    known = batch["severity_known"]
    assert 0 < known.sum() < 8
    run = jax.jit(learner.step.train)
    moved, measures = run(state, fixed, learner.knobs, batch)
    assert measures["terms/severity"][1] == known.sum()
    assert measures["terms/ce"][1] == measures["terms/bank"][1] == 8
    strange = {**batch, "severity": np.where(known, batch["severity"], np.nan).astype(np.float32)}
    same, _ = run(state, fixed, learner.knobs, strange)
    jax.tree.map(np.testing.assert_array_equal, same.params, moved.params)
