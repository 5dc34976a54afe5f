"""What the default promises of its student: a tenth of the SAM in size, and far less to compute for an image."""

import jax
import pytest

from kdjax import launch
from kdjax.distill.teachers import build_model
from kdjax.experiment.cost import operations
from kdjax.train.finish import count
from kdjax.train.setup import initial_shapes

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def models():
    """The default's teacher and student with the shapes of their variables."""
    stages = launch.load("sam_distill").stages
    built = [build_model(stages[name].model) for name in ("teacher", "student")]
    return [(model, initial_shapes(model)) for model in built]


def test_the_student_is_a_tenth_of_its_teacher(models):
    teacher, student = (count(shapes["params"]) for _, shapes in models)
    assert teacher > 10 * student


def test_the_student_computes_a_fifth_of_what_its_teacher_does(models):
    """Which is three times as fast and more on any machine, as small matrices are the slower ones."""
    image = jax.ShapeDtypeStruct((8, 64, 64, 3), "float32")
    teacher, student = (operations(jax.jit(model.apply).lower(shapes, image)) for model, shapes in models)
    assert teacher > 5 * student
