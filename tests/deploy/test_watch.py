"""Watching a log: windows as in training, alerts as they come, what drove them; and the exported files say the same."""

import io
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from convert.sources import open_source
from kdjax import launch
from kdjax.data import pipeline
from kdjax.data.can import log as can_log
from kdjax.data.can import windows
from kdjax.data.can.messages import Messages
from kdjax.data.can.traffic import Traffic
from kdjax.data.graphs.packs import KEEPSAKE, joined
from kdjax.deploy import predict, watch
from kdjax.deploy.watch import Cutting, Detector
from kdjax.distill.teachers import build_model
from kdjax.experiment.resolve import resolved
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors, stablehlo
from tests.support.can_logs import candump, messages, parquet, plain, write
from tests.support.command import command, refused, tiny

W = 50
CONFIG = f"""
from kdjax.config import Data, Experiment, Mesh, Model, Optim, Stage, to_dict

TRAFFIC = {{"seed": 3, "train_windows": 500, "test_windows": 8, "known": ("dos",), "window": {W}}}


def get_config(variant=""):
    data = Data("can_traffic", **TRAFFIC, batch_size=32, buckets=1)
    gat = Model("can_gat", hidden=8, heads=2, layers=1, fc_layers=1, dropout=0.0, num_ids=None)
    vgae = Model("can_vgae", variant="c_small", num_ids=None)
    both = Model("can_fusion", vgae=to_dict(vgae), gat=to_dict(gat), agent={{"variant": "small"}})
    optim = Optim("adamw", lr=5e-3, schedule="constant")
    common = {{"data": data, "epochs": 8, "optim": optim, "grad_norms_every": 0}}
    stages = {{
        "gat": Stage(task="detection", model=gat, **common),
        "vgae": Stage(task="autoencoder", model=vgae, **common),
        "fusion": Stage(task="fusion", model=both, parts={{"vgae": "vgae", "gat": "gat"}}, **common),
    }}
    return Experiment(name="watch", stages=stages, mesh=Mesh(data=1), quick_compile=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(config, workdir): the GAT is trained, VGAE and fusion are random, with the keepsake of the GAT."""
    folder = tmp_path_factory.mktemp("run")
    path, workdir = write(folder / "watch.py", CONFIG), folder / "work"
    ended = command(f"--config={path}", f"--workdir={workdir}", "--stage=gat")
    assert ended.code == 0, ended
    trained, about = safetensors.load(workdir / "stages" / "gat" / "model.safetensors")
    ids = json.loads(about["options"])["num_ids"]
    for name in ("vgae", "fusion"):
        of = resolved(launch.load(str(path)).stages[name], {"num_ids": ids})
        variables = jax.tree.map(np.array, initialiser(build_model(of.model))(jax.random.key(1)))
        if name == "fusion":
            variables["params"]["gat"] = trained["params"]
        kept = workdir / "stages" / name
        kept.mkdir()
        safetensors.save(kept / "model.safetensors", variables, safetensors.about(of.model) | {"threshold": "0.5"})
        (kept / KEEPSAKE).write_bytes((workdir / "stages" / "gat" / KEEPSAKE).read_bytes())
    return path, workdir


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Another drive of the same vehicle, of 16 windows with a flood: as messages, CSV and parquet."""
    traffic = Traffic(seed=3, train_windows=500, test_windows=16, known=("dos",), window=W)
    (name,) = [name for name in traffic.logs if name.startswith("test_01")]
    log, folder = traffic.logs[name], tmp_path_factory.mktemp("logs")
    log = replace(log, time=log.time.round(6))
    return log, write(folder / "x.csv", plain(log)), parquet(folder / "x.parquet", log)


def on(run, *flags, stage="gat"):
    return command(f"--config={run[0]}", f"--workdir={run[1]}", "--mode=predict", f"--stage={stage}", *flags)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_of_unknown_ids_alone_says_so(run, logs, tmp_path):
    log, *_ = logs
    known = Cutting.load(run[1] / "stages" / "gat" / KEEPSAKE).ids
    assert set(known) & set(log.id.tolist())
    other = write(tmp_path / "other.csv", plain(replace(log, id=log.id + 0x20000 + max(known))))
    ended = on(run, f"--log={other}")
    assert ended.code == 0, ended
    said = f"none of the {len(set(log.id.tolist()))} ids of this log"
    assert said in ended.out.splitlines()[-1]
    assert f"is among the {len(known)} that training knew" in ended.out
    assert ended.error.startswith(f"warning: {said}"), "before the log has ended"
    assert "of this log" not in on(run, f"--log={logs[1]}").out


def detector(run, stage="gat") -> tuple[Detector, Cutting]:
    name, of = predict.chosen(launch.load(str(run[0])), stage)
    kept = predict.load(of, run[1], name, "")
    cutting = Cutting.load(run[1] / "stages" / stage / KEEPSAKE)
    return Detector(kept.stage, kept.whole, cutting), cutting


def test_an_injected_id_is_named_first(run, logs, tmp_path):
    log, path, _ = logs
    ended = on(run, f"--log={path}", f"--output={tmp_path}/all.jsonl")
    assert ended.code == 0, ended
    found = lines(tmp_path / "all.jsonl")
    attacks = [one for one in found if one["label"] == 1]
    assert [one["window"] for one in found] == list(range(16))
    assert 3 <= len(attacks) <= 13
    right = [one["alert"] == (one["label"] == 1) for one in found]
    assert np.mean(right) > 0.8
    alerts = [one for one in found if one["alert"]]
    flooded = [one for one in alerts if one["label"] == 1]
    assert sum(one["ids"][0]["id"] == "000" for one in flooded) >= 0.8 * len(flooded) > 0
    printed = ended.out.splitlines()
    assert len(printed) == len(alerts) + 1
    for text, one in zip(printed, alerts, strict=False):
        ids = ", ".join(f"{i['id']} {i['share']:.0%}" for i in one["ids"][:3])
        assert text.startswith(f"{one['begin']:.6f}  window {one['window']}  score {one['score']:.4g} > ")
        assert text.endswith(ids)
    assert printed[-1].startswith(f"16 windows, {len(alerts)} alerts; {len(log)} messages, ")
    assert all(one["begin"] == log.time[W * one["window"]] for one in found)
    assert all(one["end"] == log.time[W * one["window"] + W - 1] for one in found)
    assert all(abs(sum(i["share"] for i in one["ids"]) - 1) < 1e-2 for one in alerts)


def test_candump_is_read_as_it_comes(run, logs, stdin, tmp_path):
    log, path, _ = logs
    stdin([candump(log).encode()])
    flags = [f"--log={path}", "--log=-"]
    for k, flag in enumerate(flags):
        ended = on(run, flag, f"--output={tmp_path}/{k}.jsonl")
        assert ended.code == 0, ended
    table, dump = ([{**one, "label": 0} for one in lines(tmp_path / f"{k}.jsonl")] for k in range(2))
    assert dump == table


def test_scores_are_those_of_training(run):
    """Windows of the data's own test split, cut anew from the log, score as the evaluation has it."""
    path, workdir = run
    stage = launch.load(str(path)).stages["gat"]
    dataset = pipeline.build(stage.data)
    tested = np.load(workdir / "stages" / "gat" / "test.npz")["score"]
    traffic = Traffic(seed=3, train_windows=500, test_windows=8, known=("dos",), window=W)
    ours, cutting = detector(run)
    found = [ours.scores(next(cutting([log]))[0]) for name, log in traffic.logs.items() if name.startswith("test")]
    np.testing.assert_allclose(np.concatenate(found), tested, rtol=1e-5, atol=1e-5)
    assert len(tested) == dataset.sizes["test"]
    assert np.ptp(tested) > 1


