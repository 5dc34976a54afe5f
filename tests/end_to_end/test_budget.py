"""The batch size that a budget of memory allows."""

import json
from dataclasses import replace

import pytest

from kdjax.config import Budget, ConfigError, Experiment, Log, Teacher, Term
from kdjax.experiment.opening import BATCH, open_run
from kdjax.experiment.run import compiling
from tests.support import tiny

pytestmark = pytest.mark.long


def opened(folder, budget):
    teacher = tiny.stage()
    student = tiny.stage(
        teachers={"t": Teacher(stage="teacher")}, terms={"kl": Term("binary_kl", teacher="t:logits")}, budget=budget
    )
    stages = {"teacher": teacher, "student": student}
    experiment = Experiment(name="tiny", stages=stages, log=Log(tensorboard=False), quick_compile=True)
    with compiling(quick=True):
        return open_run(replace(experiment, mesh=replace(experiment.mesh, data=1)), folder)


def test_a_larger_budget_gives_a_larger_batch_to_the_student_and_its_control(tmp_path):
    small = opened(tmp_path / "a", Budget(bytes=600_000, most=64))
    large = opened(tmp_path / "b", Budget(bytes=1_200_000, most=64))
    sizes = [{k: v.stage.data.batch_size for k, v in made.learners.items()} for made in (small, large)]
    assert sizes[0]["teacher"] == sizes[1]["teacher"] == tiny.DATA.batch_size
    assert 1 <= sizes[0]["student"] < sizes[1]["student"] <= 64
    assert all(of["student"] == of["student_control"] for of in sizes)


def test_a_run_that_has_begun_keeps_its_size(tmp_path):
    made = opened(tmp_path, Budget(bytes=600_000, most=64))
    kept = made.folder_of("student") / BATCH
    assert json.loads(kept.read_text())["batch_size"] == made.learners["student"].stage.data.batch_size
    kept.write_text("5")
    assert opened(tmp_path, Budget(bytes=600_000, most=64)).learners["student"].stage.data.batch_size == 5


@pytest.mark.parametrize(
    ("budget", "told"), [(Budget(bytes=1000), "a batch of 1 takes"), (Budget(bytes=-1), "expected bytes of at least 0")]
)
def test_a_budget_that_holds_nothing_is_refused(tmp_path, budget, told):
    with pytest.raises(ConfigError, match=told):
        opened(tmp_path, budget)
