"""The test once more on changed batches: what is changed, and what is told of it."""

from types import SimpleNamespace

import numpy as np

from kdjax.experiment import robustness
from kdjax.experiment.robustness import KINDS, Damage
from kdjax.train.setup import Learner


def learner(inputs=("image", "image_there", "ids", "text_there"), **renamed) -> Learner:
    task = SimpleNamespace(primary="macro_f1", measures=("macro_f1", "location_auc"), damages=("one_part",))
    fields = {"image": SimpleNamespace(kind="image"), "image_there": SimpleNamespace(kind="flag")}
    dataset = SimpleNamespace(fields=fields, sizes={"test": 900})
    of = object.__new__(Learner)  # of which no more is read than this
    of.task, of.dataset, of.place = task, dataset, lambda tree: tree
    of.model, of.stage = SimpleNamespace(inputs=dict.fromkeys(inputs)), SimpleNamespace(inputs=renamed)
    return of


BATCH = {"image": np.ones((2, 4, 4, 3), np.uint8), "image_there": np.ones(2, bool), "text_there": np.ones(2, bool)}


def test_one_part_alone_means_that_the_others_are_absent():
    damage = KINDS["one_part"](learner())
    assert list(damage.changes) == ["image alone", "text alone"]
    assert (damage.none, damage.most) == ("image and text", None)
    assert damage.measures == {"macro F1": "macro_f1", "location AUC": "location_auc"}
    changed = damage.changes["text alone"](BATCH)
    assert not changed["image_there"].any()
    assert changed["text_there"].all()
    assert changed["image"] is BATCH["image"]
    assert BATCH["image_there"].all(), "the batch itself stays as it is"


def test_a_part_goes_by_the_name_of_the_field_that_is_read():
    changes = KINDS["one_part"](learner(text_there="report_there")).changes
    assert list(changes) == ["image alone", "report alone"]
    assert not changes["image alone"]({**BATCH, "report_there": np.ones(2, bool)})["report_there"].any()


def test_a_model_of_one_part_is_not_tested_again():
    assert robustness.robustness(learner(("ids", "text_there")), {}) == {}


def test_all_headings_are_told_of_the_same_examples(monkeypatch):
    asked = []

    def evaluate(of, variables, split, places=None, change=dict):
        asked.append(None if places is None else len(places))
        there = change(dict(BATCH))["image_there"].all()
        return {"macro_f1": 0.9 if there else 0.4, "location_auc": 0.5}, {}

    monkeypatch.setattr(robustness, "evaluate", evaluate)
    assert robustness.robustness(learner(), {}) == {
        "macro F1": {"image and text": 0.9, "image alone": 0.9, "text alone": 0.4},
        "location AUC": {"image and text": 0.5, "image alone": 0.5, "text alone": 0.5},
    }
    assert asked == [None] * 3, "the whole test set"
    few = Damage({"a little": dict}, {"darkness": "macro_f1"})
    monkeypatch.setitem(KINDS, "one_part", lambda of: few)
    assert robustness.robustness(learner(), {}) == {"darkness": {"none": 0.9, "a little": 0.9}}
    assert asked[3:] == [robustness.MOST] * 2
