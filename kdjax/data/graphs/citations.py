"""A generated graph of citations, in the form of Cora's. Everything follows from the seed; nothing is on disk."""

from typing import ClassVar

import numpy as np

from kdjax.config import ConfigError
from kdjax.data.graphs.cora import sum_to_one, with_loops

PER_CLASS = 20  # nodes to train on
LENGTH = 18  # words of a paper, on average
TOPIC = 0.2  # share of the words that a field has more often than others do


class Citations:
    """Papers of several fields: whom they cite follows their field (a stochastic block model), and so do, more weakly,
    their words. `homophily` is the share of citations within a field, `focus` that of words of the field's own.

    Twenty papers of each field are to train on, a third of the others to validate, the rest to test.
    """

    kind: ClassVar[str] = "nodes"

    def __init__(
        self,
        seed: int = 0,
        nodes: int = 1500,
        fields: int = 7,
        words: int = 500,
        cites: float = 2.0,
        homophily: float = 0.81,
        focus: float = 0.3,
    ):
        least = 2 * PER_CLASS * fields
        faults = [] if fields >= 2 else [f"fields: expected at least 2, found {fields}"]
        faults += [] if nodes >= least else [f"nodes: expected at least {least} for {fields} fields, found {nodes}"]
        faults += [] if words >= 10 else [f"words: expected at least 10, found {words}"]
        faults += [] if cites > 0 else [f"cites: expected more than 0 for each paper, found {cites}"]
        shares = {"homophily": homophily, "focus": focus}
        faults += [f"{k}: expected a share in [0, 1], found {v}" for k, v in shares.items() if not 0 <= v <= 1]
        if faults:
            raise ConfigError("the citations cannot be made:\n  " + "\n  ".join(faults))
        rng = np.random.default_rng(seed)
        self.classes = rng.permutation(np.arange(nodes) % fields).astype(np.int32)
        members = [np.flatnonzero(self.classes == field) for field in range(fields)]

        n = round(cites * nodes)
        citing = rng.integers(nodes, size=n)
        away = np.where(rng.random(n) < homophily, 0, rng.integers(1, fields, size=n))
        field = (self.classes[citing] + away) % fields
        cited = np.array([rng.choice(members[f]) for f in field])
        self.senders, self.receivers = with_loops(np.stack([citing, cited]), nodes)

        own = np.stack([rng.permutation(words)[: max(1, round(TOPIC * words))] for _ in range(fields)])
        common = rng.dirichlet(np.full(words, 0.3))
        features = np.zeros((nodes, words), np.float32)
        for node, length in enumerate(1 + rng.poisson(LENGTH - 1, nodes)):
            mine = rng.random(length) < focus
            drawn = np.where(mine, rng.choice(own[self.classes[node]], length), rng.choice(words, length, p=common))
            features[node, drawn] = 1
        self.x = sum_to_one(features)

        train = np.sort(np.concatenate([some[:PER_CLASS] for some in members]))
        rest = rng.permutation(np.setdiff1d(np.arange(nodes), train))
        val, test = np.split(rest, [len(rest) // 3])
        self.where = {"train": train, "val": np.sort(val), "test": np.sort(test)}
        self.notes = ()
