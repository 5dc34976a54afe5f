"""What came out of a run: its stages tested, summed up, and shown."""

import csv
import json
import os
import platform
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from kdjax import config
from kdjax.data.graphs.packs import GraphSet
from kdjax.distill.taps import Network
from kdjax.experiment.workdir import Run, write
from kdjax.report import tables, trackers
from kdjax.report.metrics import cka
from kdjax.tasks.task import Tested
from kdjax.train import sharding
from kdjax.train.loop import evaluate
from kdjax.train.setup import Learner

WIDEST = 512  # channels of a layer that is compared with others: more say little of as few nodes


def test(learner: Learner, whole: dict, folder: Path | None, calibrated: dict[str, float]) -> dict:
    """Scores a model on the test data; predictions and a table go to `folder`."""
    whole = learner.place(whole)
    predictions = cache(lambda split: evaluate(learner, whole, split)[1])
    result, table = learner.task.test(predictions, learner.dataset, calibrated)
    if folder is not None and jax.process_index() == 0:
        np.savez_compressed(folder / "test.npz", predicted=predictions("test"))
        with open(folder / "test.csv", "w", newline="") as file:
            csv.writer(file).writerows(table)
    return {**result, "test_images": learner.dataset.sizes["test"], "ms_per_image": latency(learner, whole)}


def likeness(made: Run, learner: Learner, whole: dict) -> dict:
    """How alike the layers of a student and its teacher see the validation data, where both give rows of one kind."""
    if not learner.stage.teachers or not isinstance(learner.dataset, GraphSet):
        return {}
    key, taught = next(iter(learner.step.teachers.items()))
    sides = {"teacher": (taught, made.teachers(learner.stage)[key]), "student": (Network(learner.model), whole)}
    batch = next(iter(learner.dataset.evaluate("val", learner.stage.data.batch_size)))
    seen: dict[str, dict[str, np.ndarray]] = {}
    for side, (network, variables) in sides.items():
        outputs = jax.device_get(jax.jit(lambda v, b, n=network: n(v, b)[0])(variables, batch))
        rows = {k: x for k, x in outputs.items() if x.ndim == 3 and x.shape[:2] == batch["nodes"].shape}
        seen[side] = {k: x[batch["nodes"]] for k, x in rows.items() if 2 < x.shape[2] <= WIDEST}
    if not all(seen.values()):
        return {}
    alike = cka.similarities(seen["teacher"], seen["student"])
    return {"likeness": {"cka": alike.tolist(), **{side: list(layers) for side, layers in seen.items()}}}


def latency(learner: Learner, whole: dict, repeats: int = 5) -> float:
    """Median milliseconds per image of the compiled evaluation, a batch at a time."""
    share = {"process": jax.process_index(), "processes": jax.process_count()}
    local = next(iter(learner.dataset.evaluate("test", learner.stage.data.batch_size, **share)))
    batch = sharding.global_batch(local, learner.mesh)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(learner.evaluate_fn(whole, batch))
        times.append(time.perf_counter() - began)
    return 1e3 * float(np.median(times)) / batch["valid"].size


def summarise(made: Run) -> dict:
    """What the tables and the report show."""
    stages = {name: learner.stage for name, learner in made.learners.items()}
    taught_by = {t.stage for s in stages.values() for t in s.teachers.values()}
    rows = []
    for name, stage in stages.items():
        found = made.of(name) / "result.json"
        if stage.auxiliary or not found.exists():
            continue
        control = name.endswith("_control")
        role = "control" if control else "student" if stage.teachers else "teacher" if name in taught_by else "other"
        row = {"stage": name, "role": role, "teachers": [t.stage for t in stage.teachers.values() if t.stage]}
        row |= json.loads(found.read_text())
        rows.append(row)
        rows += [{"stage": name, "role": "baseline", **one} for one in row.pop("beside", [])]
    last = next(reversed(made.learners.values()))
    told = [made.of(name) / "result.json" for name in stages]
    return {
        "name": made.experiment.name,
        "seed": made.experiment.seed,
        "seconds": sum(json.loads(path.read_text())["seconds"] for path in told if path.exists()),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "num_classes": last.stage.data.num_classes,
        "test_images": last.dataset.sizes["test"],
        "item": last.dataset.item,
        **last.task.words(last.dataset),
        "rows": rows,
    }


def report(made: Run, summary: dict) -> None:
    """`summary.json`, `test_results.txt` and `report.html`, from what lies in the working directory."""
    from kdjax.report import page  # matplotlib takes its time, and training needs none of it

    folder = made.folder
    curves = {
        learner.stage.title or name: trackers.read(made.of(name) / "metrics.jsonl")
        for name, learner in made.learners.items()
    }
    write(folder / "summary.json", json.dumps(summary, indent=1))
    write(folder / "test_results.txt", tables.results(summary))
    write(
        folder / "report.html", page.render(summary, curves, pictures(made, summary), config.to_json(made.experiment))
    )


def pictures(made: Run, summary: dict) -> dict[str, str]:
    """What each task that was learned has to show of its finished stages: sections of the report."""
    tested: dict[str, list[Tested]] = {}
    for row in summary["rows"]:
        if row["role"] == "baseline":
            continue
        found, learner = made.of(row["stage"]) / "test.npz", made.learners[row["stage"]]
        if found.exists():
            tested.setdefault(learner.stage.task, []).append(Tested(row, learner.dataset, np.load(found)["predicted"]))
    shown: dict[str, str] = {}
    for stages in tested.values():
        shown |= made.learners[stages[-1].row["stage"]].task.pictures(stages)
    return shown


def hardware() -> str:
    """What the numbers were measured on."""
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    if jax.devices()[0].platform != "cpu":
        return f"{count} x {kind}"
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = []
    return f"{os.cpu_count()} x {models[0] if models else platform.processor() or 'CPU'}"
