"""Who goes where: train, val and test, and which of the training images are labelled.

Everything follows from hashes of what the images are (patient or content), never from file names or their order. Two
images with the same content, or of the same patient, are never on two sides.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from kdjax.data.source import SPLITS, Facts

NAMED = 3  # of the examples that are left out


def deal(
    facts: Sequence[Facts], allowed: Sequence[tuple[str, ...]], shares: tuple[float, ...], seed: int
) -> tuple[dict[str, Int[np.ndarray, " n"]], list[str]]:
    """The indices of each split, and notes on what was left out.

    `allowed` are the splits that an example may go to: one where the data set brings its own, else several, into which
    groups of images are dealt by `shares`, class by class. An image that its data set has in two splits stays in the
    later one of train, val, test.
    """
    strata: dict[tuple, list[tuple[str, list[int]]]] = defaultdict(list)
    dropped: dict[tuple[str, str], list[str]] = defaultdict(list)
    for component in _components(facts):
        common = tuple(s for s in SPLITS if all(s in allowed[i] for i in component))
        if not common:
            common = (max((allowed[i] for i in component), key=lambda a: SPLITS.index(a[0]))[0],)
            for i in component:
                if common[0] not in allowed[i]:
                    dropped[allowed[i][0], common[0]].append(facts[i].name)
            component = [i for i in component if common[0] in allowed[i]]
        key = min(_hash(seed, facts[i]) for i in component)
        strata[common, max(facts[i].label for i in component)].append((key, component))
    indices: dict[str, list[int]] = {split: [] for split in SPLITS}
    owed = dict.fromkeys(SPLITS, 0.0)  # a class too small to give a split its share leaves it to the next class
    for (common, _), dealt in sorted(strata.items()):
        size, passed = sum(len(c) for _, c in dealt), 0
        total = sum(shares[SPLITS.index(s)] for s in common) or 1.0
        for s in common:
            owed[s] += size * shares[SPLITS.index(s)] / total
        names = common[::-1]  # test first: its images are those of the lowest hashes, so it changes least
        bounds = np.cumsum([max(owed[s], 0) for s in names])[:-1]
        for _, component in sorted(dealt):
            split = names[int(np.searchsorted(bounds, passed + len(component) / 2))]
            indices[split] += component
            owed[split] -= len(component)
            passed += len(component)
    notes = [
        f"{len(names)} images of {split} are left out, as the same image or patient is also in {other}: "
        f"{', '.join(sorted(names)[:NAMED])}{', ...' if names[NAMED:] else ''}"
        for (split, other), names in sorted(dropped.items())
    ]
    return {split: np.array(sorted(where), np.int64) for split, where in indices.items()}, notes


def labelled(facts: Sequence[Facts], share: float, seed: int) -> Bool[np.ndarray, " n"]:
    """Which examples count as labelled: `share` of each class, at least one; a smaller share is part of a larger."""
    chosen = np.zeros(len(facts), bool)
    for label in {f.label for f in facts}:
        where = [i for i, f in enumerate(facts) if f.label == label]
        where.sort(key=lambda i: _hash(seed, facts[i], "labelled"))
        chosen[where[: max(1, round(share * len(where)))]] = True
    return chosen


def _components(facts: Sequence[Facts]) -> list[list[int]]:
    """Sets of examples that share a group or a content, directly or through others."""
    root = list(range(len(facts)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    first: dict[tuple[str, str], int] = {}
    for i, fact in enumerate(facts):
        for key in (("group", fact.group), ("content", fact.content)):
            if key[1]:
                root[find(i)] = find(first.setdefault(key, i))
    together: dict[int, list[int]] = defaultdict(list)
    for i in range(len(root)):
        together[find(i)].append(i)
    return list(together.values())


def _hash(seed: int, fact: Facts, purpose: str = "split") -> str:
    return hashlib.blake2b(f"{purpose} {seed} {fact.content or fact.name}".encode(), digest_size=16).hexdigest()
