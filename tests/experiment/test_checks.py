"""What cannot work is refused before anything is built."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdjax.config import ConfigError, Curriculum, Data, Experiment, Model, Optim, Schedule, Stage, Task, Teacher, Term
from kdjax.data.dataset import Dataset
from kdjax.experiment import checks, opening, plan
from kdjax.train.setup import only, together

ROOT = Path(__file__).parents[2]

VALIDATE = """
from kdjax.config import ConfigError, Experiment
from kdjax.experiment import checks
try:
    checks.validate(Experiment(name="empty", stages={}))
except ConfigError as error:
    print(error)
"""


def test_python_that_leaves_asserts_out_is_refused():
    """Flax pops the interceptor that adds LoRA's pairs inside an assert."""
    for flags, said in (([], "at least one stage"), (["-O"], "expected Python with its asserts, found python -O")):
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        ended = subprocess.run([sys.executable, *flags, "-c", VALIDATE], env=env, capture_output=True, text=True)
        assert said in ended.stdout, ended


def experiment(**fields) -> Experiment:
    """Whose student has these fields."""
    data = Data("ultrasound", image_size=16, batch_size=8, size=32, train=16, val=8, test=8)
    common = {"task": "segmentation", "data": data, "model": Model("tests.support.tiny:build"), "epochs": 1}
    student = {**common, "teachers": {"t": Teacher("teacher")}, "terms": {"kl": kl()}, **fields}
    return Experiment(name="checked", stages={"teacher": Stage(**common), "student": Stage(**student)})


def kl(temperature=2.0, **fields) -> Term:
    return Term("binary_kl", teacher="t:logits", args={"temperature": temperature}, **fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ""),
        ({"terms": {"kl": kl(0.0)}}, "terms.kl.args.temperature: expected a positive number"),
        ({"terms": {"kl": kl(-1)}}, "terms.kl.args.temperature: expected a positive number"),
        ({"terms": {"kl": kl(1e-30)}}, "terms.kl.args.temperature: expected a positive number"),
        ({"terms": {"kl": kl(weight=-1.0)}}, "terms.kl.weight: expected at least 0"),
        ({"terms": {"kl": kl(schedule=Schedule(end=-1.0))}}, "terms.kl.schedule: expected factors of at least 0"),
        (
            {"terms": {"kl": kl(schedule=Schedule("steps", points=((1.0, -2.0),)))}},
            "terms.kl.schedule: expected factors of at least 0",
        ),
        ({"terms": {"kl": kl(weight=0.0)}}, "teachers: no term that has a weight reads them"),
        ({"terms": {}}, "teachers: no term that has a weight reads them"),
        ({"optim": Optim(b1=1.0)}, r"optim.b1: expected a decay in [0, 1), found 1.0"),
        ({"optim": Optim(b2=-0.1)}, r"optim.b2: expected a decay in [0, 1)"),
        ({"optim": Optim("sgd", momentum=1.5)}, r"optim.momentum: expected a decay in [0, 1)"),
        ({"optim": Optim(eps=0.0)}, "optim.eps: expected a positive number"),
        ({"task": Task("segmentation", weight=-1.0)}, "task.options.weight: expected at least 0"),
        ({"model": Model("tinyusfm_seg", dropout=-0.5)}, r"model.options.dropout: expected a rate in [0, 1)"),
        (
            {"model": Model("x", part={"name": "y", "options": {"drop_path": 1}})},
            r"model.options.part.options.drop_path: expected a rate in [0, 1), found 1",
        ),
        ({"data": Data("ultrasound", split_seed=-1)}, "data.split_seed: expected at least 0"),
    ],
)
def test_values_that_train_nothing_sensible(fields, said):
    if not said:
        return checks.validate(experiment(**fields))
    with pytest.raises(ConfigError) as refused:
        checks.validate(experiment(**fields))
    assert f"stages.student: {said}" in str(refused.value)
    assert "learning rate" not in str(refused.value)


@pytest.mark.parametrize("seed", [2**40, 2**32, -1])
def test_a_seed_that_would_be_another_one(seed):
    made = experiment()
    made.seed = seed
    with pytest.raises(ConfigError, match=rf"seed: expected a whole number in \[0, 2\*\*32\), found {seed}"):
        checks.validate(made)


class Labelled(Dataset):
    """Of a data set what the check of its examples reads."""

    item = "graph"

    def __init__(self, *labels):
        self.trained_on, self._labels = range(len(labels)), labels

    def labels(self, split):
        return np.array(self._labels)


Labelled.__abstractmethods__ = frozenset()  # nothing else of it is asked for


@pytest.mark.parametrize(
    ("fields", "size", "labels", "said"),
    [
        ({}, 64, [0] * 32, ""),
        ({}, 100_000, [0] * 32, "data.batch_size: expected at most 32, as many as there are to train on, found 100000"),
        ({}, 0, [0] * 32, ""),
        ({}, 4, [0, 0, 0, 0], ""),
        ({"task": "detection"}, 4, [0, 0, 1, -1], ""),
        ({"task": "detection"}, 4, [0, 0, 0, -1], "found no attack among the 4 examples to train on"),
        ({"task": "detection"}, 4, [-1, -1, -1, -1], "found no normal and no attack"),
        ({"task": "contrastive"}, 4, [0, 0, 1, 1, -1], ""),
        ({"task": "contrastive"}, 4, [0, 0, 1, 2, 2, -1], "of a class at least, to be compared, found one of 1 among"),
        ({"curriculum": Curriculum("teacher")}, 4, [1, 1, 1, 1], "found no normal among the 4"),
    ],
)
def test_examples_that_nothing_can_be_learned_from(fields, size, labels, said):
    stage = copy.copy(experiment().stages["student"])
    for name, value in fields.items():
        setattr(stage, name, value)
    faults = opening.example_faults(stage, size, Labelled(*labels))
    assert bool(faults) == bool(said)
    assert said in " ".join(faults)


def test_a_part_starts_from_a_stage_or_from_a_file():
    places = ("teacher", "a/b", "weights.safetensors", "runs/other:teacher")
    assert [plan.is_file(place) for place in places] == [False, True, True, True]
    stage = experiment(parts=dict(enumerate(places))).stages["student"]
    assert plan.references(stage).count("teacher") == 2, "as a part and as a teacher"
    assert not {*places[1:]} & {*plan.references(stage)}


def test_a_part_counts_more_than_the_whole_that_holds_it():
    whole = {"params": {"a": 1, "b": {"x": 2}}, "batch_stats": {"b": {"mean": 3}}}
    parts = {"": whole, "b": {"params": {"x": 4}}}
    assert together(parts) == {"params": {"a": 1, "b": {"x": 4}}, "batch_stats": {}}
    assert only(whole, parts) == whole
    assert only(whole, {"b": {}}) == {"params": {"b": {"x": 2}}, "batch_stats": {"b": {"mean": 3}}}
