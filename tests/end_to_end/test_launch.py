"""The command line from end to end: every config, the main command in its smoke form, and all modes on what it left."""

import ast
import json
import os
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from PIL import Image

from convert.family import leaves
from kdjax import config, launch, registry
from kdjax.command import configs, lists
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks, plan, saved
from kdjax.experiment.resolve import resolved
from kdjax.experiment.run import ranked
from kdjax.experiment.workdir import Run
from kdjax.train.setup import Learner, initial_shapes
from kdjax.weights import safetensors
from tests.support.command import command, parsed, refused, tiny
from tests.support.folders import picture

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("*.py"))
MAIN = "configs/sam_distill.py:smoke"

pytestmark = pytest.mark.timeout(900)  # the smoke run is a whole run, and machines are slow and shared


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


# -- configs ---------------------------------------------------------------------------------------------------------


def test_configs_load_in_no_time_and_without_jax():
    code = (
        "import sys, time, kdjax.config; from kdjax import launch\n"
        "for path in sys.argv[1:]:\n"
        "    began = time.process_time(); launch.load(path); print(time.process_time() - began, 'jax' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, *CONFIGS], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    lines = [line.split() for line in run.stdout.splitlines()]
    assert len(lines) == len(CONFIGS) > 0
    assert all(float(seconds) < 0.5 and jax == "False" for seconds, jax in lines), lines


@pytest.mark.parametrize("path", CONFIGS)
def test_every_config_is_sound_in_each_variant(path):
    variants = runpy.run_path(path)["VARIANTS"]
    assert "smoke" in variants
    for variant in variants:
        experiment = launch.load(f"{path}:{variant}" if variant else path)
        checks.validate(experiment)
        again = saved.from_json(saved.to_json(experiment))
        checks.validate(again)
        assert saved.differences(experiment, again) == []
        tokens = {f"input_ids_{who}": {"vocab_size": 50, "vocabulary": who} for who in ("teacher", "student")}
        told = {"num_ids": 9, "features": 10, "num_classes": 3, "labels": {"modality": 2}, "tokens": tokens}
        for name, stage in experiment.stages.items():
            one, other = (resolved(of, told).model for of in (stage, again.stages[name]))
            assert build_model(one) == build_model(other)
            hash(build_model(other))  # compiled programs are found by it
    assert ast.get_docstring(ast.parse(Path(path).read_text()))


def test_a_converted_sam_is_where_the_published_teacher_starts():
    teacher = launch.load("configs/sam_distill.py:busi_vit_b").stages["teacher"]
    converted = unflatten_dict(leaves(config.Model("sam", variant="vit_b", image_size=512)), sep="/")
    safetensors.check(initial_shapes(build_model(teacher.model)), converted, skip=teacher.init_skip)


def test_overrides_change_one_field_each():
    plain = launch.load(MAIN)
    changed = parsed(
        f"--config={MAIN}",
        "--config.stages.student.optim.lr=3e-4",
        "--config.stages.student.terms.kl.args.temperature=6",
        "--config.stages.student.data.batch_size=12",
        "--config.stages.student.data.split=(0.6, 0.2, 0.2)",
        "--config.stages.teacher.lora=none",
        "--noconfig.control",
    )
    found = [line for line in saved.differences(plain, changed) if ".lora: " not in line]
    student = plain.stages["student"]
    assert sorted(found) == [
        "control: True and False",
        f"stages.student.data.batch_size: {student.data.batch_size} and 12",
        "stages.student.data.split: [0.7, 0.15, 0.15] and [0.6, 0.2, 0.2]",
        f"stages.student.optim.lr: {student.optim.lr} and 0.0003",
        f"stages.student.terms.kl.args.temperature: {student.terms['kl'].args['temperature']} and 6.0",
    ]
    assert changed.stages["teacher"].lora is None
    checks.validate(changed)


def test_the_flag_and_its_value_may_be_two_words():
    changed = parsed("--config", MAIN, "--config.seed", "5")
    assert saved.differences(launch.load(MAIN), changed) == ["seed: 0 and 5"]


@pytest.mark.parametrize(
    ("spec", "expected"), [(MAIN, "runs/sam_distill-smoke"), (CONFIGS[0], f"runs/{Path(CONFIGS[0]).stem}")]
)
def test_the_working_directory_is_named_after_the_config(spec, expected):
    assert str(configs.default_workdir(spec)) == expected


def test_the_command_to_go_on_with_can_be_pasted():
    argv = ["launch.py", f"--config={MAIN}", "--config.stages.student.data.split=(0.6, 0.2, 0.2)", "--workdir=my run"]
    with mock.patch.object(sys, "argv", argv):
        assert shlex.split(launch.command()) == ["python", "-m", "kdjax.launch", *argv[1:]]


# -- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", lists.KINDS)
def test_lists_have_a_line_about_each(kind):
    ended = command(f"--list={kind}")
    assert ended.code == 0, ended.error
    lines = dict(line.split(maxsplit=1) for line in ended.out.splitlines() if ":" not in line.split()[0])
    known = {"configs": configs.recipes(), **{kind: registry.names(kind) for kind in registry.TABLES}}
    assert list(lines) == known.get(kind, list(lines)) != []
    assert all(len(text) > 8 for text in lines.values())


def test_configs_are_listed_with_their_variants():
    assert "sam_distill:smoke" in command("--list=configs").out.split()


# -- the main command ------------------------------------------------------------------------------------------------


def launched(*flags):
    """The command in a process of its own, on one device as on a newcomer's machine."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "kdjax.launch", *map(str, flags)]
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=800)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """(workdir, what was printed) of the smoke form of the main command."""
    workdir = tmp_path_factory.mktemp("smoke")
    ended = launched(f"--config={ROOT / MAIN}", f"--workdir={workdir}")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    return workdir, ended.stdout


def table(printed):
    """The table of what a run prints; the headline and where the report is come after it."""
    return next(part for part in printed.split("\n\n") if part.strip().startswith("model ")).strip().splitlines()


def trained(workdir):
    """Every file of the stages, by its bytes."""
    return {p: p.read_bytes() for p in sorted((workdir / "stages").rglob("*")) if p.is_file()}


@pytest.mark.long
def test_the_smoke_run(smoke):
    workdir, printed = smoke
    head = printed.splitlines()
    assert head[0] == f"workdir  {workdir}"
    assert head[1].startswith("devices  1 x ")
    assert head[2] == "stages   sam > teacher > student > student_control"
    assert head[3].startswith("data     ultrasound, 64 train, 16 val, 16 test")
    rows = table(printed)
    assert rows[0].split() == ["model", "params", "Dice", "IoU", "HD95", "ms/image"]
    assert [row.split("  ")[0] for row in rows[1:]] == [
        "teacher (SAM, LoRA)",
        "student, distilled",
        "student, no teacher",
    ]
    assert rows[3].endswith("(control: same budget, same labels)")
    assert printed.strip().endswith(f"report: {workdir / 'report.html'}")
    for name in ("report.html", "summary.json", "test_results.txt", "config.json"):
        assert (workdir / name).stat().st_size > 100


@pytest.mark.long
def test_a_finished_run_is_only_reported_again(smoke):
    workdir, printed = smoke
    before = trained(workdir)
    ended = command(f"--config={MAIN}", f"--workdir={workdir}")
    assert ended.code == 0, ended.error
    assert "stages   sam (done) > teacher (done) > student (done) > student_control (done)" in ended.out
    assert table(ended.out) == table(printed)
    assert trained(workdir) == before


@pytest.mark.long
def test_eval_finds_what_training_found(smoke):
    workdir, _ = smoke
    expected = json.loads((workdir / "stages" / "student" / "result.json").read_text())
    ended = command("--mode=eval", f"--config={MAIN}", f"--workdir={workdir}", "--config.mesh.data=1")
    assert ended.code == 0, ended.error
    dice = expected["metrics"]["dice"]
    assert f"Dice            {dice['mean']:.3f} ± {dice['std']:.3f}" in (workdir / "eval_results.txt").read_text()


@pytest.mark.long
def test_predict_needs_the_workdir_alone(smoke, tmp_path):
    workdir, _ = smoke
    sizes = [(48, 48), (60, 100), (31, 17)]
    for i, size in enumerate(sizes):
        picture(tmp_path / "images" / f"{i}.png", i, size)
    ended = command("--mode=predict", f"--workdir={workdir}", f"--images={tmp_path / 'images'}", f"--output={tmp_path}")
    assert ended.code == 0, ended.error
    for i, size in enumerate(sizes):
        with Image.open(tmp_path / f"{i}_mask.png") as mask, Image.open(tmp_path / f"{i}_overlay.png") as overlay:
            assert mask.size == overlay.size == size[::-1]


def test_metrics_of_two_folders(tmp_path):
    for i in range(3):
        mask = np.zeros((8, 8), np.uint8)
        mask[: i + 1] = 255
        (tmp_path / "truth").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "truth" / f"{i}.png")
    flags = (f"--predicted={tmp_path / 'truth'}", f"--truth={tmp_path / 'truth'}", f"--output={tmp_path / 'out.csv'}")
    ended = command("--mode=metrics", *flags)
    assert ended.code == 0, ended.error
    assert "dice            1.0000 ± 0.0000  (n = 3)" in ended.out
    assert (tmp_path / "out.csv").read_text().startswith("image,dice")


@pytest.mark.long
def test_report_is_made_from_what_is_there(smoke):
    workdir, printed = smoke
    before = json.loads((workdir / "summary.json").read_text())
    for name in ("report.html", "summary.json", "test_results.txt"):
        (workdir / name).unlink()
    ended = command("--mode=report", f"--workdir={workdir}")
    assert ended.code == 0, ended.error
    assert table(ended.out) == table(printed)
    after = json.loads((workdir / "summary.json").read_text())
    assert after["rows"] == before["rows"]
    assert after["seconds"] == before["seconds"] > 0
    assert (workdir / "report.html").stat().st_size > 10_000
    assert (workdir / "test_results.txt").exists()


@pytest.mark.long
def test_another_config_is_refused_and_nothing_is_touched(smoke):
    workdir, _ = smoke
    before = trained(workdir)
    ended = command(f"--config={MAIN}", f"--workdir={workdir}", "--config.stages.student.optim.lr=0.5")
    refused(ended, "belongs to another config (there, and now):\n  stages.student.optim.lr: ", " and 0.5")
    assert trained(workdir) == before


def test_the_process_ends_with_a_message_and_code_2(tmp_path):
    ended = launched(f"--config={tiny(tmp_path)}", "--config.sed=3", f"--workdir={tmp_path / 'run'}")
    assert ended.returncode == 2
    assert ended.stderr == "\nerror: --config.sed: config has no field 'sed'; did you mean 'seed'?\n"
    assert ended.stdout == ""


def test_help_can_be_read():
    text = launched("--help").stdout
    assert "--config=FILE[:VARIANT]       the experiment;" in text
    assert all(f"--{name}:" in text for name in ("config", "mode", "stage", "workdir", "list", "images", "output"))
    assert max(map(len, text.splitlines())) <= 120


def test_a_curriculum_without_a_scorer_is_none():
    """The normal mode of a classifier, by a flag."""
    name = "--config.stages.gat_student.curriculum.scorer="
    stages = parsed("--config=configs/can_distill.py", name).stages
    assert plan.references(stages["gat_student"]) == ["gat_teacher"]
    assert plan.references(stages["gat_teacher"]) == ["vgae_teacher"]
    learner = object.__new__(Learner)
    learner.stage = stages["gat_student"]
    assert ranked(object.__new__(Run), learner) is None
