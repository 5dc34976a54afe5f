"""CAN logs to graphs: kdjax beside a loop over windows, as the published detectors have it, on this machine.

    python -m benchmarks.can_preprocessing [--messages=400000] [--rounds=5] [--out=FILE]

Generated logs lie in a folder as CSV. The loop reads them with the `csv` module and makes a `torch_geometric` graph of
each window by numpy, node by node; of what the originals do it leaves out the features of edges, which no published
model reads. Both sides take turns, and their graphs are compared. It counts messages in a second, the median of rounds.
"""

import argparse
import csv
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.side_by_side import processor
from kdjax.data.can import log as can_log
from kdjax.data.can import windows
from kdjax.data.can.folders import Can
from kdjax.data.can.messages import Messages
from kdjax.data.can.traffic import ATTACKS, drive, vehicles
from kdjax.data.can.windows import Mapping
from kdjax.data.graphs.packs import Graphs

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it compiles scripts, which PyTorch calls deprecated
    from torch_geometric.data import Data

RESULTS = Path(__file__).parent / "results"
WINDOW = windows.WINDOWS["B"]
LOGS = ("", *ATTACKS)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "can_preprocessing.json")
    given = parser.parse_args(argv)
    found = measure(given.messages, given.rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


def measure(messages: int, rounds: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder) / "logs", Path(folder) / "cache"
        paths = write(root, messages)
        logs = [log.messages for log in can_log.read_all(paths)]
        mapping = Mapping.build(logs)
        pool = ThreadPoolExecutor(os.cpu_count())

        def kept() -> Can:
            return Can(str(root), cache=str(cache))

        same(kept().train, looped([read(path) for path in paths], mapping))
        sides: dict[str, Callable[[], object]] = {
            "loop: CSV to graphs": lambda: looped([read(path) for path in paths], mapping),
            "kdjax: CSV to graphs": lambda: Can(str(root), cache=""),
            "loop: messages to graphs": lambda: looped(logs, mapping),
            "kdjax: messages to graphs": lambda: list(pool.map(lambda log: windows.graphs(log, mapping=mapping), logs)),
            "kdjax: CSV to messages": lambda: can_log.read_all(paths),
            "kdjax: kept graphs read back": kept,
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, work in sides.items():
                begin = time.perf_counter()
                work()
                taken[name].append(time.perf_counter() - begin)
        size = sum(path.stat().st_size for path in paths)
        pool.shutdown()
    count = sum(map(len, logs))
    return {
        "machine": {
            "device": processor(),
            "threads": os.cpu_count(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "torch", "torch_geometric")},
            },
        },
        "messages": count,
        "logs": len(logs),
        "mib": size / 2**20,
        "window": WINDOW,
        "sides": {
            name: {"seconds": seconds, "messages_per_s": count / median(seconds)} for name, seconds in taken.items()
        },
    }


def markdown(found: dict) -> str:
    """A row for each kind of work: the loop, kdjax, and how many times faster kdjax is."""
    rate = {name: side["messages_per_s"] for name, side in found["sides"].items()}
    about = (
        f"{found['messages']:,} messages in {found['logs']} logs ({found['mib']:.0f} MiB), windows of {found['window']}"
    )
    lines = [
        f"{about}, {found['machine']['device']}, {found['machine']['threads']} threads\n",
        "| messages in a second | loop | kdjax | ratio |",
        "|---|---|---|---|",
    ]
    for work in dict.fromkeys(name.split(": ")[1] for name in rate):
        loop, mine = rate.get(f"loop: {work}"), rate[f"kdjax: {work}"]
        beside = (f"{loop:,.0f}", f"{mine / loop:.0f}") if loop else ("-", "-")
        lines.append(f"| {work} | {beside[0]} | {mine:,.0f} | {beside[1]} |")
    return "\n".join(lines)


def write(root: Path, messages: int) -> list[Path]:
    """Logs of about as many messages in all, one without attack and one of each kind of attack."""
    paths = []
    for k, attack in enumerate(LOGS):
        log = drive(np.random.default_rng(k), vehicles(0)[0], attack, messages // len(LOGS))
        path = root / "train" / f"{k}_{attack or 'attack_free'}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as file:
            file.write("timestamp,arbitration_id,data_field,attack\n")
            for t, i, data, n, y in zip(log.time, log.id, log.data, log.length, log.label, strict=True):
                file.write(f"{t:.6f},{i:03X},{data[:n].tobytes().hex().upper()},{y}\n")
        paths.append(path)
    return paths


# -- the loop --------------------------------------------------------------------------------------------------------


def read(path: Path) -> Messages:
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    payloads = [bytes.fromhex(row["data_field"]) for row in rows]
    return Messages(
        time=np.array([float(row["timestamp"]) for row in rows]),
        id=np.array([int(row["arbitration_id"], 16) for row in rows]),
        data=np.array([list(payload.ljust(8, b"\0")) for payload in payloads], np.uint8),
        length=np.array([len(payload) for payload in payloads], np.uint8),
        label=np.array([int(row["attack"]) for row in rows], np.int8),
        line=np.arange(2, len(rows) + 2),
    )


def looped(logs: Sequence[Messages], mapping: Mapping) -> list[Data]:
    known = {can_id: k for k, can_id in enumerate(mapping.ids)}
    found = []
    for log in logs:
        ids = np.array([known.get(can_id, len(known)) for can_id in log.id.tolist()])
        data, source, target = log.data[:-1] / 255, ids[:-1], ids[1:]
        for begin in range(0, len(source) - WINDOW + 1, WINDOW):
            part = slice(begin, begin + WINDOW)
            found.append(graph(data[part], source[part], target[part], log.label[part]))
    return found


def graph(data: np.ndarray, source: np.ndarray, target: np.ndarray, label: np.ndarray) -> Data:
    pairs = np.unique(np.stack([source, target], axis=1), axis=0)
    nodes = np.unique(np.concatenate([source, target]))
    place = {node: k for k, node in enumerate(nodes)}
    x, count = np.zeros((len(nodes), 11)), np.zeros(len(nodes))
    for k, node in enumerate(nodes):
        mine = np.flatnonzero(source == node)
        if len(mine):
            x[k, 0], x[k, 1:9] = node, data[mine].mean(axis=0)
            x[k, 10] = mine[-1] / (len(source) - 1)
        count[k] = len(mine)
    if count.max() > count.min():
        x[:, 9] = (count - count.min()) / (count.max() - count.min())
    edges = np.array([[place[a], place[b]] for a, b in pairs]).T
    return Data(
        x=torch.tensor(x, dtype=torch.float),
        edge_index=torch.tensor(edges, dtype=torch.long),
        y=torch.tensor(int((label == 1).any())),
    )


def same(mine: Graphs, theirs: Sequence[Data]) -> None:
    """Both sides do the same work."""
    np.testing.assert_array_equal(mine.label, [int(graph.y) for graph in theirs])
    np.testing.assert_array_equal(np.diff(mine.first_node), [len(graph.x) for graph in theirs])
    x, edges = torch.cat([graph.x for graph in theirs]), torch.cat([graph.edge_index for graph in theirs], 1)
    np.testing.assert_allclose(np.concatenate([mine.id[:, None], mine.x], axis=1), x.numpy(), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(np.stack([mine.senders, mine.receivers]), edges.numpy())


if __name__ == "__main__":
    main()
