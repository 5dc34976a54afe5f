import math

import numpy as np
import pytest

from kdjax.report.metrics import classification


def drawn(n=80, k=7, seed=0, certainty=2.0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return (rng.normal(size=(n, k)) + certainty * np.eye(k)[labels]).astype(np.float32), labels


def probabilities(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def ece(logits, labels, bins=15):
    """Guo et al. 2017, equations 1 to 3, bin by bin."""
    p = probabilities(logits)
    confidence, right, error = p.max(axis=1), p.argmax(axis=1) == labels, 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            error += inside.sum() / len(labels) * abs(right[inside].mean() - confidence[inside].mean())
    return error


def nll(logits, labels):
    return -np.mean(np.log(probabilities(logits)[np.arange(len(labels)), labels]))


def macro_f1(logits, labels):
    predicted = logits.argmax(axis=1)
    hits = lambda k: np.sum((predicted == k) & (labels == k))  # noqa: E731
    return np.mean([2 * hits(k) / (np.sum(predicted == k) + np.sum(labels == k)) for k in set(labels.tolist())])


@pytest.mark.parametrize("certainty", [0.0, 2.0, 9.0])
@pytest.mark.parametrize("k", [2, 5, 7])
def test_measures_are_those_of_their_formulas(k, certainty):
    logits, labels = drawn(k=k, certainty=certainty)
    better = np.sum(logits > logits[np.arange(len(labels)), labels][:, None], axis=1)  # logits above the true class's
    expected = {"accuracy": np.mean(better == 0)}
    if k > 5:
        expected["top5"] = np.mean(better < 5)
    expected |= {"macro_f1": macro_f1(logits, labels), "ece": ece(logits, labels), "nll": nll(logits, labels)}
    measured = classification.measure(logits, labels)
    assert tuple(measured) == tuple(expected)
    assert measured == pytest.approx(expected, rel=1e-12)
    table = [[np.sum((labels == t) & (logits.argmax(axis=1) == p)) for p in range(k)] for t in range(k)]
    np.testing.assert_array_equal(classification.confusion(logits, labels, k), table)


def test_a_hand_made_case():
    logits = np.log([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
    measured = classification.measure(logits, np.array([0, 1, 1, 0]))
    said = -np.log([0.9, 0.1, 0.8, 0.3]).mean()
    shares = {"accuracy": 0.5, "macro_f1": 0.5, "ece": pytest.approx((2 * 0.4 + 0.2 + 0.7) / 4)}
    assert measured == {**shares, "nll": pytest.approx(said)}
    confidence, accuracy, share = classification.calibration(logits, np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(confidence, [0.7, 0.8, 0.9])
    np.testing.assert_array_equal(accuracy, [0, 1, 0.5])
    np.testing.assert_array_equal(share, [0.25, 0.25, 0.5])


def test_a_bin_holds_its_upper_edge():
    uniform = np.zeros((3, 5))  # confidence 0.2, the edge between the third bin and the fourth
    slightly_more = uniform + 0.1 * np.eye(5)[:3]
    confidence, *_ = classification.calibration(np.concatenate([uniform, slightly_more]), np.zeros(6, int))
    assert len(confidence) == 2


def test_the_top_is_as_wide_as_asked_for():
    logits, labels = drawn(k=7, certainty=0.5)
    better = np.sum(logits > logits[np.arange(len(labels)), labels][:, None], axis=1)
    measured = classification.measure(logits, labels, top=(2, 3, 7, 9))
    assert [name for name in measured if name.startswith("top")] == ["top2", "top3"]
    assert (measured["top2"], measured["top3"]) == (np.mean(better < 2), np.mean(better < 3))


@pytest.mark.parametrize("factor", [0.05, 1.0, 30.0])
def test_the_temperature_has_the_least_nll(factor):
    """Found once more by halving the interval in which the slope of a convex function changes its sign."""
    logits, labels = drawn(n=300, certainty=1.5)
    logits = factor * logits
    low, high = -5.0, 5.0  # log T
    for _ in range(60):
        middle = (low + high) / 2
        rises = nll(logits / np.exp(middle + 1e-4), labels) > nll(logits / np.exp(middle - 1e-4), labels)
        low, high = (low, middle) if rises else (middle, high)
    found = classification.temperature(logits, labels)
    assert found == pytest.approx(np.exp(low), rel=1e-4)
    assert classification.certainty(logits / found, labels)["nll"] <= nll(logits, labels)
    marked = np.where(np.arange(300) < 150, labels, -1)
    assert classification.temperature(logits, marked) == classification.temperature(logits[:150], labels[:150])


def test_where_no_temperature_is_the_best_it_is_one():
    logits, labels = drawn(certainty=99.0)
    assert classification.temperature(logits, labels) == 1.0, "all are told rightly, so that surer is better for ever"
    assert classification.temperature(logits, np.full_like(labels, -1)) == 1.0
    assert classification.temperature(np.full_like(logits, math.nan), labels) == 1.0
    turned = classification.temperature(-logits, labels)
    assert turned == classification.TEMPERATURES[1], "always wrong: as unsure as can be"


def test_measures_of_each_class():
    logits, labels = drawn(k=5, certainty=0.5)
    logits, labels = logits[(labels != 3)], labels[labels != 3]  # a class without examples, which is said
    logits[:, 4] = -99.0  # ... and one that is never said
    each = classification.per_class(classification.confusion(logits, labels, 5))
    predicted = logits.argmax(axis=1)
    for k in range(5):
        hits, said, there = np.sum((predicted == k) & (labels == k)), np.sum(predicted == k), np.sum(labels == k)
        assert each.support[k] == there
        np.testing.assert_allclose(each.precision[k], hits / said if said else 0.0)
        np.testing.assert_allclose(each.recall[k], hits / there if there else math.nan)
        np.testing.assert_allclose(each.f1[k], 2 * hits / (said + there) if there else math.nan)
    assert np.nanmean(each.f1) == pytest.approx(classification.measure(logits, labels)["macro_f1"])
    assert math.isnan(classification.per_class(np.zeros((2, 2), int)).precision[0])


@pytest.mark.parametrize("k", [2, 5])
def test_means_over_classes_are_those_of_scikit_learn(k):
    from sklearn.metrics import precision_score, recall_score, roc_auc_score

    logits, labels = drawn(k=k, certainty=1.0)
    found, said, p = classification.macro(logits, labels), logits.argmax(axis=1), probabilities(logits)
    area = roc_auc_score(labels, p[:, 1]) if k == 2 else roc_auc_score(labels, p, multi_class="ovr")
    assert found == pytest.approx(
        {
            "macro_precision": precision_score(labels, said, average="macro"),
            "macro_recall": recall_score(labels, said, average="macro"),
            "auc": area,
        },
        rel=1e-12,
    )
    marked = np.where(np.arange(len(labels)) % 3 == 0, -1, labels)
    assert classification.macro(logits, marked) == classification.macro(logits[marked >= 0], labels[marked >= 0])


def test_a_class_without_examples_is_no_part_of_the_means():
    logits, labels = drawn(k=4, certainty=1.0)
    logits, labels = logits[labels != 3], labels[labels != 3]
    logits[:, 2] -= 99.0  # ... and one that occurs, and is never said
    found, said = classification.macro(logits, labels), logits.argmax(axis=1)
    precision = [np.mean(labels[said == c] == c) if (said == c).any() else 0.0 for c in range(3)]
    recall = [np.mean(said[labels == c] == c) for c in range(3)]
    odds = [logits[:, c] - np.log(np.exp(np.delete(logits.astype(float), c, 1)).sum(1)) for c in range(3)]
    pairs = [np.subtract.outer(odds[c][labels == c], odds[c][labels != c]) for c in range(3)]
    area = np.mean([np.mean((d > 0) + 0.5 * (d == 0)) for d in pairs])
    expected = {"macro_precision": np.mean(precision), "macro_recall": np.mean(recall), "auc": area}
    assert found == pytest.approx(expected, rel=1e-12)
    one = classification.macro(logits[labels == 1], labels[labels == 1])
    assert math.isnan(one["auc"])
    assert one["macro_recall"] == recall[1]
    for seen, truth in ((logits, np.full_like(labels, -1)), (logits + np.inf, labels)):
        assert all(map(math.isnan, classification.macro(seen, truth).values()))


def test_very_sure_answers_still_have_an_order():
    """Their probabilities are all 1 in float64."""
    logits = np.array([[0.0, 100.0], [0.0, 300.0], [0.0, 200.0], [0.0, 400.0]])
    assert classification.macro(logits, np.array([0, 1, 0, 1]))["auc"] == 1.0


def test_what_is_not_labelled_is_left_out():
    logits, labels = drawn()
    unlabelled = np.arange(len(labels)) % 3 == 0
    seen = logits.copy()
    seen[unlabelled] = math.nan
    marked = np.where(unlabelled, -1, labels)
    assert classification.measure(seen, marked) == classification.measure(logits[~unlabelled], labels[~unlabelled])
    counts = classification.confusion(logits, marked, 7)
    np.testing.assert_array_equal(counts, classification.confusion(logits[~unlabelled], labels[~unlabelled], 7))
    assert counts.sum() == (~unlabelled).sum()


def test_a_class_without_examples_is_no_part_of_the_macro_f1():
    logits, labels = drawn(k=7, certainty=9.0)
    logits, labels = logits[labels != 3], labels[labels != 3]
    assert classification.measure(logits, labels)["macro_f1"] == 1.0
    logits[0, 3] += 99.0  # a false alarm for it costs the recall of the true class
    measured = classification.measure(logits, labels)["macro_f1"]
    assert measured == pytest.approx(macro_f1(logits, labels), rel=1e-12)
    assert measured < 1.0
    counts = classification.confusion(logits, labels, 7)
    assert (counts[3].sum(), counts[:, 3].sum()) == (0, 1)


def test_one_class_and_one_example():
    logits, _ = drawn(n=1, k=3)
    for label in range(3):
        measured = classification.measure(logits, np.array([label]))
        assert measured["accuracy"] == measured["macro_f1"] == (logits.argmax() == label)


@pytest.mark.parametrize("k", [3, 7])
def test_nothing_labelled_and_divergence_measure_nothing(k):
    logits, labels = drawn(k=k)
    names = list(classification.measure(logits, labels))
    broken = np.where(np.arange(len(labels))[:, None] == 5, np.inf, logits)
    for seen, truth in ((logits, np.full_like(labels, -1)), (broken, labels), (logits[:0], labels[:0])):
        measured = classification.measure(seen, truth)
        assert list(measured) == names
        assert all(map(math.isnan, measured.values()))
    assert classification.confusion(logits, np.full_like(labels, -1), k).sum() == 0
    assert classification.confusion(broken, labels, k).sum() == len(labels) - 1
    assert [len(part) for part in classification.calibration(logits[:0], labels[:0])] == [0, 0, 0]


def test_extreme_logits_are_confident():
    logits = np.array([[1e4, -1e4, 0.0], [0.0, 3e38, -3e38]], np.float32)
    assert classification.measure(logits, np.array([0, 1])) == {
        "accuracy": 1.0,
        "macro_f1": 1.0,
        "ece": 0.0,
        "nll": 0.0,
    }
