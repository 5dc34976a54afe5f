"""The arithmetic and the table of the side-by-side benchmark, from made-up timings; and its cases as models."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks import jax_side, side_by_side, torch_side, worker
from benchmarks.cases import CAPTION, CASES, SAM, Case, arrays, encoder_flops, peak_flops
from benchmarks.torch_sam import LoraQkv
from kdjax.losses import features, labels, logits
from kdjax.models.vision.sam import MEAN, STD, VARIANTS, build_sam
from kdjax.models.vision.sam.image_encoder import ImageEncoder

pytestmark = pytest.mark.long

ABOUT = {"device": "Some CPU", "backend": "cpu", "threads": 2, "versions": {"torch": "2.0", "jax": "0.10"}}


def side(*seconds: float, trained: int = 7, peak: float = 1500.0) -> dict:
    return {
        "seconds": list(seconds),
        "trained": trained,
        "calls": 3,
        "build_s": 1.0,
        "first_call_s": 2.0,
        "peak_mib": peak,
    }


def judged(name: str, torch: dict, kdjax: dict, **more) -> dict:
    return side_by_side.judge(CASES[name], "float32", "cpu", {"torch": torch, "kdjax": kdjax}, **more)


def test_the_ratio_is_of_medians_and_above_one_where_kdjax_is_faster():
    found = judged("tinyusfm_step", side(2.0, 3.0, 90.0), side(1.0, 2.0, 1.5))
    assert found["ratio"] == 2.0
    assert found["sides"]["torch"]["median_s"] == 3.0
    assert (found["sides"]["kdjax"]["min_s"], found["sides"]["kdjax"]["max_s"]) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("name", "backend", "product", "ratio", "met"),
    [
        ("product", "cpu", None, 0.65, True),
        ("product", "cpu", None, 0.64, False),
        ("product", "cpu", 2.0, 0.7, True),  # an earlier measurement of itself is no floor
        ("sam_b_forward_512", "cpu", None, 0.7, True),
        ("sam_b_forward_512", "cpu", 0.75, 0.7, False),  # slower than its products are
        ("sam_b_forward_512", "cpu", 0.4, 0.64, False),  # 0.65 is the least
        ("sam_b_forward_512", "cpu", 2.0, 0.99, False),  # the products are no excuse here
        ("sam_b_forward_512", "cpu", 2.0, 1.0, True),  # nor is more than PyTorch's speed asked for
        ("tinyusfm_step", "cpu", 0.65, 0.7, False),  # not bound by products
        ("sam_b_forward_512", "gpu", 0.65, 0.7, False),  # the excuse is the CPU's
    ],
)
def test_the_floor_is_of_the_kind_of_work_and_the_device(name, backend, product, ratio, met):
    sides = {"torch": side(ratio), "kdjax": side(1.0)}
    assert side_by_side.judge(CASES[name], "float32", backend, sides, product)["floor_met"] is met


def test_sides_that_train_different_parameters_are_refused():
    with pytest.raises(side_by_side.Failed, match="different numbers of parameters"):
        judged("tinyusfm_step", side(1.0, trained=7), side(1.0, trained=8))


def test_a_side_that_failed_leaves_the_other():
    found = judged("tinyusfm_step", {"error": "out of memory"}, side(1.0))
    assert found["ratio"] is None
    assert found["floor_met"] is None
    assert found["sides"]["torch"] == {"error": "out of memory"}
    table = side_by_side.markdown({"machine": ABOUT, "cases": {"tinyusfm_step": found}})
    assert "| failed | 1.00 s (1.00 to 1.00) | - |" in table


def test_the_table():
    cases = {
        "sam_b_forward_256": judged("sam_b_forward_256", side(0.0512, 0.05), side(0.1, 0.1)),
        "tinyusfm_step": judged("tinyusfm_step", side(2.0, 3.0, 2.5), side(0.5, 0.5, 0.5), note="a profile"),
    }
    lines = side_by_side.markdown({"machine": ABOUT, "cases": cases}).splitlines()
    widths = {line.count("|") for line in lines if line.startswith("|")}
    assert len(widths) == 1
    assert "| 50.6 ms (50.0 to 51.2) | 100 ms (100 to 100) | 0.51 | 0.65 (not met) | 1,500 / 1,500 MiB |" in lines[2]
    assert "| 2.50 s (2.00 to 3.00) | 500 ms (500 to 500) | 5.00 | 1.00 | 1,500 / 1,500 MiB |" in lines[3]
    assert lines[-1] == f"- {CASES['tinyusfm_step'].title}, float32: a profile"


def test_the_table_of_a_gpu():
    name, peak = "sam_h_forward_1024", 989e12
    work = 4 * encoder_flops("vit_h", 1024)
    sides = {k: side(work / peak / share) for k, share in {"torch": 0.2, "torch_compiled": 0.5, "kdjax": 0.4}.items()}
    found = side_by_side.judge(CASES[name], "bfloat16", "gpu", sides, peak=peak)
    np.testing.assert_allclose([found["ratio"], found["ratio_to_compiled"]], [2.0, 0.8], rtol=1e-12)
    table = side_by_side.markdown({"machine": ABOUT, "cases": {f"{name}_bfloat16": found}})
    assert "torch.compile" in table
    assert "batch 4, bfloat16" in table
    assert table.splitlines()[2].endswith("| 20% / 50% / 40% |")


def test_results_are_added_and_notes_stay(tmp_path, monkeypatch):
    taken = {"product": (0.02, 0.03), "tinyusfm_step": (2.0, 1.0)}
    asked = []

    def measure(name, dtype, sides, rounds, threads):
        asked.append((name, dtype, rounds))
        return {k: side(*[seconds] * rounds) for k, seconds in zip(sides, taken[name], strict=True)}

    monkeypatch.setattr(side_by_side, "machine", lambda: ABOUT)
    monkeypatch.setattr(side_by_side, "measure", measure)
    path = tmp_path / "found" / "results.json"
    side_by_side.main([f"--out={path}", "--cases=tinyusfm_step", "--rounds=2"])
    found = json.loads(path.read_text())
    found["cases"]["tinyusfm_step"]["note"] = "by hand"
    path.write_text(json.dumps(found))
    side_by_side.main([f"--out={path}", "--cases=tinyusfm_step,product", "--rounds=3"])
    found = json.loads(path.read_text())
    assert list(found["cases"]) == ["product", "tinyusfm_step"]  # in the order of CASES
    assert found["cases"]["tinyusfm_step"]["note"] == "by hand"
    assert len(found["cases"]["tinyusfm_step"]["sides"]["torch"]["seconds"]) == 3
    assert asked == [("tinyusfm_step", "float32", 2), ("tinyusfm_step", "float32", 3), ("product", "float32", 3)]
    monkeypatch.setattr(side_by_side, "machine", lambda: {**ABOUT, "device": "Another CPU"})
    side_by_side.main([f"--out={path}", "--cases=product", "--rounds=1"])
    assert list(json.loads(path.read_text())["cases"]) == ["product"]  # numbers of two machines are not mixed


@pytest.mark.parametrize("flag", ["--cases=tinyusfm_stp", "--rounds=0"])
def test_flags_that_make_no_sense(flag, monkeypatch, capsys):
    monkeypatch.setattr(side_by_side, "machine", lambda: ABOUT)
    with pytest.raises(SystemExit):
        side_by_side.main([flag])
    assert re.search(r"no case tinyusfm_stp; there are product|at least 1, found 0", capsys.readouterr().err)


class Pipe:
    """The worker's end, with what it will be asked."""

    def __init__(self, *asked: str):
        self.asked, self.sent = list(asked), []

    def recv(self):
        return self.asked.pop(0)

    def send(self, what):
        self.sent.append(what)


