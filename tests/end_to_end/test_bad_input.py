"""What a person gets wrong ends in a message that says what, where and what to do, before anything is trained."""

import errno
import json

import numpy as np
import pytest

import kdjax
from kdjax import launch
from kdjax.config import ConfigError
from kdjax.experiment.run import GateError
from kdjax.experiment.saved import to_json
from kdjax.train.recording import Diverged
from kdjax.weights import safetensors
from tests.support import folders
from tests.support.command import command, refused, tiny

STUDENT = "--config.stages.student"


@pytest.fixture
def run(tmp_path):
    """The command with the tiny config and more flags; afterwards nothing has been trained."""
    path, workdir = tiny(tmp_path), tmp_path / "run"

    def start(*flags):
        return command(f"--config={path}", f"--workdir={workdir}", *flags)

    yield start
    assert not (workdir / "stages").exists()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--config.sed=3", "config has no field 'sed'; did you mean 'seed'?"),
        ("--config.stages.studnt.epochs=3", "config.stages has no field 'studnt'; did you mean 'student'?"),
        (f"{STUDENT}.optim.lrr=3", "config.stages.student.optim has no field 'lrr'; did you mean 'lr'"),
        (f"{STUDENT}.terms.kll.weight=3", "config.stages.student.terms has no field 'kll'; did you mean 'kl'?"),
        (
            f"{STUDENT}.terms.kl.args.temprature=3",
            "terms.kl.args has no field 'temprature'; did you mean 'temperature'?",
        ),
        (f"{STUDENT}.model.options.dimm=3", "model.options has no field 'dimm'; did you mean 'dim'"),
        (f"{STUDENT}.epochs.x=3", "config.stages.student.epochs is 1 and has no fields"),
        (
            f"{STUDENT}.teachers.big.model.name=vit",
            "config.stages.student.teachers.big.model is None; give it a value in the file of the config",
        ),
        (f"{STUDENT}.stop.patienc=3", "config.stages.student.stop has no field 'patienc'; did you mean 'patience'?"),
        (f"{STUDENT}.stop.patience=soon", "--config.stages.student.stop.patience: expected int, found 'soon'"),
        (f"{STUDENT}.teachers=3", "--config.stages.student.teachers: change the fields inside it"),
        (f"{STUDENT}.optim.lr=abc", "--config.stages.student.optim.lr: expected float, found 'abc'"),
        (f"{STUDENT}.epochs=1.5", "--config.stages.student.epochs: expected int, found '1.5'"),
        (f"{STUDENT}.epochs=True", "--config.stages.student.epochs: expected int, found 'True'"),
        (f"{STUDENT}.terms.kl.args.temperature=hot", "temperature: expected float, found 'hot'"),
        ("--config.control=maybe", "--config.control: expected bool, found 'maybe'"),
        ("--wrkdir=3", "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        (
            "--mode=trian",
            "flag --mode=trian: value should be one of <train|look|eval|predict|export|metrics|report|compare>",
        ),
        ("more", "unexpected argument 'more'; flags are written --name=value"),
        ("--stage=studnt", "--stage=studnt: no such stage; did you mean 'student'"),
        (f"{STUDENT}.optim.lr=-1", "stages.student: optim.lr: expected a positive number, found -1.0"),
        (f"{STUDENT}.optim.lr=nan", "stages.student.optim.lr: expected a finite number, found nan"),
        (f"{STUDENT}.epochs=-1", "stages.student: epochs: expected at least 0, found -1"),
        (f"{STUDENT}.data.split=('a',)", "stages.student.data.split.0: expected float, found 'a'"),
        (f"{STUDENT}.optim.trainable=(('x',),)", "stages.student.optim.trainable.0: expected 2 values, found ('x',)"),
        ("--config.log.every=0", "log.every: expected at least 1 step, found 0"),
    ],
)
def test_flags_and_values(run, flag, said):
    refused(run(flag), said)


def test_all_unknown_fields_at_once(run):
    refused(run("--config.sed=3", "--config.controll=3"), "did you mean 'seed'?", "did you mean 'control'?")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--config=configs/sam_distil.py"],
            "there is no config 'configs/sam_distil.py'; did you mean 'configs/sam_distill.py'",
        ),
        (["--config=configs/sam_distill.py:smok"], "no variant 'smok'; did you mean 'smoke'?"),
        (["--config=kdjax/registry.py"], "kdjax/registry.py is no config: it has no function get_config"),
        (["--config.seed=3"], "--config.seed changes a field of a config: give --config=FILE before it"),
        ([], "give --config=FILE (see --list=configs), or the --workdir of a run that began"),
        (["--mode=metrics"], "--mode=metrics needs --predicted=FOLDER and --truth=FOLDER"),
    ],
)
def test_configs(flags, said):
    refused(command(*flags), said)


