"""What the default promises of its student: a tenth of the SAM at most, and a third of its time."""

import jax
import numpy as np
import pytest

from kdjax import config, launch
from kdjax.data import pipeline
from kdjax.distill.teachers import build_model
from kdjax.experiment.cost import costs
from kdjax.experiment.plan import without_teachers
from kdjax.train import sharding
from kdjax.train.finish import count
from kdjax.train.setup import initial_shapes, initialiser, prepare


@pytest.fixture(scope="module")
def stages():
    """The default's teacher and student, as finished models are, on a few of its images."""
    experiment = launch.load("sam_distill")
    experiment.stages["student"].data.options.update(train=8, val=8, test=8)
    plain = {name: without_teachers(experiment.stages[name]) for name in ("teacher", "student")}
    for stage in plain.values():
        stage.terms, stage.init, stage.init_skip, stage.lora, stage.gate = {}, "", (), None, None
        stage.optim = config.Optim()
    return experiment, plain


def test_the_student_is_a_tenth_of_its_teacher(stages):
    teacher, student = (count(initial_shapes(build_model(stage.model))["params"]) for stage in stages[1].values())
    assert teacher > 10 * student


@pytest.mark.long
def test_the_student_takes_a_third_of_its_teachers_time(stages):
    experiment, plain = stages
    mesh = sharding.make_mesh(config.Mesh(data=1))
    dataset = pipeline.build(plain["student"].data, 1)
    models = {}
    for name, stage in plain.items():
        variables = jax.tree.map(np.asarray, initialiser(build_model(stage.model))(jax.random.key(0)))
        models[name] = prepare(name, stage, experiment, mesh, dataset, {}), variables
    costs(models)  # the first use of a program is slower
    measured = costs(models)
    assert measured["teacher"]["ms_per_image"] > 3 * measured["student"]["ms_per_image"]
    assert measured["teacher"]["flops_per_image"] > 5 * measured["student"]["flops_per_image"]
