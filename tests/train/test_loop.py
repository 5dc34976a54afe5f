import json
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from kdjax.config import ConfigError, Log, Mesh, Stop, Teacher, Term
from kdjax.train import checkpoint, kept, loop
from kdjax.train.evaluation import evaluate
from kdjax.train.recording import Diverged, Record
from kdjax.train.signals import Signals, Stopped
from kdjax.weights import safetensors
from tests.support import tiny

LOG = Log(every=1, tensorboard=False)
TEACHER = tiny.model(dim=16)
SHORT = type(tiny.DATA)("ultrasound", image_size=16, batch_size=8, size=32, train=8, val=8, test=8)  # a step an epoch


def learner(**fields):
    stage = {
        "teachers": {"t": Teacher(model=TEACHER, weights="file")},
        "terms": {"kl": Term("binary_kl", teacher="t:logits")},
        "grad_norms_every": 0,
        **fields,
    }
    mesh = stage.pop("mesh", None)
    return tiny.learner(tiny.stage(**stage), mesh)


def train(one, folder, init=None, teacher=1, signals=None):
    with signals or Signals() as signals:
        return loop.train(one, folder, {"": init} if init else {}, {"t": tiny.weights(TEACHER, teacher)}, LOG, signals)


class StopsAfter(Signals):
    def __init__(self, step):
        super().__init__()
        self.at = step

    def stop(self, step):
        return step == self.at


def records(folder, split):
    return [r for r in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if r["split"] == split]


def test_each_program_is_compiled_once_and_again_once_after_a_restart(tmp_path, monkeypatch):
    """All that is jitted while a stage runs, over epochs with validation, gradient norms, checkpoints."""
    made, real = [], jax.jit

    def jit(f, **options):
        made.append((getattr(f, "__qualname__", str(f)), real(f, **options)))
        return made[-1][1]

    monkeypatch.setattr(jax, "jit", jit)
    one = learner(grad_norms_every=1, save_every=1, optim=tiny.with_optim(ema=0.5))
    with pytest.raises(Stopped):
        train(one, tmp_path, signals=StopsAfter(3))
    first = [(n, f._cache_size()) for n, f in made if n.startswith("Step.")]
    assert first == [("Step.train", 1), ("Step.grad_norms", 1)]
    made.clear()
    again = learner(grad_norms_every=1, save_every=1, optim=tiny.with_optim(ema=0.5))
    train(again, tmp_path)
    assert [(n, f._cache_size()) for n, f in made if n.startswith("Step.")] == [
        ("Step.train", 1),
        ("Step.grad_norms", 0),
    ]
    for which in (one, again):
        assert (which.whole_fn._cache_size(), which.evaluate_fn._cache_size()) == (1, 1)
    assert len(records(tmp_path, "train")) == 4
    assert len(records(tmp_path, "val")) == 2


def test_what_is_left_is_the_best_epoch(tmp_path):
    """Judged again by hand: the model that is exported has the best measure of all that were recorded."""
    one = learner(epochs=5, optim=tiny.with_optim(lr=0.5))
    told = train(one, tmp_path)
    dice = [r["dice"] for r in records(tmp_path, "val")]
    assert told["best"] == max(dice)
    assert told["best_epoch"] == 1 + dice.index(max(dice))
    assert f"best_epoch{told['best_epoch']:03d}_dice{max(dice):.4f}.safetensors" in os.listdir(tmp_path)
    whole, about = safetensors.load(tmp_path / "model.safetensors")
    assert safetensors.model_in(about) == one.stage.model
    measured, predicted = evaluate(one, one.place(whole), "val")
    assert measured["dice"] == pytest.approx(max(dice), rel=1e-6)
    truth = [one.dataset.resized("val", i)["mask"] for i in range(one.dataset.sizes["val"])]
    by_hand = [
        2 * (p & t).sum() / max((p.sum() + t.sum()), 1) if (p.any() or t.any()) else 1.0
        for p, t in zip(predicted["classes"], truth, strict=True)
    ]
    assert measured["dice"] == pytest.approx(np.mean(by_hand), rel=1e-5)
    assert told["parameters"] == sum(x.size for x in jax.tree.leaves(whole["params"]))


