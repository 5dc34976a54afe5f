import math

import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.report import tables
from kdjax.report.metrics import detection


def drawn(seed, n=60, levels=None):
    """Scores that overlap; with `levels`, many of them are equal."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int32)
    scores = rng.normal(labels, 1.0)
    return (np.round(scores * levels) / levels if levels else scores).astype(np.float32), labels


def counts(scores, labels, threshold):
    """tp, fp, fn, tn, one example after the other."""
    cells = [(bool(label), bool(score > threshold)) for score, label in zip(scores, labels, strict=True)]
    return [cells.count(cell) for cell in ((True, True), (False, True), (True, False), (False, False))]


def f1(scores, labels, threshold):
    tp, fp, fn, _ = counts(scores, labels, threshold)
    return 2 * tp / (2 * tp + fp + fn)


def pairs_in_order(scores, labels):
    return np.mean([(a > b) + 0.5 * (a == b) for a in scores[labels == 1] for b in scores[labels == 0]])


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_measures_are_those_of_their_formulas(seed, levels):
    scores, labels = drawn(seed, levels=levels)
    falling = [counts(scores, labels, np.nextafter(s, np.float32(-np.inf))) for s in np.unique(scores)[::-1]]
    recalls = np.array([tp / (tp + fn) for tp, _, fn, _ in falling])
    precisions = np.array([tp / (tp + fp) for tp, fp, _, _ in falling])
    for threshold in (-0.5, 0.5, 1.5):
        tp, fp, fn, tn = counts(scores, labels, threshold)
        expected = {
            "f1": 2 * tp / (2 * tp + fp + fn),
            "auc": pairs_in_order(scores, labels),
            "accuracy": (tp + tn) / len(scores),
            "precision": tp / (tp + fp),
            "recall": tp / (tp + fn),
            "average_precision": np.sum(np.diff(recalls, prepend=0) * precisions),
            "false_positive_rate": fp / (fp + tn),
        }
        measured = detection.measure(scores, labels, threshold)
        assert tuple(measured) == tuple(expected) == detection.NAMES
        assert measured == pytest.approx(expected, rel=1e-12)
        np.testing.assert_array_equal(detection.confusion(scores, labels, threshold), [[tn, fp], [fn, tp]])
    every = {(0.0, 0.0)} | {(fp / (fp + tn), tp / (tp + fn)) for tp, fp, fn, tn in falling}
    x, y = detection.roc(scores, labels)
    assert {(0.0, 0.0), (1.0, 1.0)} <= set(zip(x, y, strict=True)) <= every
    for rate, recall in every:  # what is left out lies on the line between its neighbours
        above = y[x == rate] if rate in x else np.interp([rate], x, y)
        assert above.min() - 1e-12 <= recall <= above.max() + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_the_share_of_pairs_in_order_and_the_area_under_the_curve(seed):
    scores, labels = drawn(seed, levels=3)
    share = pairs_in_order(scores, labels)
    assert detection.auc(scores, labels) == pytest.approx(share, rel=1e-12)
    assert np.trapezoid(*detection.roc(scores, labels)[::-1]) == pytest.approx(share, rel=1e-12)


def test_what_orders_equally_measures_equally_and_what_orders_in_reverse_the_opposite():
    scores, labels = drawn(0, levels=2)
    assert detection.auc(np.exp(scores), labels) == detection.auc(scores, labels)
    assert detection.auc(-scores, labels) == pytest.approx(1 - detection.auc(scores, labels), rel=1e-12)
    assert detection.auc(scores, 1 - labels) == pytest.approx(1 - detection.auc(scores, labels), rel=1e-12)


def test_a_hand_made_case():
    scores, labels = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([1, 0, 1, 1, 0])
    assert detection.measure(scores, labels, 0.8) == {  # a score at the threshold is no alarm
        "f1": 0.5,
        "auc": 4.5 / 6,
        "accuracy": 0.6,
        "precision": 1.0,
        "recall": 1 / 3,
        "average_precision": pytest.approx(1 / 3 + (1 / 3) * (2 / 3) + (1 / 3) * (3 / 4)),
        "false_positive_rate": 0.0,
    }
    np.testing.assert_array_equal(detection.confusion(scores, labels, 0.8), [[2, 0], [2, 1]])


NAN = math.nan
EVEN, ONES, ZEROS = np.full(4, 0.5), np.ones(4, int), np.zeros(4, int)
DEGENERATE = {  # f1, auc, accuracy, precision, recall, average precision, false-positive rate
    "equal, all alarms": (EVEN, np.array([0, 1, 1, 1]), 0.4, (6 / 7, 0.5, 0.75, 0.75, 1, 0.75, 1)),
    "equal, no alarm": (EVEN, np.array([0, 1, 1, 1]), 0.5, (0, 0.5, 0.25, 0, 0, 0.75, 0)),
    "no attacks, alarms": (EVEN, ZEROS, 0.4, (NAN, NAN, 0, NAN, NAN, NAN, 1)),
    "no attacks, no alarm": (EVEN, ZEROS, 0.5, (NAN, NAN, 1, NAN, NAN, NAN, 0)),
    "attacks alone": (EVEN, ONES, 0.4, (1, NAN, 1, 1, 1, 1, NAN)),
    "empty": (EVEN[:0], ZEROS[:0], 0.5, (NAN,) * 7),
    "diverged": (np.array([NAN, 1, 0, 1]), np.array([0, 1, 0, 1]), 0.5, (NAN,) * 7),
    "beyond all bounds": (np.array([-np.inf, np.inf, np.inf, 0]), np.array([0, 1, 1, 0]), 5.0, (1, 1, 1, 1, 1, 1, 0)),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_sets(case):
    scores, labels, threshold, expected = DEGENERATE[case]
    found = detection.measure(scores, labels, threshold)
    assert list(found.values()) == pytest.approx(list(expected), rel=1e-12, nan_ok=True)
    assert detection.confusion(scores, labels, threshold).sum() == (~np.isnan(scores)).sum()
    x, y = detection.roc(scores, labels)
    assert np.isnan(x).all() == (not (labels == 0).any())
    assert np.isnan(y).all() == (not (labels == 1).any())


def test_labels_that_are_none_are_refused():
    with pytest.raises(ValueError, match="found -1; leave out what is not labelled"):
        detection.measure(np.zeros(3), np.array([0, 1, -1]), 0.0)


def test_means_over_sets_count_each_set_once_and_leave_out_what_it_cannot_tell():
    sets = {"a": drawn(0), "b": drawn(1, n=200), "quiet": (np.zeros(5), np.zeros(5, int))}
    measured = detection.per_set(sets, 0.5)
    assert measured["b"] == detection.measure(*sets["b"], 0.5)
    found = detection.summarise(measured)
    auc = [measured["a"]["auc"], measured["b"]["auc"]]
    assert found["auc"] == {"mean": pytest.approx(np.mean(auc)), "std": pytest.approx(np.std(auc)), "n": 2}
    assert found["accuracy"]["n"] == 3
    one = detection.as_statistics(measured["quiet"])
    assert tables.mean_std("accuracy", one["accuracy"]) == "1.000"
    assert tables.mean_std("auc", one["auc"]) == tables.MISSING
    assert tables.mean_std("auc", found["auc"]) == f"{np.mean(auc):.3f} ± {np.std(auc):.3f}"


PUBLISHED = {  # graphs, attacks, accuracy, precision, recall, F1 of the authors' GAT with LSTM, alarms above logit 0.5
    "test01": (7989, 3848, 0.9867, 0.9968, 0.9756, 0.9861),
    "test02": (3724, 1503, 0.6874, 0.5636, 1.0, 0.7209),
    "test03": (6121, 2310, 0.6306, 0.9804, 0.0216, 0.0424),
    "test04": (1595, 620, 0.5498, 0.3833, 0.2597, 0.3096),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_authors_numbers_on_real_traffic(reference, name):
    with np.load(reference / "goldens" / "can_hcrl_sa.npz") as file:
        labels, logits = file[f"{name}_w50_labels"], file[f"{name}_w50_gat_lstm_student_genA_logits"].ravel()
    found = detection.measure(logits, labels, 0.5)
    rounded = [round(found[m], 4) for m in ("accuracy", "precision", "recall", "f1")]
    assert (len(labels), int(labels.sum()), *rounded) == PUBLISHED[name]
    wins = np.searchsorted(np.sort(logits[labels == 0]), logits[labels == 1], side="left")
    ties = np.searchsorted(np.sort(logits[labels == 0]), logits[labels == 1], side="right") - wins
    assert found["auc"] == pytest.approx((wins + ties / 2).mean() / np.sum(labels == 0), rel=1e-12)


# -- thresholds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_has_a_better_f1(seed, levels):
    scores, labels = drawn(seed, levels=levels)
    threshold = detection.calibrate(scores, labels)
    assert f1(scores, labels, threshold) == max(f1(scores, labels, t) for t in [*scores, scores.min() - 1.0])
    below, above = scores[scores <= threshold], scores[scores > threshold]
    assert threshold == pytest.approx((below.max().astype(float) + above.min()) / 2, rel=1e-12)


@pytest.mark.parametrize(("scores", "expected"), [((9, 8, 5, 4, 0), 2), ((9, 4, 3, 2, 1), 6.5), ((5, 4, 3, 2, 1), 4.5)])
def test_of_equally_good_gaps_the_widest_is_halved(scores, expected):
    scores, labels = np.array(scores, float), np.array([1, 0, 0, 1, 0])
    assert f1(scores, labels, scores[1]) == f1(scores, labels, scores[4])
    assert detection.calibrate(scores, labels) == expected


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_has_a_better_accuracy(seed, levels):
    scores, labels = drawn(seed, levels=levels)
    threshold = detection.calibrate(scores, labels, "accuracy")
    every = [np.mean((scores > t) == labels) for t in (*(scores[scores < scores.max()]), scores.min() - 1.0)]
    assert np.mean((scores > threshold) == labels) == max(every)


def test_the_two_sides_are_told_apart():
    scores, labels = np.array([-1.0, 0.2, 0.4, 2.0, 3.0]), np.array([0, 0, 1, 1, 0])
    found = detection.sides(scores, labels, 1.0, ("real", "fake"))
    assert found == {"real_accuracy": 2 / 3, "fake_accuracy": 0.5, "accuracy_at_half": 3 / 5}
    assert all(map(math.isnan, detection.sides(scores * NAN, labels, 1.0, ("real", "fake")).values()))


def delong(a, b, labels):
    """The variance of the difference of two AUCs on the same examples (DeLong et al. 1988), pair by pair."""

    def parts(scores):
        pairs = np.array([[(p > n) + 0.5 * (p == n) for n in scores[labels == 0]] for p in scores[labels == 1]])
        return pairs.mean(axis=1), pairs.mean(axis=0)

    differences = [x - y for x, y in zip(parts(a), parts(b), strict=True)]
    return sum(d.var(ddof=1) / len(d) for d in differences)


@pytest.mark.parametrize("levels", [None, 2])
def test_the_auc_by_example_has_the_standard_error_of_delong(levels):
    scores, labels = drawn(5, 400, levels)
    other = scores + np.random.default_rng(1).normal(0, 0.8, len(scores)).astype(np.float32)
    ours, theirs = (np.array(detection.auc_by_example([(s, labels)])) for s in (scores, other))
    assert ours.mean() == pytest.approx(detection.auc(scores, labels), abs=1e-9)
    error = (ours - theirs).std(ddof=1) / np.sqrt(len(scores))
    assert error == pytest.approx(np.sqrt(delong(scores, other, labels)), rel=0.01)


def test_the_auc_by_example_is_the_jackknife_of_the_mean_over_sets():
    """Each example in turn left out; a set with one class tells nothing and is left out."""
    sets = [drawn(0, 20), drawn(1, 30, levels=2), (EVEN, ONES)]
    known = sets[:2]

    def mean(sets):
        return np.mean([pairs_in_order(*pair) for pair in sets])

    n, left_out = 50, []
    for s, (scores, labels) in enumerate(known):
        for i in range(len(scores)):
            rest = list(known)
            rest[s] = np.delete(scores, i), np.delete(labels, i)
            left_out.append(mean(rest))
    expected = n * mean(known) - (n - 1) * np.array(left_out)
    np.testing.assert_allclose(detection.auc_by_example(sets), expected, rtol=1e-9)


def test_thresholds_of_perfect_and_of_hopeless_scores():
    scores = np.array([1.0, 2.0, 5.0, 6.0])
    assert detection.calibrate(scores, np.array([0, 0, 1, 1])) == 3.5
    for hopeless, labels in ((EVEN, np.array([0, 1, 1, 0])), (scores, np.array([1, 1, 0, 1]))):
        threshold = detection.calibrate(hopeless, labels)
        assert threshold < hopeless.min()
        assert detection.measure(hopeless, labels, threshold)["recall"] == 1
    neighbours = np.array([1.0, np.nextafter(1.0, 2)])
    assert detection.calibrate(neighbours, np.array([0, 1])) == 1.0


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.95, 1.0])
def test_a_quantile_of_normal_traffic_bounds_its_false_alarms(quantile):
    scores = np.random.default_rng(0).normal(size=501)
    labels = np.zeros(501, int)
    found = detection.calibrate(scores, labels, "quantile", quantile=quantile)
    assert abs((scores > found).mean() - (1 - quantile)) <= 1 / 501
    with_attacks = np.append(scores, [99.0] * 50), np.append(labels, [1] * 50)
    assert detection.calibrate(*with_attacks, "quantile", quantile=quantile) == found


def test_the_originals_threshold_is_the_median_of_all():
    scores = np.array([3.0, 1.0, 2.0, 10.0])
    assert detection.calibrate(scores, np.array([0, 0, 0, 1]), "original") == 2.5


@pytest.mark.parametrize(
    ("scores", "labels", "args", "said"),
    [
        (EVEN, ZEROS, {}, "found none; how='quantile' needs normal traffic alone"),
        (EVEN, ONES, {}, "expected scores of normal traffic, found none"),
        (EVEN, ONES, {"how": "quantile"}, "expected scores of normal traffic, found none"),
        (EVEN, ZEROS, {"how": "quantile", "quantile": 95.0}, r"in \[0, 1\], found 95.0"),
        (EVEN[:0], ZEROS[:0], {"how": "original"}, "expected scores, found none"),
        (np.array([NAN, np.inf, 0, 1]), np.array([0, 1, 0, 1]), {}, "finite scores, found 2 that are not"),
        (EVEN, ONES, {"how": "median"}, "expected one of f1, accuracy, quantile, original, found 'median'"),
    ],
)
def test_no_threshold_without_what_it_takes(scores, labels, args, said):
    with pytest.raises(ConfigError, match=said):
        detection.calibrate(scores, labels, **args)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError, match="not; the model diverged; expected scores of normal traffic, found none"):
        detection.calibrate(np.array([NAN, 1.0]), np.array([1, 1]))
