"""Whole runs on graphs: the configs' smallest forms, teachers that are found by where they lie, what is refused."""

import csv
import json

import jax
import numpy as np
import pytest

from kdjax.config import ConfigError, Experiment, Mesh, Task, Teacher, Term, layout
from kdjax.experiment import run as running
from kdjax.experiment.opening import open_run
from kdjax.experiment.plan import without_teachers
from kdjax.launch import load
from kdjax.tasks.can.autoencoder import WEIGHTS
from kdjax.train import sharding
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors
from tests.support import tiny, tiny_graphs

pytestmark = pytest.mark.long

SETS = [f"{vehicle} vehicle {attack} attack" for attack in ("known", "unknown") for vehicle in ("known", "unknown")]
WAYS = ["weighted average", "logistic regression", "small MLP", "bandit"]


def plain(of: Experiment) -> Experiment:
    """On one device, quickly compiled, with nothing written for TensorBoard."""
    of.mesh, of.quick_compile, of.log.tensorboard = Mesh(data=1), True, False
    return of


# -- CAN -------------------------------------------------------------------------------------------------------------


def can() -> Experiment:
    of = plain(load("configs/can_distill.py:smoke"))
    of.control = False  # what a control run is, Cora's shows
    return of


@pytest.fixture(scope="module")
def can_run(tmp_path_factory):
    """(working directory, summary)"""
    workdir = tmp_path_factory.mktemp("can")
    return workdir, running.run(can(), workdir)


def test_the_smallest_can_run(can_run):
    workdir, summary = can_run
    rows = {row["title"]: row for row in summary["rows"]}
    assert [row["stage"] for row in summary["rows"]] == [*can().stages, *["fusion"] * 4]
    assert list(rows)[-4:] == WAYS
    roles = [row["role"] for row in summary["rows"]]
    assert roles == ["teacher", "student", "teacher", "student", "other", *["baseline"] * 4]
    for title, row in rows.items():
        assert list(row["per_class"]) == SETS, title
        assert 0 <= row["metrics"]["auc"]["mean"] <= 1, title
    assert summary["item"] == "graph"
    page = (workdir / "report.html").read_text()
    for heading in ("Anomalies", "Detection", "Fusion", "Example graphs", *WAYS):
        assert heading in page, heading


def test_a_stage_lies_where_the_layout_says_and_keeps_what_its_users_need(can_run):
    workdir, _ = can_run
    for name, stage in can().stages.items():
        folder = workdir / stage.folder
        assert stage.folder.startswith("automotive/smoke/"), "modality, data set"
        assert ("/with-kd/" in stage.folder) == bool(stage.teachers)
        about = safetensors.load(folder / "model.safetensors")[1]
        result = json.loads((folder / "result.json").read_text())
        assert float(about["threshold"]) == result["threshold"] == result["calibrated"]["threshold"], name
        assert safetensors.model_in(about).options.get("num_ids", 1) is not None, "told by the data"
        assert json.loads((folder / "windows.json").read_text())["generation"] == "B"
        head, *lines = csv.reader((folder / "test.csv").read_text().splitlines())
        assert head == ["set", "begin", "label", "score", "alarm"]
        assert list(dict.fromkeys(line[0] for line in lines)) == SETS
        alarms = np.array([float(line[3]) > result["threshold"] for line in lines])
        np.testing.assert_array_equal(alarms, [line[4] == "1" for line in lines])
        assert np.load(folder / "test.npz")["score"].shape[0] == len(lines) == 4 * 32


def test_the_parts_of_the_fusion_are_the_students(can_run):
    workdir, _ = can_run
    stages = can().stages
    fused = safetensors.load(workdir / stages["fusion"].folder / "model.safetensors")[0]
    for part, source in (("vgae", "vgae_student"), ("gat", "gat_student")):
        whole = safetensors.load(workdir / stages[source].folder / "model.safetensors")[0]
        assert tiny.largest_difference(fused["params"][part], whole["params"]) == 0
        stats = whole.get("batch_stats", {})
        assert tiny.largest_difference(fused["batch_stats"].get(part, {}), stats) == 0


def test_layers_of_student_and_teacher_are_compared(can_run):
    rows = {row["stage"]: row for row in can_run[1]["rows"] if row["role"] == "student"}
    for name, row in rows.items():
        alike = np.array(row["likeness"]["cka"])
        assert alike.shape == (len(row["likeness"]["teacher"]), len(row["likeness"]["student"]))
        assert 0 < alike.max() <= 1 + 1e-6, name