def test_a_run_that_does_not_move_says_what_to_try(tmp_path, capsys):
    told = train(learner(epochs=3, model=tiny.model(norm=False), optim=tiny.with_optim(lr=1e-9)), tmp_path)
    assert "dice stayed at 0." in told["advice"]
    assert "in all 3 epochs, of 2 steps each. To try: more epochs (--config.stages.student.epochs)" in told["advice"]
    assert f"warning  {told['advice']}" in capsys.readouterr().out
    moved = Record({}, epochs=3, best=0.5, lowest=0.4)
    assert not moved.unmoved()
    assert not Record({}, epochs=9, best=1.0, lowest=1.0).unmoved(), "nothing was left to learn"


def test_it_stops_early_and_a_restart_does_not_go_on(tmp_path):
    stop = Stop(patience=2, min_delta=2.0)  # nothing improves by so much
    told = train(learner(epochs=9, stop=stop), tmp_path)
    assert (told["epochs"], told["best_epoch"]) == (3, 1)
    before = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()
    assert train(learner(epochs=9, stop=stop), tmp_path)["epochs"] == 3
    assert ((tmp_path / "model.safetensors").read_bytes(), (tmp_path / "metrics.jsonl").read_bytes()) == before


def test_other_teachers_or_weights_or_images_are_refused_another_mesh_is_not(tmp_path):
    with pytest.raises(Stopped):
        train(learner(), tmp_path, signals=StopsAfter(3))
    with pytest.raises(ConfigError, match="began with other teachers and initial weights than"):
        train(learner(), tmp_path, teacher=2)
    with pytest.raises(ConfigError, match="began with other teachers and initial weights than"):
        train(learner(), tmp_path, init=tiny.weights(tiny.model()))
    fewer = type(tiny.DATA)("ultrasound", image_size=16, batch_size=8, size=32, train=16, val=7, test=8)
    with pytest.raises(ConfigError, match=r"numbers of examples and contents of the data than.*another --workdir"):
        train(learner(data=fewer), tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints") == 3
    assert train(learner(mesh=Mesh(data=2, fsdp=2)), tmp_path)["epochs"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": tiny.with_optim(lr=1e30), "data": SHORT}, r"step 1: the validation dice is not finite any more"),
        (
            {"terms": {"kl": Term("binary_kl", teacher="t:logits", args={"temperature": 0.0})}},
            r"step 1: term 'kl' is not",
        ),
    ],
)
def test_what_is_not_finite_stops_the_run(tmp_path, changes, message):
    with pytest.raises(Diverged, match=message + r".*nothing was saved before\. Try a lower"):
        train(learner(**changes), tmp_path)


def test_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    one = learner(save_every=1)
    real = one.dataset.train

    def broken(*args, **options):  # from the fourth step on the labels are none
        for i, batch in enumerate(real(*args, **options)):
            yield batch if i < 3 else {**batch, "mask": batch["mask"] + 99}

    monkeypatch.setattr(one.dataset, "train", broken)
    with pytest.raises(
        Diverged, match=r"step 4: term 'bce', term 'dice' is not finite.*checkpoint is kept in .*checkpoints"
    ):
        train(one, tmp_path)
    assert checkpoint.latest(tmp_path / "checkpoints") == 3
    monkeypatch.undo()
    assert train(learner(save_every=1), tmp_path)["epochs"] == 2


