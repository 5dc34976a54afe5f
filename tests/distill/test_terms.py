import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Schedule, Term
from kdjax.data import images
from kdjax.distill.terms import bind, factor
from kdjax.train.setup import EXAMPLES

B = EXAMPLES


def shapes(**sizes):
    return {k: jax.ShapeDtypeStruct((B, *s), jnp.float32) for k, s in sizes.items()}


STUDENT = shapes(logits=(8, 8, 1), neck=(4, 4, 6), tokens=(16, 6), features=(6,))
TEACHERS = {"t": shapes(logits=(16, 16, 1), maps=(2, 2, 10), tokens=(17, 6), features=(6,), k=(16, 16, 3))}
BATCH = images.shapes(16, EXAMPLES)


def bound(**terms):
    return bind(terms, STUDENT, TEACHERS, BATCH)


def test_what_fits_is_bound():
    terms = bound(
        bce=Term("bce", label="mask"),
        kl=Term("binary_kl", teacher="t:logits", args={"temperature": 2.0, "variant": "sum"}),
        maps=Term("mse", student="neck", teacher="t:maps", adapter="conv_bn_relu"),
        features=Term("cosine", student="features", teacher="t:features"),
        layout=Term("l1", student="neck", teacher="t:maps", adapter="linear"),
    )
    assert [t.name for t in terms] == ["bce", "kl", "maps", "features", "layout"]
    assert [t.adapter is None for t in terms] == [True, True, False, True, False]
    assert (terms[1].teacher, terms[1].endpoint) == ("t", "logits")


KL = {"loss": "binary_kl", "teacher": "t:logits"}
MAPS = {"loss": "mse", "student": "neck", "teacher": "t:maps"}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (KL | {"loss": "binary_kll"}, "no losses entry 'binary_kll'; did you mean 'binary_kl'"),
        (KL | {"student": "logit"}, "the student has no endpoint 'logit'; did you mean 'logits'"),
        (KL | {"teacher": "t:logit"}, "teacher 't' has no 'logit'; did you mean 'logits'"),
        (KL | {"args": {"temprature": 1.0}}, "'binary_kl' takes no argument 'temprature'; did you mean 'temperature'"),
        (KL | {"args": {"variant": "means"}}, "no variant 'means' of the divergence; did you mean 'mean'"),
        (KL | {"loss": "kl"}, "kl: expected logits of at least two classes, found 1; 'binary_kl' takes"),
        (MAPS, "'neck' has 6 channels, teacher 't:maps' has 10; name an adapter, for example"),
        (MAPS | {"adapter": "linaer"}, "no adapter 'linaer'; did you mean 'linear'"),
        (
            MAPS | {"student": "tokens", "teacher": "t:tokens"},
            r"shape \(97, 17, 6\) cannot be laid out as \(97, 16, 6\)",
        ),
        ({"loss": "bce", "label": "masks"}, "the data have no label 'masks'; did you mean 'mask'"),
        ({"loss": "ce", "label": "mask"}, "ce: expected logits of at least two classes, found 1; 'bce'"),
    ],
)
def test_what_does_not_fit_says_so(term, message):
    with pytest.raises(ConfigError, match=rf"the objective does not fit the models:\n  terms\.x: .*{message}"):
        bound(x=Term(**term))


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        bound(a=Term("nothing", teacher="t:logits"), ok=Term("bce", label="mask"), b=Term("mse", teacher="t:maps"))
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == ["terms.a", "terms.b"]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_endpoint_whose_first_axis_is_no_batch_is_refused(side):
    """What nn.scan stacks must not pass for examples, however many there are."""
    stacked = {"blocks/x": jax.ShapeDtypeStruct((12, B, 4, 6), jnp.float32)}
    good = shapes(**{"blocks/x": (4, 6)})
    student, teacher = (stacked, good) if side == "student" else (good, stacked)
    with pytest.raises(ConfigError, match=rf"{side} '.*blocks/x' gives \[12, 97, 4, 6\] for 97 examples: .*scan=False"):
        bind({"x": Term("mse", student="blocks/x", teacher="t:blocks/x")}, student, {"t": teacher}, BATCH)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_schedule_goes_from_start_to_end(shape):
    schedule = Schedule(shape=shape, start=0.25, end=2.0, begin=1.0, until=4.0)
    for epoch in (0.0, 1.0, 1.5, 2.5, 3.9, 4.0, 9.0):
        done = min(max((epoch - 1) / 3, 0), 1)
        done = (1 - math.cos(math.pi * done)) / 2 if shape == "cosine" else done
        assert float(factor(schedule, jnp.asarray(epoch))) == pytest.approx(0.25 + 1.75 * done, rel=1e-6)


def test_a_schedule_of_no_length_is_a_step():
    schedule = Schedule(begin=2.0, until=2.0)
    assert [float(factor(schedule, jnp.asarray(e))) for e in (1.9, 2.0, 2.1)] == [0.0, 0.0, 1.0]


def test_a_weight_is_the_number_times_the_schedule():
    (plain, timed) = bound(
        a=Term("bce", label="mask", weight=0.3), b=Term("bce", label="mask", weight=0.3, schedule=Schedule(until=2.0))
    )
    assert float(plain.weight(jnp.asarray(0.5))) == pytest.approx(0.3)
    assert float(timed.weight(jnp.asarray(0.5))) == pytest.approx(0.075)


def test_a_total_sums_what_may_be_read_alone():
    (labelled, taught) = bound(a=Term("bce", label="mask"), b=Term("mse", student="features", teacher="t:features"))
    rng = np.random.default_rng(0)
    outputs = {
        "logits": jnp.asarray(rng.normal(size=(4, 8, 8, 1)), jnp.bfloat16),
        "features": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32),
    }
    teacher = {"t": {"features": jnp.asarray(rng.normal(size=(4, 6)), jnp.float32)}}
    batch = {
        "mask": jnp.asarray(rng.integers(0, 2, (4, 8, 8)), jnp.int32).at[1].set(-1),
        "labelled": jnp.array([True, False, True, True]),
        "valid": jnp.array([True, True, True, False]),
    }
    z = np.asarray(outputs["logits"].astype(jnp.float32), np.float64)[..., 0]
    each = np.logaddexp(0, z) - z * np.asarray(batch["mask"])
    total, _ = labelled.total(outputs, teacher, batch, {})
    assert float(total) == pytest.approx(each[[0, 2]].mean((1, 2)).sum(), rel=1e-5)
    assert float(labelled.readable(batch).sum()) == 2
    square = np.square(np.asarray(outputs["features"], np.float64) - np.asarray(teacher["t"]["features"])).mean(1)
    assert float(taught.total(outputs, teacher, batch, {})[0]) == pytest.approx(square[:3].sum(), rel=1e-5)
    grads = jax.grad(lambda z: labelled.total({**outputs, "logits": z}, teacher, batch, {})[0])(
        outputs["logits"].astype(jnp.float32)
    )
    assert (np.asarray(grads)[[1, 3]] == 0).all()
    assert (np.asarray(grads)[[0, 2]] != 0).all()