def test_the_curriculum_ranks_by_what_the_vgae_finds_strange(can_run):
    workdir, _ = can_run
    with running.compiling(quick=True):
        made = open_run(can(), workdir)
        of, vgae = made.learners["gat_teacher"], made.learners["vgae_teacher"]
        ranked = running.ranked(made, of)
        assert ranked is not None
        variables, run = made.weights("vgae_teacher"), jax.jit(vgae.model.apply)
        anomaly = np.zeros(of.dataset.sizes["train"])
        for batch in of.dataset.evaluate("train", 32):
            pack = jax.tree.map(lambda x: x[0], batch["graphs"])
            parts, valid = np.asarray(run(variables, pack)["anomaly_parts"]), batch["valid"][0]
            anomaly[batch["index"][0][valid]] = (parts @ np.array(WEIGHTS))[valid]
    labels = of.dataset.labels("train")
    assert set(ranked.attacks) == set(np.flatnonzero(labels == 1))
    assert set(ranked.normals) == set(np.flatnonzero(labels == 0))
    falling = anomaly[ranked.normals]
    assert (np.diff(falling) < 1e-5 * falling[:-1]).all()
    assert falling[0] > falling[-1]


def test_one_stage_alone_finds_what_it_needs_in_the_same_folder(can_run, capsys):
    workdir, _ = can_run
    kept = {p: p.stat().st_mtime_ns for p in workdir.glob("automotive/**/model.safetensors")}
    student = workdir / can().stages["vgae_student"].folder
    (student / "result.json").unlink()
    before = (student / "model.safetensors").read_bytes()
    summary = running.run(can(), workdir, "vgae_student")
    assert "stages   vgae_teacher (done) > vgae_student\n" in capsys.readouterr().out
    assert [row["stage"] for row in summary["rows"]] == ["vgae_teacher", "vgae_student"]
    assert (student / "model.safetensors").read_bytes() == before
    for path, when in kept.items():
        assert path.stat().st_mtime_ns == when or path.parent == student, "nothing else was trained again"


# -- teachers by where they lie --------------------------------------------------------------------------------------


def folder(size: str, distilled: bool = False) -> str:
    return layout("automotive", "generated", "supervised", "gat", size, "normal", distilled=distilled)


KL = Term("binary_kl", teacher="large:logits")


def pair(teacher: Teacher, **fields) -> Experiment:
    """A large stage, one in the middle, and a small one, which is distilled."""
    stages = {
        size: tiny_graphs.stage(folder=folder(size), model=tiny_graphs.model(dim=dim), epochs=1, grad_norms_every=0)
        for size, dim in (("large", 12), ("middle", 9))
    }
    small = {"folder": folder("small", True), "terms": {"kl": KL}, "teachers": {"large": teacher}, **fields}
    stages["small"] = tiny_graphs.stage(epochs=1, grad_norms_every=0, **small)
    return plain(Experiment(name="pair", stages=stages, control=False))


def test_a_teacher_that_is_not_named_is_found(tmp_path, capsys):
    of = pair(Teacher())
    with pytest.raises(
        ConfigError, match=r"small\.teachers\.large: no teacher is named; .* found none: train it first"
    ):
        running.run(of, tmp_path, "small")
    running.run(of, tmp_path, "large")
    summary = running.run(of, tmp_path, "small")
    assert [(row["stage"], row["role"]) for row in summary["rows"]] == [("small", "teacher"), ("small", "student")]
    assert "warning" not in capsys.readouterr().out
    made = open_run(of, tmp_path, "small")
    (taught,) = made.teachers(made.learners["small"].stage).values()
    left = safetensors.load(tmp_path / folder("large") / "model.safetensors")[0]
    assert taught["params"]["lin"]["kernel"].shape == (10, 12)
    assert tiny.largest_difference(taught["params"], left["params"]) == 0
    running.run(of, tmp_path, "middle")
    with pytest.raises(ConfigError, match=r"found .*/large/no-kd/normal/.* and .*/middle/no-kd/normal/"):
        open_run(of, tmp_path, "small")


FUSED = {"task": Task("fusion", acts=4), "model": tiny_graphs.Model("tests.support.tiny_graphs:build_actor")}


