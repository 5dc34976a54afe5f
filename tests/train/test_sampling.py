"""Which examples a stage sees, when, and again after it was killed."""

import dataclasses
import json

import numpy as np
import pytest

from kdjax.config import ConfigError, Curriculum, Log, Term
from kdjax.train import loop
from kdjax.train.sampling import Ranked
from kdjax.train.signals import Signals, Stopped
from tests.support import tiny_graphs
from tests.train.test_loop import StopsAfter, records

LOG = Log(every=1, tensorboard=False)
PLAN = Curriculum(scorer="x", start=1.0, end=5.0, warmup=4.0, momentum=0.5)


def ranked(plan: Curriculum = PLAN) -> Ranked:
    scores = np.array([0.3, 9.0, 0.1, 0.7, 0.5, 8.0, 0.7, -1.0, 0.2])
    labels = np.array([0, 1, 0, 0, 0, 1, 0, 0, -1])
    return Ranked.by(plan, scores, labels)


def test_the_ratio_by_hand():
    """aim = 1, 2, 3, 4, 5, 5 ...; the ratio is half the one before and half the aim."""
    of, ratio, found = ranked(), 1.0, []
    for epoch in range(1, 7):
        ratio = of.next_ratio(epoch, ratio, confidence=0.7)
        found.append(ratio)
    assert found == [1.5, 2.25, 3.125, 4.0625, 4.53125, 4.765625]


def test_the_ratio_follows_how_sure_the_model_is():
    of = ranked(dataclasses.replace(PLAN, momentum=0.0))
    at = {sure: of.next_ratio(2, 99.0, sure) for sure in (0.5, 0.59, 0.6, 0.7, 0.75, 0.8, 0.95)}
    expected = {0.5: 2.7, 0.59: 2.7, 0.6: 3.0, 0.7: 3.0, 0.75: 3.0, 0.8: 3 * 1.005, 0.95: 3 * 1.02}
    assert at == pytest.approx(expected, rel=1e-12)
    assert of.next_ratio(0, 0.0, 0.7) == 1.0
    assert ranked(dataclasses.replace(PLAN, warmup=0.0, momentum=0.0)).next_ratio(1, 0.0, 0.7) == 5.0


def test_the_pool_is_all_attacks_and_the_strangest_normals():
    of = ranked()
    assert of.attacks.tolist() == [1, 5]
    assert of.normals.tolist() == [3, 6, 4, 0, 2, 7], "highest score first, equal ones in order; the unknown left out"
    for ratio, count in ((1.0, 2), (1.6, 3), (2.0, 4), (9.0, 6), (0.0, 1)):
        assert of.pool(ratio).tolist() == [1, 5, *of.normals[:count]]


@pytest.mark.parametrize("labels", [[0, 0, -1], [1, 1, -1]])
def test_one_kind_alone_is_no_curriculum(labels):
    with pytest.raises(ConfigError, match=r"needs attacks and normal examples to train on; leave stage\.curriculum"):
        Ranked.by(PLAN, np.zeros(3), np.array(labels))


# -- in the loop -----------------------------------------------------------------------------------------------------


def learner(**fields):
    model = tiny_graphs.model(dropout=0.3)
    return tiny_graphs.learner(tiny_graphs.stage(epochs=3, model=model, grad_norms_every=0, **fields))


def hard(one) -> Ranked:
    labels = one.dataset.labels("train")
    plan = dataclasses.replace(PLAN, start=0.3, end=2.0, warmup=2.0)
    return Ranked.by(plan, np.random.default_rng(0).random(len(labels)), labels)


def train(one, folder, signals=None, of=hard):
    with signals or Signals() as signals:
        return loop.train(one, folder, {}, {}, LOG, signals, of(one) if of else None)


def spied(one, monkeypatch) -> list[dict]:
    """What the loop asks the data for."""
    asked, real = [], one.dataset.train
    monkeypatch.setattr(one.dataset, "train", lambda *args, **given: (asked.append(given), real(*args, **given))[1])
    return asked


def test_each_epoch_deals_out_its_own_pool(tmp_path, monkeypatch):
    one = learner()
    asked, seen = spied(one, monkeypatch), hard(one)
    train(one, tmp_path)
    confidence = [r["confidence"] for r in records(tmp_path, "val")]
    ratios = [0.3]
    for epoch in (1, 2, 3):
        ratios.append(seen.next_ratio(epoch, ratios[-1], confidence[epoch - 1]))
    assert ratios[0] < ratios[1] < ratios[2]
    assert [given["pool"].tolist() for given in asked] == [seen.pool(ratio).tolist() for ratio in ratios]
    assert [given["start"] for given in asked] == [k * one.steps_per_epoch for k in range(4)]
    told = {r["step"]: r["ratio"] for r in records(tmp_path, "train")}
    per = one.steps_per_epoch
    assert [told[k] for k in (1, per + 1, 2 * per + 1)] == pytest.approx(ratios[:3])


@pytest.mark.long
def test_killed_in_the_middle_of_an_epoch_it_ends_in_the_same_bits(tmp_path):
    whole = train(learner(), tmp_path / "whole")
    per = learner().steps_per_epoch
    assert per > 2
    for step in (per + 1, 2 * per):
        with pytest.raises(Stopped):
            train(learner(), tmp_path / "cut", StopsAfter(step))
    again = train(learner(), tmp_path / "cut")
    drop = {"seconds", "wait", "rate"}
    assert {k: v for k, v in again.items() if k not in drop} == {k: v for k, v in whole.items() if k not in drop}
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    kept = json.loads((tmp_path / "cut" / "windows.json").read_text())
    assert kept["generation"] == "B"


def test_only_terms_that_all_need_labels_leave_the_unlabelled_out(tmp_path, monkeypatch):
    """An autoencoder has no teacher and yet learns from what nobody labelled."""
    pull = Term("value", "nodes", over="nodes", weight=0.1)
    for name, terms, expected in (("labels", {}, True), ("nodes", {"pull": pull}, False)):
        one = learner(terms=terms)
        asked = spied(one, monkeypatch)
        with pytest.raises(Stopped):
            train(one, tmp_path / name, StopsAfter(1), of=None)
        assert [given["labelled_only"] for given in asked] == [expected]
