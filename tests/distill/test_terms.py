import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax.config import ConfigError, Schedule, Term
from kdjax.data.images import dataset as images
from kdjax.distill.scope import Outputs, Scope
from kdjax.distill.terms import factor
from kdjax.losses.contrastive import SupCon
from kdjax.train import knobs, objective

B = 3


def shapes(**sizes):
    return {k: jax.ShapeDtypeStruct((B, *s), jnp.float32) for k, s in sizes.items()}


STUDENT = shapes(logits=(8, 8, 1), neck=(4, 4, 6), tokens=(16, 6), features=(6,))
TEACHERS = {"t": shapes(logits=(16, 16, 1), maps=(2, 2, 10), tokens=(17, 6), features=(6,), k=(16, 16, 3))}
BATCH = images.shapes(16, B)


class Given:
    """A source whose variables are what it gives."""

    def feed(self, scope: Scope) -> dict:
        return {}

    def __call__(self, feed: dict, batch: dict, variables: dict) -> Outputs:
        return variables


def bind(terms: dict, student: dict, teachers: dict, batch: dict) -> list:
    found, faults = objective.find_terms(terms)
    return objective.bind(found, student, dict.fromkeys(teachers, Given()), teachers, batch, faults)


def bound(**terms):
    return bind(terms, STUDENT, TEACHERS, BATCH)


def scope(student: dict, teachers: dict, batch: dict) -> dict:
    """Every path that a term may read."""
    places = {"student": student, "batch": batch, **teachers}
    return {f"{place}:{name}": value for place, entries in places.items() for name, value in entries.items()}


def total(term, student: dict, teachers: dict, batch: dict) -> jax.Array:
    return term.total(scope(student, teachers, batch), batch, {}, {})[0]


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
    assert [t.reads for t in terms] == [
        {"logits": "student:logits", "mask": "batch:mask"},
        {"student": "student:logits", "teacher": "t:logits"},
        {"student": "adapters:maps", "teacher": "t:maps"},
        {"student": "student:features", "teacher": "t:features"},
        {"student": "adapters:layout", "teacher": "t:maps"},
    ]
    assert [t.hears_teacher for t in terms] == [False, True, True, True, True]


KL = {"loss": "binary_kl", "teacher": "t:logits"}
MAPS = {"loss": "mse", "student": "neck", "teacher": "t:maps"}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (KL | {"loss": "binary_kll"}, "no losses entry 'binary_kll'; did you mean 'binary_kl'"),
        (KL | {"student": "logit"}, "'student:logit': 'student' has no 'logit'; did you mean 'logits'"),
        (KL | {"teacher": "t:logit"}, "'t:logit': 't' has no 'logit'; did you mean 'logits'"),
        (KL | {"args": {"temprature": 1.0}}, "'binary_kl' takes no argument 'temprature'; did you mean 'temperature'"),
        (KL | {"args": {"variant": "means"}}, "no variant 'means' of the divergence; did you mean 'mean'"),
        (MAPS, "'neck' has 6 channels, teacher 't:maps' has 10; name an adapter, for example"),
        (MAPS | {"adapter": "linaer"}, "no adapter 'linaer'; did you mean 'linear'"),
        (
            MAPS | {"student": "tokens", "teacher": "t:tokens"},
            r"shape \(3, 17, 6\) cannot be laid out as \(3, 16, 6\)",
        ),
        ({"loss": "bce", "label": "masks"}, "'batch:masks': 'batch' has no 'masks'; did you mean 'mask'"),
        ({"loss": "mse", "student": "features"}, "the loss 'mse' also reads 'teacher'; name a teacher or a label, or"),
        (
            {"loss": "adaface", "student": "features", "label": "class"},
            r"'adaface' also reads 'target'; name .* with a path for each of 'cosines', 'features', 'target'",
        ),
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