@pytest.mark.parametrize(
    ("teacher", "fields", "message"),
    [
        (Teacher(stage="large"), FUSED, "teachers: an agent is not distilled, it reads models that are"),
        (Teacher(), {"folder": ""}, r"teachers\.large: name a stage, or a model with a file of weights; only a stage"),
        (Teacher(model=tiny_graphs.model(), weights="no/such.safetensors"), {}, "such.safetensors: no such file of w"),
        (Teacher(model=tiny_graphs.model()), {}, "a model needs weights=FILE, else it would teach noise"),
        (Teacher(stage="lrage"), {}, "'lrage', which does not come before it; did you mean 'large'"),
    ],
)
def test_teachers_that_cannot_be_are_refused_at_once(tmp_path, teacher, fields, message):
    with pytest.raises(ValueError, match=message):
        running.run(pair(teacher, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing is begun"


def test_a_student_as_large_as_its_teacher_is_warned_of(tmp_path):
    for dim, warned in ((12, True), (11, False)):
        of = pair(Teacher(stage="large"), model=tiny_graphs.model(dim=dim))
        told = running.overview(open_run(of, tmp_path / str(dim)))
        size = 10 * 12 + 12 + 13
        text = f"warning  small: with {size} parameters it is no smaller than its teacher 'large' with {size}"
        assert (text in told) is warned


# -- Cora ------------------------------------------------------------------------------------------------------------


def test_the_smallest_cora_run(tmp_path):
    summary = running.run(plain(load("configs/cora_distill.py:smoke")), tmp_path)
    rows = {row["stage"]: row for row in summary["rows"]}
    assert [row["role"] for row in rows.values()] == ["teacher", "student", "control"]
    assert (summary["item"], summary["over"]) == ("node", "120 test nodes")
    assert all(0 <= row["metrics"]["accuracy"]["mean"] <= 1 for row in rows.values())
    terms = {
        name: {
            k
            for line in (tmp_path / "stages" / name / "metrics.jsonl").read_text().splitlines()
            for k in json.loads(line)
        }
        for name in rows
    }
    told = {name: {k for k in keys if k.startswith("terms/")} for name, keys in terms.items()}
    assert told == {"teacher": {"terms/ce"}, "student": {"terms/soft"}, "student_control": {"terms/ce"}}
    page = (tmp_path / "report.html").read_text()
    assert "MLP, distilled" in page
    lines = (tmp_path / "stages/student/test.csv").read_text().splitlines()
    assert lines[0].startswith("node,class,predicted")
    assert len(lines) == 121


def test_the_published_variants_differ_in_what_they_say():
    stages = {v: load(f"configs/cora_distill.py:{v}=x").stages["student"] for v in ("cora", "cora_labels")}
    assert {v: of.terms["ce"].weight for v, of in stages.items()} == {"cora": 0.0, "cora_labels": 0.1}
    assert {of.data.options["root"] for of in stages.values()} == {"x"}
    assert without_teachers(stages["cora"]).terms == {}, "its control hears the task's labels"
    assert list(without_teachers(stages["cora_labels"]).terms) == ["ce"]


# -- the mesh --------------------------------------------------------------------------------------------------------


def test_a_step_is_the_same_on_one_device_and_on_two():
    """The same graphs in one pack and in two, a loss over all of them at once among the terms."""
    large = tiny_graphs.model(dim=12)
    terms = {
        "bce": Term("bce", label="class"),
        "kl": KL,
        "batch": Term("batch_softmax_kl", teacher="large:logits"),
        "pull": Term("value", "nodes", over="nodes", weight=0.1),
        "features": Term("mse", "nodes", "large:nodes", adapter="linear", over="nodes", weight=0.5),
    }
    given = {"terms": terms, "teachers": {"large": Teacher(stage="large")}}
    found = []
    for mesh in (Mesh(data=1), Mesh(data=2)):
        one = tiny_graphs.learner(tiny_graphs.stage(**given), mesh, earlier={"large": large})
        taught = jax.device_get(initialiser(tiny_graphs.build(dim=12))(jax.random.key(5)))
        taught = jax.tree.map(lambda x: 5 * x, taught)  # so that it says something else
        state, fixed, _ = one.start({}, {"large": taught})
        step, batches = jax.jit(one.step.train), one.dataset.train(8, seed=3)
        told = []
        for _ in range(2):
            batch = sharding.global_batch(next(batches), one.mesh)
            assert len(batch["valid"].sharding.device_set) == sharding.shares(one.mesh)
            state, measures = step(state, fixed, one.knobs, batch)
            told.append({k: float(total) / float(count) for k, (total, count) in measures.items()})
        found.append((jax.device_get(state.params), told))
    (params, told), (other, again) = found
    assert tiny.largest_difference(other, params) < 1e-5
    for a, b in zip(again, told, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
