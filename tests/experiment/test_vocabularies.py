"""Two tokenizers whose vocabularies are of one size and of other tokens cannot be mixed up unnoticed."""

import pytest

from kdjax.config import ConfigError, Data, Experiment, Mesh, Model, Stage, Teacher, Term
from kdjax.data.text import tokenizers
from kdjax.deploy.predict import as_told
from kdjax.experiment.opening import open_run
from kdjax.weights import safetensors
from tests.support import records, tiny

BAG = "tests.support.records:build"
SIDES = ("teacher", "student")
TERMS = {"kl": Term("kl", teacher="large:logits")}


def reads(side: str, mask: str = "") -> dict[str, str]:
    return {"input_ids": f"input_ids_{side}", "attention_mask": f"attention_mask_{mask or side}"}


class Setup:
    """A run on captions with a tokenizer for the teacher and one for the student, and a teacher's file of weights."""

    def __init__(self, folder):
        self.folder, words = folder, {"teacher": records.WORDS, "student": records.WORDS[::-1]}
        places = {side: records.table(folder / side / "vocab.txt", words[side]) for side in SIDES}
        self.options = {side: {"path": place} for side, place in places.items()}
        self.known = {side: tokenizers.read(place).vocabulary for side, place in places.items()}
        self.weights = self.file("teacher", self.known["teacher"])

    def file(self, name: str, vocabulary: str, size: int = 18) -> str:
        path = self.folder / f"{name}.safetensors"
        model = Model(BAG, vocab_size=size, vocabulary=vocabulary, num_classes=2)
        safetensors.save(path, tiny.weights(model), safetensors.about(model))
        return str(path)

    def stage(self, side: str = "student", **changes) -> Stage:
        data = Data("tests.support.records:Texts", tokenizers=self.options, batch_size=8)
        fields = {"task": "classification", "data": data, "epochs": 1, "inputs": reads(side)}
        return Stage(**{**fields, "model": Model(BAG, vocab_size=None), **changes})

    def opened(self, **stages: Stage):
        return open_run(Experiment(name="words", stages=stages, control=False, mesh=Mesh(data=1)), self.folder / "run")

    def refused(self, **stages: Stage) -> str:
        with pytest.raises(ConfigError) as error:
            self.opened(**stages)
        return str(error.value)

    def mixed_up(self, told: str, found: str = "student") -> None:
        other = SIDES[found == "teacher"]
        assert f"expected 18 tokens of the vocabulary {self.known[other]}, found 18 tokens of the vocabulary" in told
        assert f"{self.known[found]}, which are other words; say inputs={{'input_ids': 'input_ids_{other}'}}" in told


@pytest.fixture
def setup(tmp_path):
    return Setup(tmp_path)


def test_a_student_from_nothing_keeps_the_vocabulary_that_it_reads(setup):
    large = Teacher(weights=setup.weights, inputs=reads("teacher"))
    run = setup.opened(student=setup.stage(teachers={"large": large}, terms=TERMS))
    options = run.learners["student"].stage.model.options
    assert options == {"vocab_size": 18, "vocabulary": setup.known["student"], "num_classes": 2}
    assert as_told({"vocab_size": None}, options) == options, "a model that is loaded knows it, too"


def test_a_teacher_from_a_file_does_not_read_the_students_tokens(setup):
    swapped = Teacher(weights=setup.weights, inputs=reads("student"))
    told = setup.refused(student=setup.stage("teacher", teachers={"large": swapped}, terms=TERMS))
    assert "teachers.large reads 'input_ids_student' as 'input_ids'" in told
    setup.mixed_up(told)


def test_a_tail_does_not_either(setup):
    def tail(side):
        return Teacher(weights=setup.weights, method="logits_of", reads={"input_ids": f"batch:input_ids_{side}"})

    setup.mixed_up(setup.refused(student=setup.stage(teachers={"large": tail("student")}, terms=TERMS)))
    setup.opened(student=setup.stage(teachers={"large": tail("teacher")}, terms=TERMS))


def test_a_stage_that_teaches_reads_what_it_was_trained_on(setup):
    def student(side):
        return setup.stage("student", teachers={"large": Teacher(stage="first", inputs=reads(side))}, terms=TERMS)

    setup.mixed_up(setup.refused(first=setup.stage("teacher"), second=student("student")))
    setup.opened(first=setup.stage("teacher"), second=student("teacher"))


@pytest.mark.parametrize("init", ["stage:first", "FILE"])
def test_weights_do_not_go_on_with_other_tokens(setup, init):
    init = setup.weights if init == "FILE" else init
    told = setup.refused(first=setup.stage("teacher"), second=setup.stage("student", init=init))
    assert f"stages.second.init: the weights know tokens of the vocabulary {setup.known['teacher']}" in told
    assert f"the model is given those of {setup.known['student']}; let it read the field of that tokenizer" in told
    adopted = setup.stage("student", init=init, adopt=True, model=Model(BAG))
    setup.mixed_up(setup.refused(first=setup.stage("teacher"), second=adopted))


def test_sizes_and_masks_have_to_agree_as_well(setup):
    told = setup.refused(student=setup.stage(model=Model(BAG, vocab_size=20, vocabulary="x")))
    assert "the student reads 'input_ids_student' as 'input_ids': expected 20 tokens of the vocabulary x, found" in told
    assert "give the data the tokenizer of these weights" in told
    told = setup.refused(student=setup.stage(inputs=reads("student", mask="teacher")))
    assert "the student reads input_ids_student and attention_mask_teacher, which are of two tokenizers" in told
    told = setup.refused(student=setup.stage(inputs={}))
    assert "model.options: the data do not tell vocab_size; say which tokens it reads, inputs=" in told


def test_a_vocabulary_that_nobody_knows_is_taken_at_its_size(setup):
    for size, fits in ((18, True), (20, False)):
        unknown = Teacher(weights=setup.file("unknown", "", size), inputs=reads("student"))
        stage = setup.stage(teachers={"large": unknown}, terms=TERMS)
        if fits:
            setup.opened(student=stage)
        else:
            assert "expected 20 tokens, found 18 tokens of" in setup.refused(student=stage)


@pytest.mark.long
def test_what_was_trained_is_not_evaluated_on_other_tokens(setup):
    from kdjax.deploy.evaluate import evaluate
    from kdjax.experiment.run import run

    stages = {"student": setup.stage()}
    experiment = Experiment(name="words", stages=stages, control=False, mesh=Mesh(data=1))
    run(experiment, setup.folder / "run")
    left = setup.folder / "run" / "stages" / "student" / "tokenizer_student.json"
    assert tokenizers.read(left).vocabulary == setup.known["student"]
    assert evaluate(experiment, setup.folder / "run").summary["item"] == "record"
    experiment.stages["student"].data.options["tokenizers"]["student"] = setup.options["teacher"]
    with pytest.raises(ConfigError) as error:
        evaluate(experiment, setup.folder / "run")
    assert f"expected 18 tokens of the vocabulary {setup.known['student']}, found 18 tokens of" in str(error.value)