def test_a_config_that_is_not_one(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("def get_config():\n    return 3\n")
    refused(command(f"--config={path}"), "get_config must return an Experiment, found int")


def test_a_fault_in_a_config_keeps_its_trace(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("def get_config():\n    return undefined\n")
    with pytest.raises(NameError, match="undefined"):
        command(f"--config={path}")


@pytest.fixture
def pictures(tmp_path):
    return folders.folder(tmp_path / "pictures")["root"]


def missing_folder(root):
    return f"{root}/nowhere", "nowhere: expected images and masks, found no such folder"


def empty_folder(root):
    (root / "empty").mkdir()
    return f"{root}/empty", "empty: expected images and masks, found an empty folder"


def no_mask(root):
    (root / "case3_mask.png").unlink()
    return root, "case3.png: an image without a mask"


def truncated(root):
    path = root / "case3.png"
    path.write_bytes(path.read_bytes()[:100])
    return root, "case3.png: expected an image, but it cannot be read"


def another_size(root):
    folders.blob(root / "case3_mask.png", size=(24, 20))
    return root, "case3_mask.png: expected 24 x 20 pixels like"


def strange_class(root):
    folders.blob(root / "case3_mask.png", 7)
    return root, "case3_mask.png: expected class ids 0 to 1, found 7"


@pytest.mark.parametrize("spoil", [missing_folder, empty_folder, no_mask, truncated, another_size, strange_class])
def test_data(tmp_path, pictures, spoil):
    root, said = spoil(tmp_path / "pictures")
    path, workdir = tmp_path / "tiny.py", tmp_path / "run"
    text = (
        tiny(tmp_path)
        .read_text()
        .replace('"ultrasound"', '"folder"')
        .replace("size=32, train=16, val=8, test=11", "root=''")
    )
    path.write_text(text)
    flags = [f"--config.stages.{name}.data.options.root={root}" for name in ("teacher", "student")]
    refused(command(f"--config={path}", f"--workdir={workdir}", *flags), "the data 'folder' cannot be used", said)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.mesh.data=3"], "stages.teacher.data.batch_size 8 does not divide"),
        (["--config.mesh.data=99"], "mesh data=99 fsdp=1 model=1 does not fit 8 device(s)"),
        (
            [f"{STUDENT}.model.options.image_size=36"],
            "stages.student: TinyUSFM cannot be built:\n  image_size: expected a multiple of the patch size 16",
        ),
        ([f"{STUDENT}.model.name=tinyusfm"], "stages.student: segmentation of 2 classes needs 'logits'"),
        (
            [f"{STUDENT}.terms.kl.student=logit"],
            "terms.kl: 'student:logit': 'student' has no 'logit'; did you mean 'logits'?",
        ),
        (["--mode=report"], "run holds no run to report; train it first"),
        (["--mode=eval"], "stage 'student' has left no "),
        (["--mode=predict", "--images=docs"], "stage 'student' has left no "),
        ([f"{STUDENT}.model.options.neck_dim=3.5"], "neck_dim: expected int, found '3.5'"),
    ],
)
def test_what_does_not_fit(run, flags, said):
    refused(run(*flags), said)


def test_weights_of_another_shape(run, tmp_path):
    """A teacher's or an initial checkpoint: each wrong leaf is named."""
    model = kdjax.build("tinyusfm_seg", image_size=32, dim=16, heads=2, depth=2, taps=(0, 0, 1, 1))
    wrong = tmp_path / "wrong.safetensors"
    from kdjax.train.setup import initial_shapes

    arrays = {
        k: np.zeros(v.shape, v.dtype)
        for k, v in initial_shapes(model)["params"]["backbone"].items()
        if hasattr(v, "shape")
    }
    safetensors.save(wrong, {"params": {"backbone": arrays}})
    refused(
        run(f"--config.stages.teacher.init={wrong}"),
        "stages.teacher.init: the weights are of another shape than the model",
        "unfilled: params/decode_head",
    )
    refused(
        run(f"--config.stages.teacher.init={tmp_path}/none.safetensors"), "none.safetensors: no such file of weights"
    )


def test_a_workdir_of_another_config(tmp_path):
    path, workdir = tiny(tmp_path), tmp_path / "run"
    workdir.mkdir()
    saved = json.loads(launch_json(path))
    saved["stages"]["student"]["optim"]["lr"] = 0.5
    del saved["checksum"]  # what a person writes has none
    (workdir / "config.json").write_text(json.dumps(saved))
    (workdir / "mine.txt").write_text("kept")
    refused(
        command(f"--config={path}", f"--workdir={workdir}"),
        "belongs to another config (there, and now):\n  stages.student.optim.lr: 0.5 and 0.001",
        "Choose another --workdir",
    )
    assert sorted(p.name for p in workdir.iterdir()) == ["config.json", "mine.txt"]


def launch_json(path):
    return to_json(launch.load(str(path)))


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("mend it"),
        OSError(errno.ENOSPC, "No space left on device"),
        Diverged("step 3: term 'kl' is not finite any more"),
        GateError("below its gate"),
        safetensors.WeightsError("of another shape"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_can_be_mended_is_a_message(capsys, error):
    def fail():
        raise error

    assert launch.answer(fail) == 2
    assert capsys.readouterr().err == f"\nerror: {error}\n"


@pytest.mark.parametrize("error", [ValueError("ours"), TypeError("ours"), RuntimeError("ours"), KeyError("ours")])
def test_faults_of_the_program_keep_their_trace(error):
    def fail():
        raise error

    with pytest.raises(type(error), match="ours"):
        launch.answer(fail)
