import numpy as np
import pytest

from kdjax.data.source import SPLITS, Facts
from kdjax.data.splits import deal, labelled

SHARES = (0.7, 0.15, 0.15)
FREE = SPLITS


def population(n: int, seed: int = 0, groups: bool = False) -> list[Facts]:
    rng = np.random.default_rng(seed)
    return [
        Facts(f"n{i}", f"p{i // 3}" if groups else "", f"{rng.integers(1 << 60):x}", int(rng.integers(3)))
        for i in range(n)
    ]


def homes(facts, allowed=None, shares=SHARES, seed=0) -> dict[str, str]:
    """Name -> split."""
    where, _ = deal(facts, allowed or [FREE] * len(facts), shares, seed)
    return {facts[i].name: split for split, indices in where.items() for i in indices}


@pytest.mark.parametrize("groups", [False, True])
def test_everyone_has_one_home_in_the_right_proportion(groups):
    facts = population(300, groups=groups)
    found = homes(facts)
    assert len(found) == 300
    for label in range(3):
        names = [f.name for f in facts if f.label == label]
        for split, share in zip(SPLITS, SHARES, strict=True):
            n = sum(found[name] == split for name in names)
            assert abs(n - share * len(names)) <= (20 if groups else 1.5)
    for split, share in zip(SPLITS, SHARES, strict=True):
        assert abs(sum(s == split for s in found.values()) - 300 * share) <= (3 if groups else 1)


def test_the_order_of_files_and_their_names_do_not_matter():
    facts = population(100, groups=True)
    found = homes(facts)
    order = np.random.default_rng(1).permutation(100)
    assert homes([facts[i] for i in order]) == found
    renamed = homes([f._replace(name="other " + f.name) for f in facts])
    assert {f"other {name}": split for name, split in found.items()} == renamed
    assert homes(facts, seed=1) != found


def test_adding_files_moves_few():
    facts = population(300)
    before, after = homes(facts[:290]), homes(facts)
    moved = sum(before[name] != after[name] for name in before)
    assert moved <= 2 * 10
    one_more = homes(facts[:291])
    assert sum(before[name] != one_more[name] for name in before) <= 2 * 3


def test_copies_and_patients_stay_together_also_through_others():
    facts = population(60)
    # a chain: 0 and 1 are one patient, 1 and 2 copies of each other, 2 and 3 one patient
    facts[0], facts[1] = facts[0]._replace(group="a"), facts[1]._replace(group="a", content="same")
    facts[2], facts[3] = facts[2]._replace(group="b", content="same"), facts[3]._replace(group="b")
    seen = set()
    for seed in range(20):
        found = homes(facts, seed=seed)
        assert len({found[f"n{i}"] for i in range(4)}) == 1
        seen.add(found["n0"])
    assert len(seen) > 1


def test_given_splits_are_kept():
    facts = population(90)
    allowed = [(SPLITS[i % 3],) for i in range(90)]
    assert homes(facts, allowed) == {f"n{i}": SPLITS[i % 3] for i in range(90)}


def test_what_is_missing_is_taken_from_train_alone():
    facts = population(200)
    allowed = [("test",) if i < 50 else ("train", "val") for i in range(200)]
    found = homes(facts, allowed)
    assert all((split == "test") == (int(name[1:]) < 50) for name, split in found.items())
    assert sum(split == "val" for split in found.values()) == round(150 * 0.15 / 0.85)


@pytest.mark.parametrize(("first", "second", "kept"), [("train", "test", 1), ("test", "val", 0), ("val", "train", 0)])
def test_a_copy_in_two_given_splits_stays_in_the_later(first, second, kept):
    facts = [Facts("n0", "", "same", 0), Facts("n1", "", "same", 1), *population(9)[2:]]
    allowed = [(first,), (second,), *[("train",)] * 7]
    where, notes = deal(facts, allowed, SHARES, 0)
    present = {int(i) for indices in where.values() for i in indices}
    assert present == set(range(9)) - {1 - kept}
    gone, home = ((first, second), (second, first))[1 - kept]
    lost = f"n{1 - kept}"
    assert notes == [f"1 images of {gone} are left out, as the same image or patient is also in {home}: {lost}"]


def test_a_note_names_the_first_of_the_copies():
    facts = [Facts(f"n{i}", "", f"{i % 5}", 0) for i in range(10)]
    _, (note,) = deal(facts, [("train",)] * 5 + [("test",)] * 5, SHARES, 0)
    assert note == "5 images of train are left out, as the same image or patient is also in test: n0, n1, n2, ..."


def test_a_copy_of_a_test_image_leaves_an_undealt_set():
    facts = [Facts("n0", "", "same", 0), Facts("n1", "", "same", 0), *population(9)[2:]]
    for seed in range(10):
        found = homes(facts, [("test",), *[FREE] * 8], seed=seed)
        assert found["n0"] == found["n1"] == "test"


def test_small_classes_still_fill_every_split():
    facts = [Facts(f"n{i}", f"p{i // 2}", f"c{i}", (i // 2) % 3) for i in range(24)]
    for seed in range(20):
        assert set(homes(facts, seed=seed).values()) == set(SPLITS)


def test_labelled_is_stratified_nested_and_indifferent_to_order():
    facts = population(200)
    few, many = labelled(facts, 0.1, 0), labelled(facts, 0.3, 0)
    assert (many | ~few).all()
    for label in range(3):
        of = np.array([f.label == label for f in facts])
        assert few[of].sum() == round(0.1 * of.sum())
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(labelled([facts[i] for i in order], 0.1, 0), few[order])
    assert (labelled(facts, 0.1, 1) != few).any()
    assert labelled(facts, 1.0, 0).all()
    assert labelled(facts, 0.001, 0).sum() == 3