def test_a_source_that_cannot_be_read_says_so_to_every_term():
    """And is not taken for one that is fed by itself."""

    class Broken(Given):
        def feed(self, scope: Scope) -> dict:
            return {"x": scope["t:nothing"]}

    found, _ = objective.find_terms({k: Term("mse", student="features", teacher="u:features") for k in "ab"})
    with pytest.raises(ConfigError) as error:
        objective.bind(found, STUDENT, {"t": Given(), "u": Broken()}, TEACHERS, BATCH)
    lines = str(error.value).splitlines()[1:]
    assert [line.split(";")[0] for line in lines] == [f"  terms.{k}: 't:nothing': 't' has no 'nothing'" for k in "ab"]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_endpoint_whose_first_axis_is_no_batch_is_refused(side):
    """What nn.scan stacks must not pass for examples, however many there are."""
    stacked = {"blocks/x": jax.ShapeDtypeStruct((12, B, 4, 6), jnp.float32)}
    good = shapes(**{"blocks/x": (4, 6)})
    student, teacher = (stacked, good) if side == "student" else (good, stacked)
    at = {"student": "student", "teacher": "t"}[side]
    with pytest.raises(ConfigError, match=rf"'{at}:blocks/x' gives \[12, 3, 4, 6\] for 3 examples: .*scan=False"):
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
    numbers = knobs.start((plain, timed), 0)
    assert float(plain.weight(numbers, jnp.asarray(0.5))) == pytest.approx(0.3)
    assert float(timed.weight(numbers, jnp.asarray(0.5))) == pytest.approx(0.075)
    other = {**numbers, "weights": {"a": 2.0, "b": 4.0}}
    assert float(plain.weight(other, jnp.asarray(0.5))) == pytest.approx(2.0)
    assert float(timed.weight(other, jnp.asarray(0.5))) == pytest.approx(1.0)


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
        "mask_known": jnp.array([True, False, True, True]),
        "valid": jnp.array([True, True, True, False]),
    }
    z = np.asarray(outputs["logits"].astype(jnp.float32), np.float64)[..., 0]
    each = np.logaddexp(0, z) - z * np.asarray(batch["mask"])
    assert float(total(labelled, outputs, teacher, batch)) == pytest.approx(each[[0, 2]].mean((1, 2)).sum(), rel=1e-5)
    assert float(labelled.readable(batch).sum()) == 2
    square = np.square(np.asarray(outputs["features"], np.float64) - np.asarray(teacher["t"]["features"])).mean(1)
    assert float(total(taught, outputs, teacher, batch)) == pytest.approx(square[:3].sum(), rel=1e-5)
    grads = jax.grad(lambda z: total(labelled, {**outputs, "logits": z}, teacher, batch))(
        outputs["logits"].astype(jnp.float32)
    )
    assert (np.asarray(grads)[[1, 3]] == 0).all()
    assert (np.asarray(grads)[[0, 2]] != 0).all()


def flagged():
    """A term that reads the flag of the class and one that does not, and a batch with a row that has no class."""
    reads = {"student": "student:features", "labels": "batch:class", "index": "batch:index"}
    args = {"projection": 0}
    with_flag, without = bound(
        a=Term("supcon", reads={**reads, "known": "batch:class_known"}, args=args),
        b=Term("supcon", reads=reads, args=args),
    )
    known, valid = jnp.array([True, False, True, True, True]), jnp.array([True] * 4 + [False])
    batch = {"class": jnp.array([1, -1, 2, 2, 0]), "class_known": known, "valid": valid}
    batch |= {"index": jnp.array([5, 5, 6, 7, -1])}
    return with_flag, without, batch


def test_a_term_that_reads_the_flag_of_a_label_takes_the_examples_without_it():
    with_flag, without, batch = flagged()
    np.testing.assert_array_equal(with_flag.readable(batch), batch["valid"])
    np.testing.assert_array_equal(without.readable(batch), batch["valid"] & batch["class_known"])


@pytest.mark.long
def test_an_example_without_a_class_still_has_its_views():
    with_flag, _, batch = flagged()
    known = batch["class_known"]
    features = jnp.asarray(np.random.default_rng(0).normal(size=(5, 6)), jnp.float32)
    grad = jax.jit(jax.grad(lambda x: total(with_flag, {"features": x}, {}, batch)))(features)
    np.testing.assert_array_equal((grad != 0).any(1), batch["valid"])
    alone = SupCon(projection=0).apply({}, features[:4], batch["class"][:4], batch["index"][:4], known[:4])
    np.testing.assert_allclose(total(with_flag, {"features": features}, {}, batch), alone.sum(), rtol=1e-6)


# -- examples deeper in the batch: the graphs of packs, and their nodes ----------------------------------------------


def packs(seed: int = 0) -> tuple[dict, dict, dict]:
    """Two packs of four graphs and six nodes: outputs of a student and a teacher, and a batch with padding."""
    rng = np.random.default_rng(seed)

    def outputs():
        told = {"logits": (2, 4, 1), "z": (2, 6, 3), "error": (2, 6), "classes": (2, 6, 5)}
        return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in told.items()}

    valid = jnp.array([[True] * 3 + [False], [True, True, False, False]])
    nodes = jnp.array([[True] * 5 + [False], [True] * 2 + [False] * 4])
    batch = {"valid": valid, "nodes": nodes, "class_known": valid & jnp.array([[True, False, True, True]] * 2)}
    batch |= {"x": jnp.asarray(rng.normal(size=(2, 6, 3)), jnp.float32)}
    batch |= {"id": jnp.asarray(rng.integers(0, 5, (2, 6)), jnp.int32), "class": jnp.where(batch["class_known"], 1, -1)}
    return outputs(), {"t": outputs()}, batch


def one_of_packs(**term):
    student, teachers, batch = packs()
    (found,) = bind({"x": Term(**term)}, student, teachers, batch)
    return found