def test_signals_are_caught_only_while_it_runs():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Signals() as signals:
        assert not signals.stop(1)
        signal.raise_signal(signal.SIGTERM)
        assert signals.stop(1)
        with pytest.raises(KeyboardInterrupt):  # a second Ctrl-C
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_evaluation_counts_each_image_once(tmp_path):
    """The last batch is padded: 8 images in batches of 3 x 2 are 8 images."""
    sizes = {"image_size": 16, "size": 32, "train": 16, "val": 8, "test": 8}
    found = []
    for batch_size in (8, 6):
        one = learner(data=type(tiny.DATA)("ultrasound", batch_size=batch_size, **sizes))
        measured, predictions = evaluate(one, one.place(tiny.weights(tiny.model(), 3)), "val")
        assert predictions.keys() == {"classes"}
        assert len(predictions["classes"]) == 8
        found.append((measured["dice"], predictions["classes"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    np.testing.assert_array_equal(found[0][1], found[1][1])


# -- damage ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A stage that stopped at step 7 of 8, with the checkpoints of steps 6 and 7."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        train(learner(epochs=4), folder, signals=StopsAfter(7))
    assert checkpoint.steps(folder / "checkpoints") == [7, 6]
    return folder


@pytest.fixture(scope="module")
def whole(stopped, tmp_path_factory):
    """How it ends where nothing is damaged."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(stopped, folder)
    train(learner(epochs=4), folder)
    return folder


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_ends_in_the_same_bits(stopped, whole, tmp_path, capsys):
    shutil.copytree(stopped, tmp_path / "run")
    largest = max((tmp_path / "run" / "checkpoints" / "7").rglob("*"), key=lambda path: path.stat().st_size)
    flip(largest)
    train(learner(epochs=4), tmp_path / "run")
    assert "expected the file that this run wrote" in (said := capsys.readouterr().out)
    assert "goes on from step 6 instead" in said
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") == 8


def test_damaged_best_files_end_in_words_and_nothing_is_deleted(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "run")
    for best in (tmp_path / "run").glob("best_*"):
        flip(best)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kept.Damaged, match=r"(?s)no checkpoint is left .*best_epoch.*remove .*checkpoints to start"):
        train(learner(epochs=4), tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damaged_measures_are_told(stopped, whole, tmp_path, capsys, damage):
    shutil.copytree(stopped, tmp_path / "run")
    damage(tmp_path / "run" / "metrics.jsonl")
    train(learner(epochs=4), tmp_path / "run")
    assert "metrics.jsonl: expected the measures of 3 epochs" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_changed_data_are_refused(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "run")
    one = learner(epochs=4)
    monkeypatch.setitem(one.dataset.fingerprints, "val", "another")
    with pytest.raises(ConfigError, match="began with other contents of the data than it is given now"):
        train(one, tmp_path / "run")


def test_what_an_earlier_version_saved_is_gone_on_with():
    """It did not note all that is compared today."""
    Record({"numbers of examples": {"train": 3}}).refuse_other_start(Path("run"), {"batch size": 8})


def rebuilt(student, image):
    return ((student - image[..., :1]) ** 2).mean((1, 2, 3))


@pytest.mark.parametrize(("rebuilds", "expected"), [(False, True), (True, False)])
def test_a_term_that_reads_an_image_alone_learns_from_the_unlabelled_too(tmp_path, monkeypatch, rebuilds, expected):
    """It reads the batch, but no label that an example may lack."""
    rebuild = Term("tests.train.test_loop:rebuilt", reads={"student": "student:logits", "image": "batch:image"})
    kl = {"kl": Term("binary_kl", teacher="t:logits", weight=0.0)}
    one = learner(terms=kl | ({"image": rebuild} if rebuilds else {}))
    asked, real = [], one.dataset.train

    def train_on(*args, **options):
        asked.append(options["labelled_only"])
        return real(*args, **options)

    monkeypatch.setattr(one.dataset, "train", train_on)
    with pytest.raises(Stopped):
        train(one, tmp_path, signals=StopsAfter(1))
    assert asked == [expected]
