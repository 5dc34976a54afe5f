"""Watching a CAN log: kdjax beside a loop over windows with a PyTorch Geometric model, in turns on this machine.

    python -m benchmarks.can_detection [--messages=100000] [--rounds=5] [--out=FILE]

From the CSV of a log to the score of every window by a GAT (`can_gat`, b_student), with the same random weights on both
sides; the scores are compared. The loop makes a graph of each window by numpy and asks the model at once; kdjax does
what `--mode=predict --log=` does, without the printing. It counts messages in a second, the median of rounds.
"""

import argparse
import contextlib
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.can_preprocessing import RESULTS, WINDOW, looped, read, write
from benchmarks.side_by_side import machine
from convert import families
from convert.family import tensors
from convert.originals import can_gat, gat_conv
from kdjax.config import Data, Model, Stage
from kdjax.data.can import log as can_log
from kdjax.data.can.windows import Mapping
from kdjax.deploy import watch as detect
from kdjax.distill.teachers import build_model
from kdjax.train.setup import initial

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # PyG compiles scripts, which PyTorch calls deprecated
    from torch_geometric.nn import GATConv


class Layer(GATConv):
    def forward(self, x, senders, receivers):
        return super().forward(x, torch.stack([senders, receivers]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "can_detection.json")
    given = parser.parse_args(argv)
    found = measure(given.messages, given.rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


def measure(messages: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), 5 * messages)[1]  # one of five logs
        mapping = Mapping.build([can_log.read(path, ids="hex").messages])
        model = Model("can_gat", variant="b_student", num_ids=mapping.num_ids)
        whole = jax.device_get(jax.jit(lambda key: initial(build_model(model), key))(jax.random.key(0)))
        sides = {"loop": loop(model, whole, mapping), "kdjax": watch(model, whole, mapping)}
        scores = {name: work(path) for name, work in sides.items()}  # which also warms them up
        worst = float(np.abs(scores["loop"] - scores["kdjax"]).max() / np.abs(scores["loop"]).max())
        if worst > 1e-4:
            raise SystemExit(f"the two sides do not give the same scores: {worst:.1e}")
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, work in sides.items():
                begin = time.perf_counter()
                work(path)
                taken[name].append(time.perf_counter() - begin)
    count = len(scores["loop"]) * WINDOW
    rates = {name: {"seconds": s, "messages_per_s": count / median(s)} for name, s in taken.items()}
    return {"machine": machine(), "messages": count, "windows": len(scores["loop"]), "worst": worst, "sides": rates}


def loop(model: Model, whole: dict, mapping: Mapping) -> Callable[[Path], np.ndarray]:
    gat_conv.CONVS["gat"] = Layer
    module = can_gat.build(model).eval()
    named = dict(tensors(families.get("can_gat"), model, whole))
    module.load_state_dict({name: torch.from_numpy(np.array(x)) for name, x in named.items()}, strict=True)

    def run(path: Path) -> np.ndarray:
        found = []
        with torch.no_grad():
            for one in looped([read(path)], mapping):
                x, (senders, receivers) = one.x.float(), one.edge_index
                out = module.endpoints(x[:, 1:], x[:, 0].long(), senders, receivers, torch.tensor([len(x)]))
                found.append(out["logits"][0, 0].item())
        return np.array(found)

    return run


def watch(model: Model, whole: dict, mapping: Mapping) -> Callable[[Path], np.ndarray]:
    stage = Stage(task="detection", data=Data("can_traffic"), model=model, epochs=1)
    cutting = detect.Cutting("B", WINDOW, WINDOW, {"ids": "hex", "payload": "hex"}, mapping.ids)
    detector = detect.Detector(stage, whole, cutting)
    detector.warm_up()

    def run(path: Path) -> np.ndarray:
        with contextlib.ExitStack() as stack:
            chunks = detect.opened(str(path), cutting.reading, WINDOW, detect.Tally(), stack)
            return np.concatenate([detector.scores(graphs) for graphs, _ in cutting(chunks)])

    return run


def markdown(found: dict[str, Any]) -> str:
    loop, mine = (found["sides"][name]["messages_per_s"] for name in ("loop", "kdjax"))
    return "\n".join(
        [
            f"{found['messages']:,} messages, {found['windows']:,} windows; largest relative difference of a score "
            f"{found['worst']:.1e}\n",
            "| from CSV to scores | loop | kdjax | ratio |",
            "|---|---:|---:|---:|",
            f"| messages in a second | {loop:,.0f} | {mine:,.0f} | {mine / loop:.0f} |",
        ]
    )


if __name__ == "__main__":
    main()