def np64(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def test_terms_over_nodes_read_the_nodes_alone():
    student, teachers, batch = packs()
    some, x, z = np.asarray(batch["nodes"]), np64(batch["x"]), np64(student["z"])
    log_p = np64(student["classes"]) - np.log(np.exp(np64(student["classes"])).sum(-1, keepdims=True))
    expected = {
        "label": (Term("mse", "z", label="x", over="nodes"), np.square(z - x).mean(-1)),
        "ids": (
            Term("ce", "classes", label="id", over="nodes"),
            -np.take_along_axis(log_p, np.asarray(batch["id"])[..., None], 2)[..., 0],
        ),
        "teacher": (Term("mse", "z", "t:z", over="nodes"), np.square(z - np64(teachers["t"]["z"])).mean(-1)),
        "penalty": (Term("value", "error", over="nodes"), np64(student["error"])),
    }
    wild = {
        k: jnp.where(batch["nodes"].reshape(2, 6, *[1] * (v.ndim - 2)), v, 9e9)
        for k, v in student.items()
        if k != "logits"
    }
    strange = {
        **batch,
        "x": jnp.where(batch["nodes"][..., None], batch["x"], jnp.nan),
        "id": jnp.where(some, batch["id"], 77),
    }
    for name, term in bound_of_packs({k: t for k, (t, _) in expected.items()}).items():
        each = expected[name][1]
        assert float(term.readable(batch).sum()) == 7
        for outputs, seen in ((student, batch), ({**student, **wild}, strange)):
            assert float(total(term, outputs, teachers, seen)) == pytest.approx(each[some].sum(), rel=1e-5), name
        of = term.term.student
        grad = jax.grad(lambda v, t=term, of=of: total(t, {**student, of: v}, teachers, strange))(student[of])
        assert (np.asarray(grad)[~some] == 0).all(), name
        assert (np.asarray(grad)[some] != 0).any(), name


def bound_of_packs(terms: dict) -> dict:
    return {term.name: term for term in bind(terms, *packs())}


def test_a_penalty_is_the_students_alone():
    """It reads all valid examples, labelled or not, and no teacher or label is looked for."""
    student, _, batch = packs()
    term = one_of_packs(loss="value", student="logits")
    assert term.reads == {"student": "student:logits"}
    assert not term.labels
    assert not term.hears_teacher
    np.testing.assert_array_equal(term.readable(batch), batch["valid"])
    found = total(term, student, {}, {"valid": batch["valid"]})
    assert float(found) == pytest.approx(np64(student["logits"])[..., 0][np.asarray(batch["valid"])].sum(), rel=1e-5)


def test_graphs_in_packs_are_examples_like_others():
    student, teachers, batch = packs()
    terms = bound_of_packs(
        {"bce": Term("bce", label="class"), "kl": Term("binary_kl", teacher="t:logits", args={"temperature": 2.0})}
    )
    assert [float(t.readable(batch).sum()) for t in terms.values()] == [3, 5]
    flat = lambda d: {k: v.reshape(-1, *v.shape[2:]) for k, v in d.items()}  # noqa: E731
    for term in terms.values():
        whole = total(term, student, teachers, batch)
        as_images = total(term, flat(student), {"t": flat(teachers["t"])}, flat(batch))
        np.testing.assert_array_equal(whole, as_images)


def test_a_loss_over_the_batch_is_told_what_is_padding():
    """With padding it is the loss of the same examples without."""
    student, teachers, batch = packs()
    term = one_of_packs(loss="batch_softmax_kl", teacher="t:logits", args={"temperature": 3.0})
    some = np.asarray(batch["valid"])
    s, t = (jax.nn.softmax(np.clip(np64(z["logits"])[..., 0][some], -10, 10) / 3.0) for z in (student, teachers["t"]))
    s, t = np64(s), np64(t)
    expected = 9.0 * (t * np.log(t / s)).sum()
    wild = {"logits": jnp.where(batch["valid"][..., None], student["logits"], 50.0)}
    for outputs in (student, wild):
        assert float(total(term, outputs, teachers, batch)) == pytest.approx(expected, rel=1e-5)
    (without,) = bind(
        {"x": term.term},
        {"logits": student["logits"][some]},
        {"t": {"logits": teachers["t"]["logits"][some]}},
        {"valid": jnp.ones(5, bool)},
    )
    alone = total(
        without,
        {"logits": student["logits"][some]},
        {"t": {"logits": teachers["t"]["logits"][some]}},
        {"valid": jnp.ones(5, bool)},
    )
    assert float(alone) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (
            {"loss": "value", "student": "error", "over": "node"},
            "over='node': the data have no such mask; did you mean 'nodes'",
        ),
        (
            {"loss": "value", "student": "error", "over": "x"},
            "over='x': the data have no such mask; known: class_known, nodes, valid",
        ),
        ({"loss": "value", "student": "error"}, r"gives \[2, 6\] for 8 examples: it does not begin with \[2, 4\]"),
        ({"loss": "mse", "student": "z", "label": "x"}, r"gives \[2, 6, 3\] for 8 examples"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(term, message):
    with pytest.raises(ConfigError, match=message):
        one_of_packs(**term)