@pytest.mark.parametrize("generation", ["A", "B"])
@pytest.mark.parametrize(("window", "stride"), [(20, 20), (20, 7), (20, 33), (1, 1)])
def test_windows_are_the_same_however_the_log_comes(generation, window, stride):
    log = messages(n=237)
    told = windows.keepsake(windows.Mapping.build([log]), generation, window, stride)
    cutting = Cutting(**{**told, "ids": tuple(told["ids"])})
    whole = windows.graphs(log, generation, window, stride, windows.Mapping(cutting.ids))
    for pieces in (1, 8, 60, 237):
        chunks = [log[part] for part in np.array_split(np.arange(len(log)), pieces)]
        made = list(cutting(chunks))
        ends = np.concatenate([times for _, times in made])
        for name in ("x", "id", "name", "senders", "receivers", "label", "begin"):
            np.testing.assert_array_equal(np.concatenate([getattr(g, name) for g, _ in made]), getattr(whole, name))
        np.testing.assert_array_equal(ends, log.time[np.arange(len(whole)) * stride + window - 1])
        assert all(len(graphs) for graphs, _ in made)


def test_leaving_out_takes_a_node_and_its_edges():
    log = messages(n=41, ids=6)
    graphs = windows.graphs(log, "B", 20, 20, windows.Mapping.build([log]))
    names = graphs.name[graphs.first_node[1] : graphs.first_node[2]]
    edges = slice(*graphs.first_edge[1:3])
    links = zip(graphs.senders[edges], graphs.receivers[edges], strict=True)
    pairs = {(int(names[s]), int(names[r])) for s, r in links}
    made = watch.without_each(graphs, 1)
    assert len(made) == len(names)
    for k, out in enumerate(names):
        nodes, edges = slice(*made.first_node[k : k + 2]), slice(*made.first_edge[k : k + 2])
        left = made.name[nodes]
        assert left.tolist() == [name for name in names if name != out]
        kept = [(int(left[s]), int(left[r])) for s, r in zip(made.senders[edges], made.receivers[edges], strict=True)]
        assert set(kept) == {pair for pair in pairs if out not in pair}
        assert len(kept) == len(set(kept))


