"""The recipe of images with captions: its variants and words, each way to distil, and a whole run."""

import json

import pytest

from kdjax.config import ConfigError
from kdjax.experiment import checks
from kdjax.experiment import run as running
from kdjax.launch import load

CONFIG = "configs/medpix_distill.py"
LOSSES = {
    "vanilla": {"kl", "mse"},
    "combined": {"kl", "mse", "infonce"},
    "crd": {"infonce"},
    "rkd": {"rkd_distance", "rkd_angle"},
    "mmd": {"mmd"},
}


@pytest.mark.parametrize("variant", ["", "smoke", "medpix=data", "medpix=data,small", "text=data", "recipe=rkd"])
def test_the_recipe_is_sound(variant):
    made = load(f"{CONFIG}:{variant}")
    checks.validate(made)
    assert list(made.stages) == ["teacher", "student"]
    for name, whose in (("teacher", "teacher"), ("student", "student")):
        assert made.stages[name].inputs == {k: f"{k}_{whose}" for k in ("input_ids", "attention_mask")}
    assert made.stages["student"].teachers["large"].inputs == made.stages["teacher"].inputs


@pytest.mark.parametrize("recipe", LOSSES)
def test_each_way_to_distil_has_its_losses(recipe):
    for variant, parts in (("", {"image", "text"}), ("text=data,", {"text"})):
        terms = load(f"{CONFIG}:{variant}recipe={recipe}").stages["student"].terms
        assert {term.loss for term in terms.values()} == LOSSES[recipe]
        read = [term.student for term in terms.values() if not term.reads and term.loss != "kl"]
        read += [term.reads["student"].removeprefix("student:") for term in terms.values() if term.reads]
        assert {name.removesuffix("_embedding") for name in read} == parts


def test_medpix_is_trained_as_the_original_does():
    stages = load(f"{CONFIG}:medpix=data").stages
    assert [stage.epochs for stage in stages.values()] == [5, 10]
    assert [stage.optim.lr for stage in stages.values()] == [1e-5, 3e-4]
    assert {stage.data.batch_size for stage in stages.values()} == {16}


def test_words_name_weights_and_tokenizers():
    words = "teacher_text=weights/bert.safetensors,teacher_tokens=clinical,student_image=weights/deit.safetensors"
    stages = load(f"{CONFIG}:medpix=data,{words}").stages
    assert stages["teacher"].parts == {"text": "weights/bert.safetensors"}
    assert stages["student"].parts == {"image": "weights/deit.safetensors"}
    for stage in stages.values():
        tokenizers = stage.data.options["tokenizers"]
        assert tokenizers["teacher"] == {"path": "clinical"}
        assert list(tokenizers["student"]) == ["train"]


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("mdpix=data", "no variant 'mdpix'; did you mean 'medpix'"),
        ("medpix=data,recipe=crdd", "no such recipe; did you mean 'crd'"),
        ("medpix=data,teacher_txt=x", "did you mean 'teacher_text=...'"),
        ("medpix=data,recipe", "no variant 'recipe'"),
        ("medpix=data,small,teacher_text=x", "published weights are not for small models"),
        ("student_text=x", "published weights are not for small models"),
        ("text=data,teacher_image=x", "published weights are not for small models"),
    ],
)
def test_words_that_mean_nothing_are_refused(variant, said):
    with pytest.raises(ConfigError, match=said):
        load(f"{CONFIG}:{variant}")


@pytest.mark.long
def test_a_whole_run_answers_and_is_looked_at(tmp_path):
    made = load(f"{CONFIG}:smoke")
    made.log.tensorboard, made.mesh.data = False, 1  # not the eight devices of the tests
    summary = running.run(made, tmp_path / "run")
    teacher, student, control = summary["rows"]
    assert teacher["parameters"] > 10 * student["parameters"] == 10 * control["parameters"]
    assert {"macro_f1", "modality_accuracy", "location_macro_f1"} <= set(student["metrics"])
    page = (tmp_path / "run" / "report.html").read_text()
    for heading in ("Where they disagree", "Modality", "Location", "One part of the input alone", "Examples"):
        assert f">{heading}<" in page
    kept = {path.name for path in (tmp_path / "run" / "stages" / "student").glob("tokenizer_*.json")}
    assert kept == {"tokenizer_teacher.json", "tokenizer_student.json"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["disagreements"]
