"""The `kdjax` command in words, its help, how it ends when it is interrupted, and fields that are None until a flag."""

import signal
import subprocess
import sys
from unittest import mock

import pytest

from kdjax import launch
from kdjax.command import configs, flags, modes
from kdjax.config import Gate, Lora, Stop
from kdjax.experiment.saved import to_json
from kdjax.train.signals import Stopped
from tests.support.command import command, parsed, refused, tiny


@pytest.mark.parametrize(
    ("words", "spelt"),
    [
        ("train sam_distill:smoke --stage=sam", "--mode=train --config=sam_distill:smoke --stage=sam"),
        ("predict {run} --images=x", "--mode=predict --workdir={run} --images=x"),
        ("report", "--mode=report"),
        ("list configs", "--list=configs"),
        ("--config=x --mode=eval", "--config=x --mode=eval"),
    ],
)
def test_words_become_flags(tmp_path, words, spelt):
    words, spelt = (text.format(run=tmp_path).split() for text in (words, spelt))
    assert flags.spelt_out(["kdjax", *words]) == ["kdjax", *spelt]


def test_every_mode_has_a_word_and_something_that_does_it():
    assert {*modes.OF_RUNS, *modes.WITHOUT} == set(flags.MODES)
    assert all(f"--mode={mode}" in (launch.__doc__ or "") for mode in flags.MODES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian", "x"], "there is no command 'trian'; did you mean 'train'"),
        (["train", "sam_distil"], "there is no config 'sam_distil'; did you mean 'sam_distill'"),
        (["train", "sam_distill", "more"], "unexpected argument 'more'"),
        (["list", "modles"], "flag --list=modles: value should be one of <"),
    ],
)
def test_what_is_misspelt_is_told(words, said):
    refused(command(*words), said)


def test_a_misspelt_working_directory_is_told_from_those_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "night").mkdir(parents=True)
    (tmp_path / "runs" / "night" / "config.json").write_text("{}")
    refused(command("predict", "runs/nigth"), "there is no config 'runs/nigth'; did you mean 'runs/night'?")


def test_a_recipe_goes_by_its_name_and_by_its_documented_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configs.find("sam_distill") == configs.find("configs/sam_distill.py") == configs.RECIPES / "sam_distill.py"
    (tmp_path / "sam_distill").mkdir()
    (tmp_path / "configs").mkdir()
    tiny(tmp_path / "configs").rename(tmp_path / "configs" / "sam_distill.py")
    assert str(configs.find("configs/sam_distill.py")) == "configs/sam_distill.py", "one's own file goes first"


def test_a_working_directory_brings_its_config(tmp_path):
    before = parsed(f"--config={tiny(tmp_path)}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(to_json(before))
    after = parsed(f"--workdir={tmp_path / 'run'}", "--config.stages.student.epochs=4")
    assert (before.stages["student"].epochs, after.stages["student"].epochs) == (1, 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("program", "shown"), [("kdjax", "kdjax"), ("launch.py", "python -m kdjax.launch")])
def test_an_interrupted_run_says_how_to_go_on(number, program, shown, capsys):
    def stop():
        raise Stopped(number)

    with mock.patch.object(sys, "argv", [f"bin/{program}", "train", "my config.py"]):
        assert launch.answer(stop) == 128 + number
    printed = capsys.readouterr().out
    assert printed == f"Stopped and saved. To go on, run the same command again:\n  {shown} train 'my config.py'\n"


def test_a_second_ctrl_c_ends_at_once_without_a_trace(capsys):
    def stop():
        raise KeyboardInterrupt

    assert launch.answer(stop) == 130
    assert "To go on, run the same command again:" in capsys.readouterr().err


def test_fields_that_are_none_take_values(tmp_path):
    student = "--config.stages.student"
    changed = parsed(
        f"--config={tiny(tmp_path)}",
        f"{student}.stop.patience=3",
        f"{student}.gate.at_least=0.5",
        f"{student}.lora.rank=2",
        f"{student}.terms.kl.schedule.until=4",
    )
    stage = changed.stages["student"]
    assert (stage.stop, stage.gate, stage.lora) == (Stop(patience=3), Gate(0.5), Lora(rank=2))
    assert stage.terms["kl"].schedule.until == 4.0


def test_a_process_of_its_own_reads_overrides_of_words_and_of_a_working_directory(tmp_path):
    """Flags are defined while modules are imported, when the command has not been spelt out yet."""
    (tmp_path / "config.json").write_text(to_json(parsed(f"--config={tiny(tmp_path)}")))
    code = "import sys; sys.argv[0] = 'kdjax'; from kdjax.launch import run; run()"
    for subject in ("tiny.py", "."):
        words = ["report", subject, "--config.stages.student.stop.patience=soon"]
        ended = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
        assert ended.stderr == "\nerror: --config.stages.student.stop.patience: expected int, found 'soon'\n"


def test_options_that_are_none_take_values():
    name = "--config.stages.student.model.options.num_classes"
    assert parsed("--config=classify_distill:smoke", f"{name}=12").stages["student"].model.options["num_classes"] == 12


def test_help_is_the_same_for_both_commands():
    code = "import sys; sys.argv[0] = 'kdjax'; from kdjax.launch import run; run()"
    ended = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith((launch.__doc__ or "").splitlines()[0])
    assert "--workdir:" in ended.stdout
    assert "Experiment(" not in ended.stdout, "the default of a config is none"


def test_help_may_be_read_by_the_page():
    """`kdjax --help | head -1`: the reader has gone before all is written."""
    code = "import sys; sys.argv[0] = 'kdjax'; from kdjax.launch import run; run()"
    asked = subprocess.Popen([sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with asked:
        asked.stdout.close()
        assert asked.stderr.read() == b""
    assert asked.returncode == 1


@pytest.mark.parametrize(
    ("text", "said"), [("{", "found no JSON"), ("[]", "expected values by name"), ("{}", "without stages")]
)
def test_a_config_that_no_run_saved_is_refused(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    refused(command(f"--workdir={tmp_path}"), "config.json: expected", said)
