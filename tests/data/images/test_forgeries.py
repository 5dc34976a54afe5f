from collections import Counter

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline
from kdjax.data.images.forgeries import DOMAINS, KNOWN, TRACES, Forgeries, demosaiced, developed, scene, textures


def small(**changes) -> Forgeries:
    return Forgeries(**{"size": 32, "train": 20, "val": 6, "test": 8, **changes})


def equal(a: dict, b: dict) -> bool:
    return a["name"] == b["name"] and np.array_equal(a["image"], b["image"])


def test_an_image_follows_from_seed_part_and_place():
    one, two = small(), small()
    order = np.random.default_rng(0).permutation(len(one))[:20].tolist()
    backwards = {i: one[i] for i in order[::-1]}
    assert all(equal(two[i], backwards[i]) for i in order)
    short, long = small(), small(train=30, val=10)
    assert all(equal(short[20 + i], long[30 + i]) for i in range(6))
    assert all(equal(short[26 + i], long[40 + i]) for i in range(32))
    for other in (small(seed=1), small(domain="phone")):
        assert not np.array_equal(one[0]["image"], other[0]["image"])
    with pytest.raises(IndexError):
        one[58]


def test_every_second_image_is_forged_and_unknown_traces_have_sets_of_their_own():
    source = small(train=60)
    traces: dict = {}
    for i in range(len(source)):
        facts, example = source.inspect(i), source[i]
        assert (facts.name, facts.label) == (example["name"], example["class"])
        assert example["image"].shape == (32, 32, 3)
        assert example["image"].dtype == np.uint8
        trace = facts.name.split("_")[-1]
        assert facts.label == i % 2 == (trace != "real")
        traces.setdefault((source.allowed[i][0], facts.test_set), set()).add(trace)
    assert traces["train", "test"] == {"real", *KNOWN}
    unknown = {key[1]: kinds for key, kinds in traces.items() if key[1].startswith("unknown_")}
    assert unknown == {f"unknown_{kind}": {"real", kind} for kind in TRACES if kind not in KNOWN}
    dataset = pipeline.build(Data("forgeries", image_size=32, size=32, train=4, val=4, test=4))
    assert Counter(dataset.groups) == dict.fromkeys(Forgeries.test_sets, 4)


def test_textures_have_the_spectrum_of_nature():
    """Amplitude over frequency is a line of slope -0.8 to -1.5 on logarithmic scales."""
    waves = np.abs(np.fft.rfft2(np.concatenate([textures(np.random.default_rng(i), 64) for i in range(40)])))
    frequency = np.hypot(np.fft.fftfreq(64)[:, None] * 64, np.fft.rfftfreq(64)[None] * 64)
    inside = (frequency >= 2) & (frequency < 30)
    slope = np.polyfit(np.log(frequency[inside]), np.log(waves.mean(0)[inside]), 1)[0]
    assert -1.35 < slope < -0.95


def test_a_mosaic_leaves_what_each_pixel_saw_and_interpolates_lines_exactly():
    y, x = np.mgrid[0:16, 0:16].astype(np.float32) / 40
    planes = np.stack([0.1 + y, 0.2 + x, y + x])
    np.testing.assert_allclose(demosaiced(planes)[:, 1:-1, 1:-1], planes[:, 1:-1, 1:-1], atol=1e-6)
    noise = np.random.default_rng(0).random((3, 16, 16), np.float32)
    seen = demosaiced(noise)
    np.testing.assert_array_equal(seen[0, ::2, ::2], noise[0, ::2, ::2])
    np.testing.assert_array_equal(seen[1, ::2, 1::2], noise[1, ::2, 1::2])
    np.testing.assert_array_equal(seen[2, 1::2, 1::2], noise[2, 1::2, 1::2])


@pytest.mark.parametrize("trace", TRACES)
def test_a_trace_leaves_much_as_it_is(trace):
    for i in range(6):
        rng = np.random.default_rng(i)
        planes = developed(rng, scene(rng, 64), DOMAINS["studio"])
        forged = TRACES[trace](np.random.default_rng([9, i]), planes)
        assert forged.shape == planes.shape
        assert forged.dtype == np.float32
        assert (forged != planes).mean() > 0.05
        assert np.quantile(abs(forged - planes), 0.25) < 0.02


def steps(images: np.ndarray) -> np.ndarray:
    """How far apart neighbours are, within the cells of two by two that begin at even pixels and between them."""
    grey = images.mean(-1)
    apart = [np.abs(np.diff(grey, axis=axis))[:, k::2, j::2] for axis in (1, 2) for k in (0, 1) for j in (0, 1)]
    return np.log(
        np.stack([step.mean((1, 2)) for step in apart] + [np.quantile(s, 0.2, (1, 2)) + 0.1 for s in apart], 1)
    )


def test_known_traces_can_be_learned_from_neighbouring_pixels():
    source = Forgeries(train=300, val=1, test=100)
    examples = [source[i] for i in range(401)]
    features, labels = steps(np.stack([e["image"] for e in examples])), np.array([e["class"] for e in examples])
    spread = features[:300].mean(0), features[:300].std(0)
    features = (features - spread[0]) / spread[1]
    classifier = LogisticRegression(C=10, max_iter=1000).fit(features[:300], labels[:300])
    assert roc_auc_score(labels[301:], classifier.decision_function(features[301:])) > 0.8


def test_what_is_wrong_with_the_options():
    with pytest.raises(ConfigError) as error:
        small(size=31, test=0, domain="phon")
    assert "size: expected at least 32 pixels, found 31" in str(error.value)
    assert "size: expected an even number of pixels, found 31" in str(error.value)
    assert "test: expected at least 1, found 0" in str(error.value)
    assert "domain: no 'phon'; did you mean 'phone'" in str(error.value)