def test_shares_are_falls_of_the_score(run, logs):
    """By one window at a time, through the model itself."""
    ours, cutting = detector(run, "fusion")
    graphs, _ = next(cutting([logs[0]]))
    scores = ours.scores(graphs)
    i = int(scores.argmax())
    (driven,) = ours.drivers(graphs, np.array([i]), scores[[i]])
    names = graphs.name[graphs.first_node[i] : graphs.first_node[i + 1]]
    without = watch.without_each(graphs, i)
    rest = [ours.scores(part(without, k))[0] for k in range(len(names))]
    falls = np.maximum(scores[i] - np.array(rest), 0)
    assert falls.sum() > 0
    expected = {int(n): f / falls.sum() for n, f in zip(names, falls, strict=True) if f > 0}
    assert dict(driven) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert [share for _, share in driven] == sorted(expected.values(), reverse=True)


def part(graphs, k):
    nodes, edges = slice(*graphs.first_node[k : k + 2]), slice(*graphs.first_edge[k : k + 2])
    flat = {n: getattr(graphs, n)[nodes] for n in ("x", "id", "name")}
    flat |= {n: getattr(graphs, n)[edges] for n in ("senders", "receivers")}
    flat |= {n: getattr(graphs, n)[k : k + 1] for n in ("label", "file", "begin")}
    ends = [np.array([0, which.stop - which.start]) for which in (nodes, edges)]
    return replace(graphs, **flat, first_node=ends[0], first_edge=ends[1])