@pytest.mark.parametrize("which", ["torch", "kdjax"])
def test_a_worker_answers_each_request(which, monkeypatch):
    monkeypatch.setattr(worker, "TURN", 0.02)
    pipe = Pipe("run", "run", "end")
    worker.serve(pipe, which, "product", "float32", torch.get_num_threads())  # type: ignore
    assert [fine for fine, _ in pipe.sent] == [True] * 4
    (_, about), *turns, (_, peak) = pipe.sent
    assert set(about) == {"build_s", "first_call_s", "trained", "calls"}
    assert all(0 < seconds < about["first_call_s"] + 10 for _, seconds in turns)
    assert peak > 50


def test_a_worker_that_fails_says_why_and_ends():
    pipe = Pipe()
    with pytest.raises(SystemExit):
        worker.serve(pipe, "torch", "no such case", "float32", 1)  # type: ignore
    ((fine, text),) = pipe.sent
    assert not fine
    assert "KeyError" in text


def test_a_turn_is_divided_by_its_calls(monkeypatch):
    """Each call takes a second of a made-up clock."""
    now = [0.0]

    class Side:
        @staticmethod
        def build(*_):
            return (lambda: now.__setitem__(0, now[0] + 1.0)), (lambda _: None), 5

        @staticmethod
        def peak_bytes():
            return 3 * 2**20

    monkeypatch.setattr(worker, "module", lambda _: Side)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(worker, "TURN", 3.5)
    pipe = Pipe("run", "end")
    worker.serve(pipe, "torch", "product", "float32", 1)  # type: ignore
    about = {"build_s": 0.0, "first_call_s": 1.0, "trained": 5, "calls": 4}
    assert pipe.sent == [(True, about), (True, 1.0), (True, 3.0)]


def test_the_dimensions_are_kdjaxs():
    assert torch_side.torch_sam.NORMAL == (MEAN, STD)
    for name, (width, depth, heads, everywhere) in SAM.items():
        mine = VARIANTS[name]
        assert (mine["dim"], mine["depth"], mine["heads"], mine["global_blocks"]) == (width, depth, heads, everywhere)