def test_windows_of_any_size_are_scored(run):
    """So many nodes, or edges, that a pack has not room for all windows that wait; and a graph of nothing."""
    ours, _ = detector(run)
    data = np.random.default_rng(0).integers(0, 256, (W + 1, 8)).astype(np.uint8)
    each_once = replace(messages(n=W + 1), id=np.arange(1, W + 2), data=data)
    wide = windows.graphs(each_once, "C", W, W, windows.Mapping(tuple(range(1, W + 2))))
    wide = replace(wide, id=np.zeros_like(wide.id))
    few = messages(n=70 * W + 1, ids=14)
    dense = windows.graphs(few, "B", W, W, windows.Mapping.build([few]))
    assert wide.sizes().tolist() == [[W + 1, W]]
    assert (dense.sizes()[: watch.PACK].sum(axis=0) > [0, ours.buckets[watch.PACK][1]]).all()
    mixed = joined([*[wide] * 70, dense, *[wide] * 3, watch._none(10)])
    found, some = ours.scores(mixed), [0, 69, 70, 90, 139, 140, 142, 143]
    assert len(found) == len(mixed) == 144
    np.testing.assert_allclose(found[some], [ours.scores(part(mixed, k))[0] for k in some], rtol=1e-5, atol=1e-5)
    assert len(set(found.round(3))) > 40


@pytest.mark.parametrize("stage", ["vgae", "fusion"])
def test_every_task_watches(run, logs, tmp_path, stage):
    """And parquet tells the same as CSV."""
    made = []
    for path in logs[1:]:
        ended = on(run, f"--log={path}", f"--output={tmp_path}/x.jsonl", "--threshold=-100", stage=stage)
        assert ended.code == 0, ended
        assert "16 windows, 16 alerts" in ended.out
        made.append(lines(tmp_path / "x.jsonl"))
    assert made[0] == made[1]
    assert len({one["score"] for one in made[0]}) == 16


# -- a log that grows ------------------------------------------------------------------------------------------------


class Growing:
    """Standard input whose bytes come by and by; `end` is raised when they are over."""

    def __init__(self, pieces: Iterable[bytes], end: BaseException | None = None):
        self.pieces, self.end = iter(pieces), end
        self.told: list[int] = []  # lines of output before each of them

    def read1(self, size=-1):
        self.told.append(sys.stdout.getvalue().count("\n") if isinstance(sys.stdout, io.StringIO) else 0)
        got = next(self.pieces, b"")
        if not got and self.end:
            raise self.end
        return got


@pytest.fixture
def stdin(monkeypatch):
    def put(*args, **kwargs) -> Growing:
        source = Growing(*args, **kwargs)
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=source))
        return source

    return put


def test_an_alert_is_told_as_soon_as_its_window_is_complete(run, logs, stdin):
    """Line by line: an alert comes when the message after its window was read, before the next is."""
    log, path, _ = logs
    source = stdin([line.encode() for line in path.read_text().splitlines(keepends=True)])
    ended = on(run, "--log=-", "--threshold=-1e9")
    assert ended.code == 0, ended
    header = 1
    assert source.told == [max(0, (k - header - 1) // W) for k in range(header + len(log) + 1)]
    assert source.told[-1] == 16
    summary = re.search(
        r"16 windows, 16 alerts; 801 messages, .*; scored ([\d.]+) ms .* at most ([\d.]+) ms", ended.out
    )
    assert summary
    assert 0 < float(summary[1]) <= float(summary[2])


@pytest.mark.long
def test_it_may_come_in_any_pieces(run, logs, stdin, tmp_path):
    _, path, _ = logs
    text, made = path.read_bytes(), []
    for size in (41, 777, len(text)):
        stdin([text[k : k + size] for k in range(0, len(text), size)])
        ended = on(run, "--log=-", f"--output={tmp_path}/x.jsonl")
        assert ended.code == 0, ended
        made.append(lines(tmp_path / "x.jsonl"))
    same = [[{k: v for k, v in one.items() if k not in ("score", "ids")} for one in found] for found in made]
    assert same[0] == same[1] == same[2]
    scores = np.array([[one["score"] for one in found] for found in made])
    assert scores.shape == (3, 16)
    np.testing.assert_allclose(scores[1:], np.broadcast_to(scores[0], (2, 16)), rtol=1e-5, atol=1e-5)


def test_ctrl_c_ends_with_the_summary(run, logs, stdin):
    text = logs[1].read_bytes()
    stdin([text[: len(text) // 2]], KeyboardInterrupt())
    ended = on(run, "--log=-")
    assert ended.code == 0, ended
    assert ended.out.splitlines()[-1].startswith(("7 windows", "8 windows"))


def test_bad_lines_are_skipped_and_told(run, logs, tmp_path):
    rows = logs[1].read_text().splitlines()
    rows[5] += ",1"
    rows.insert(300, "yesterday,1A0,00,0")
    ended = on(run, f"--log={write(tmp_path / 'bad.csv', chr(10).join(rows))}")
    assert ended.code == 0, ended
    assert "2 lines or rows skipped:\n" in ended.out
    assert "bad.csv, line 6: expected 4 fields, found 5" in ended.out
    assert "bad.csv, line 301: expected a time in seconds, found 'yesterday'" in ended.out


def test_no_more_of_a_log_is_held_than_a_block(run, stdin):
    """A million messages pass; the messages held at any time are those of a block and a window."""
    log = messages(n=20_000, ids=30)
    block = plain(log).encode()
    header, rest = block.split(b"\n", 1)
    held: list[int] = []

    def pieces():
        yield header + b"\n"
        for _ in range(50):
            yield rest

    cutting = Cutting("B", 100, 100, {}, tuple(np.unique(log.id).tolist()))
    tally = watch.Tally()
    source = stdin(pieces())
    joined = Messages.joined
    with pytest.MonkeyPatch.context() as patch:
        counting = lambda parts: held.append(sum(map(len, parts))) or joined(parts)  # noqa: E731
        patch.setattr(Messages, "joined", staticmethod(counting))
        read = can_log.stream(watch.blocks(source, 0, tally), ids="hex", chunk=1)
        count = sum(len(graphs) for graphs, _ in cutting(watch.counted(read, tally)))
    assert tally.messages == 1_000_000
    assert count == 9_999
    assert max(held) <= 20_000 + 100


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--mode=predict of a model of graphs needs --log=FILE"),
        (["--images=docs"], "needs --log=FILE, a CAN log, or --log=- for standard input and no --images"),
        (
            ["--log={logs}/none.csv"],
            "none.csv: expected a log (CSV, parquet or candump -L; - is standard input), found no such file",
        ),
        (["--log={logs}/y.csv"], "found no such file; did you mean '{logs}/x.csv'"),
        (["--log={logs}"], "expected a log (CSV, parquet or candump -L; - is standard input), found a folder"),
        (["--log={logs}/empty.csv"], "empty.csv: expected a header and messages below it, found an empty file"),
        (["--log={logs}/columns.csv"], "no payload column: expected one of data_field, data, payload"),
        (["--log={logs}/lines.csv"], "expected messages, found none that can be read"),
        (["--log={logs}/x.csv", "--output=x.csv"], "--output=x.csv: expected a file whose name ends in .jsonl"),
        (["--log={logs}/x.csv", "--weights={logs}/bare.safetensors"], "holds no threshold; give one with --threshold"),
        (["--log={logs}/x.csv", "--stage=gatt"], "--stage=gatt: no such stage; did you mean 'gat'"),
    ],
)
def test_what_is_refused(run, logs, flags, said):
    folder = logs[1].parent
    write(folder / "empty.csv", "")
    write(folder / "columns.csv", "timestamp,arbitration_id,attack\n1.0,1A0,0\n")
    write(folder / "lines.csv", "timestamp,arbitration_id,data_field,attack\n" + "x,1A0,00,0\n" * 60)
    whole, about = safetensors.load(run[1] / "stages" / "gat" / "model.safetensors")
    safetensors.save(folder / "bare.safetensors", whole, {k: v for k, v in about.items() if k != "threshold"})
    flags = [flag.format(logs=folder) for flag in flags]
    refused(
        command(f"--config={run[0]}", f"--workdir={run[1]}", "--mode=predict", "--stage=gat", *flags),
        said.format(logs=folder),
    )


def test_images_know_no_log(tmp_path):
    here = (f"--config={tiny(tmp_path)}", f"--workdir={tmp_path}/work", "--mode=predict", "--images=docs")
    said = "of images, of segmentation, knows no --log, --threshold; give it --images"
    refused(command(*here, "--log=x.csv", "--threshold=1"), said)


def test_keepsakes_that_do_not_fit(run, logs, tmp_path):
    kept = run[1] / "stages" / "gat"
    for name in ("model.safetensors", KEEPSAKE):
        (tmp_path / name).write_bytes((kept / name).read_bytes())
    weights, told = f"--weights={tmp_path}/model.safetensors", json.loads((tmp_path / KEEPSAKE).read_text())
    flags = (f"--log={logs[1]}", weights)
    assert on(run, *flags).code == 0
    (tmp_path / KEEPSAKE).write_text(json.dumps({**told, "ids": told["ids"][:-1]}))
    refused(on(run, *flags), "tells", "ids apart", "take the file of the run that trained the model")
    (tmp_path / KEEPSAKE).write_text(json.dumps({k: v for k, v in told.items() if k != "generation"}))
    refused(on(run, *flags), "expected generation, window, stride, reading and ids as JSON (KeyError('generation'))")


def test_a_score_that_is_no_number_is_an_alert(run, logs, tmp_path):
    whole, about = safetensors.load(run[1] / "stages" / "gat" / "model.safetensors")
    whole = jax.tree.map(np.array, whole)
    whole["params"]["fc_layers_0"]["bias"][:] = np.nan
    safetensors.save(tmp_path / "model.safetensors", whole, about)
    flags = (f"--weights={tmp_path}/model.safetensors", f"--output={tmp_path}/x.jsonl")
    ended = on(run, f"--log={logs[1]}", *flags)
    assert "16 windows, 16 alerts" in ended.out
    assert "no single id" in ended.out
    assert all(one["score"] is None and one["ids"] == [] for one in lines(tmp_path / "x.jsonl"))


# -- the files to deploy ---------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("stage", ["gat", "fusion"])
def test_what_is_exported_scores_alike(run, logs, stage):
    path, workdir = run
    ended = command(f"--config={path}", f"--workdir={workdir}", "--mode=export", f"--stage={stage}")
    assert ended.code == 0, ended
    folder = workdir / "export" / stage
    told = json.loads((folder / "signature.json").read_text())
    assert {file.name for file in folder.iterdir()} == {*told["files"], "signature.json"}
    assert ("model.pth" in told["files"]) == (stage != "fusion")
    if stage != "fusion":
        kept = open_source(folder / "model.pth").extras
        assert kept == {"threshold": float(safetensors.views(folder / "model.safetensors")[1]["threshold"])}
    ours, cutting = detector(run, stage)
    assert Cutting.load(folder / KEEPSAKE) == cutting
    graphs, _ = next(cutting([logs[0]]))
    batch = ours._batch(graphs, watch.PACK, len(graphs))
    packs = batch["graphs"]
    fields = {**packs._asdict(), **packs.nodes}
    arrays = [fields[name] for name in told["input"] if name != "how"]
    score = np.asarray(stablehlo.load(folder / "model.stablehlo")(*arrays)["score"])[0, : len(graphs)]
    np.testing.assert_allclose(score, ours.scores(graphs), rtol=1e-5, atol=1e-5)
    again = on(run, f"--log={logs[1]}", f"--weights={folder}/model.safetensors", stage=stage)
    assert again.code == 0, again
    assert again.out.splitlines()[:-1] == on(run, f"--log={logs[1]}", stage=stage).out.splitlines()[:-1]
    about = safetensors.load(folder / "model.safetensors")[1]
    assert predict.calibrated(about) == {"threshold": told["output"]["score"]["threshold"]}