def test_flops_are_those_that_xla_counts():
    """Where windows need no padding; XLA also counts norms, softmax and GELU, which is little at this width."""
    model = ImageEncoder(build_sam("vit_b", image_size=448).options)  # 28 patches: two windows
    image = jax.ShapeDtypeStruct((1, 448, 448, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    costs = jax.jit(model.apply).lower(variables, image).cost_analysis()
    assert 0.9 < encoder_flops("vit_b", 448) / costs["flops"] <= 1.0  # type: ignore


def test_the_peak_is_found_by_the_devices_name():
    assert peak_flops("NVIDIA H200", "bfloat16") == 989e12
    assert peak_flops("NVIDIA L4", "float32") == 60.5e12
    assert peak_flops("NVIDIA L40S", "bfloat16") == 362e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("Something new", "bfloat16") is None
    assert peak_flops("Something new", "float32", tflops=100) == 50e12


def test_lora_changes_q_and_v_alone():
    torch.manual_seed(0)
    plain = torch.nn.Linear(6, 18)
    layer, x = LoraQkv(plain, 2), torch.randn(3, 6)
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)
    for up in layer.up:
        torch.nn.init.ones_(up.weight)  # type: ignore
    pairs = [x @ (up.weight @ down.weight).T for down, up in zip(layer.down, layer.up, strict=True)]  # type: ignore
    expected = plain(x) + torch.cat([pairs[0], torch.zeros(3, 6), pairs[1]], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_both_sides_have_the_same_objective():
    rng = np.random.default_rng(0)
    mine, theirs = (rng.normal(size=(2, 6, 6, 1)).astype(np.float32) for _ in range(2))
    a, b = (rng.normal(size=(2, 3, 3, 5)).astype(np.float32) for _ in range(2))
    mask = (rng.random((2, 6, 6)) < 0.4).astype(np.int32)
    z, their_z, f, their_f, m = map(jnp.asarray, (mine, theirs, a, b, mask))
    expected = (
        0.25 * labels.bce(z, m)
        + 0.25 * labels.dice(z, m)
        + 0.5 * logits.binary_kl(z, their_z, temperature=2.0)
        + 0.1 * features.mse(f, their_f)
    ).mean()
    x, y, fa, fb = (torch.from_numpy(v).permute(0, 3, 1, 2) for v in (mine, theirs, a, b))
    found = torch_side.distillation(x, fa, y, fb, torch.from_numpy(mask)[:, None].float())
    np.testing.assert_allclose(float(found), float(expected), rtol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES.values() if c.work in jax_side.STAGES], ids=lambda c: c.work)
def test_the_stages_are_valid_and_fit_their_inputs(case: Case):
    stage, taught = jax_side.STAGES[case.work](case, "float32")
    given, n = arrays(case), stage.data.batch_size
    texts, images = (
        {"input_ids": (n, CAPTION if case.work == "answer" else case.size)},
        {"image": (n, *2 * [stage.data.image_size], 3)},
    )
    expected = {"read": texts, "answer": texts | images}.get(case.work, images)
    assert {name: given[name].shape for name in expected} == expected
    assert {teacher.stage for teacher in stage.teachers.values()} == set(taught)
    assert stage.data.augment == {}  # the other side has none


@pytest.mark.parametrize(
    ("forward", "step", "variant", "size"),
    [
        ("patches", "tiny_ladeda", "tiny_ladeda", 32),
        ("classifier", "classify", "convnextv2", 32),
        ("classifier", "classify", "swinv2", 64),
        pytest.param("classifier", "classify", "mobilenetv2", 32, marks=pytest.mark.long),
        pytest.param("classifier", "classify", "mobilevit", 32, marks=pytest.mark.long),
        ("reader", "read", "bert/tiny", 16),
        ("reader", "read", "distilbert/base", 8),
    ],
    ids=["detector", "convnextv2", "swinv2", "mobilenetv2", "mobilevit", "bert", "distilbert"],
)
def test_detectors_classifiers_and_readers_run_on_both_sides(forward, step, variant, size):
    """And with as many parameters where they are trained."""
    case = Case(forward, "small", variant=variant, size=size, batch=2)
    for side in (torch_side, jax_side):
        once, wait, trained = side.build(case, "float32", False, 1)
        wait(once())
        assert trained == 0
    step = Case(step, "small", variant=variant, size=size, batch=2)
    once, _, trained = torch_side.build(step, "float32", False, 1)
    assert np.isfinite(float(once()))  # type: ignore
    variables = jax_side.variables(jax_side.build_model(jax_side.STAGES[step.work](step, "float32")[0].model))
    assert trained == sum(x.size for x in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("variant", ["vit_ti16 bert/tiny 1", "deit_ti16_distilled distilbert/base 2"])
def test_models_of_image_and_text_have_the_same_parameters(variant):
    case = Case("answer", "small", variant=variant, size=32, batch=2)
    once, _, trained = torch_side.build(case, "float32", False, 1)
    assert np.isfinite(float(once()))  # type: ignore
    step, wait, same = jax_side.build(case, "float32", False, 1)
    assert same == trained
    _, measures = wait(step())  # type: ignore
    assert np.isfinite(float(measures["loss"][0]))
