"""The outcome of a run: tests its stages, sums them up and shows them."""

import csv
import os
import platform
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

from kdjax.config import ConfigError, task_of
from kdjax.data import transforms
from kdjax.data.fields import readable
from kdjax.experiment.cost import costs
from kdjax.experiment.plan import judged
from kdjax.experiment.saved import to_json
from kdjax.experiment.workdir import Run, fault, result_of
from kdjax.report import tables, trackers
from kdjax.report.disagreements import disagreements
from kdjax.report.metrics import cka
from kdjax.tasks.task import Tested
from kdjax.train import kept
from kdjax.train.evaluation import evaluate
from kdjax.train.finish import count
from kdjax.train.setup import Learner
from kdjax.train.step import as_floats

WIDEST = 512  # channels of a layer that is compared with others: more say little of as few nodes
COSTS, SUMMARY = "costs.json", "summary.json"
AGAIN = "remove it and run the same command again: it is measured anew"
REPORT = "make it anew with `kdjax report` and its folder"
FILES = (kept.CHECKSUMS, "data")  # what a result says of files alone
SHOWN = 4  # images whose feature maps the report shows


def test(learner: Learner, variables: dict, folder: Path | None, calibrated: dict[str, float]) -> dict:
    """Scores a model on the test data; predictions and a table go to `folder`."""
    variables = learner.place(variables)
    predictions = cache(lambda split: evaluate(learner, variables, split)[1])
    result, table = learner.task.test(predictions, learner.dataset, calibrated)
    if folder is not None and jax.process_index() == 0:
        np.savez_compressed(folder / "test.npz", **predictions("test"))  # type: ignore[arg-type]
        with open(folder / "test.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(table)
    return {"test_images": learner.dataset.sizes["test"], **result}


def from_files(learner: Learner, given: dict[str, dict]) -> dict[str, tuple[Learner, dict]]:
    """The teachers that come from a file of weights and do the student's task, each as a learner on the student's data;
    those that are stages are learners already."""
    teachers = {}
    for key, network in learner.teachers.items():
        teacher = learner.stage.teachers[key]
        if not teacher.weights or teacher.method:
            continue
        try:
            learner.task.check(network.shapes(given[key], shapes(learner)))
        except ConfigError:
            continue
        inputs = {name: transforms.mixed(field) for name, field in teacher.inputs.items()}  # nothing is mixed in a test
        stage = replace(learner.stage, inputs=inputs, title=f"{key} ({Path(teacher.weights).name})")
        teachers[key] = replace(learner, model=network.model, stage=stage), given[key]
    return teachers


def beside(learner: Learner, given: dict[str, dict]) -> list[dict]:
    """Rows of what a student is compared with besides the stages: its teachers from files."""
    return [
        {"title": of.stage.title, "role": "teacher", "from_file": key, "parameters": count(variables["params"])}
        | test(of, variables, None, {})
        for key, (of, variables) in from_files(learner, given).items()
    ]


def shapes(learner: Learner) -> dict:
    """Of a batch as models read it."""
    return jax.eval_shape(as_floats, learner.dataset.shapes(learner.dataset.axis(learner.stage.data.batch_size)))


def compare(opened: Run, learner: Learner, variables: dict, folder: Path) -> dict:
    """How alike a student and its first frozen teacher see the validation data: the CKA of their layers where these
    give rows for nodes, and, as a file, the maps that a term compares where they give maps of images."""
    if not learner.teachers:
        return {}
    key, network = next(iter(learner.teachers.items()))
    compared = maps_compared(learner, key)
    images = [name for name, field in learner.dataset.fields.items() if field.kind == "image"]
    if not (compared and images) and "graphs" not in learner.dataset.fields:
        return {}
    networks = {"teacher": network, "student": learner.student}
    given = {"teacher": opened.teachers(learner.stage)[key], "student": variables}
    batch = next(iter(learner.dataset.evaluate("val", learner.stage.data.batch_size)))
    outputs = {
        side: jax.device_get(jax.jit(lambda v, b, n=net: n(v, as_floats(b))[0])(given[side], batch))
        for side, net in networks.items()
    }
    if compared and images and jax.process_index() == 0:
        maps = {side: outputs[side][name][:SHOWN].astype(np.float16) for side, name in compared.items()}
        np.savez_compressed(folder / "maps.npz", image=batch[images[0]][:SHOWN], **maps)  # type: ignore[arg-type]
    nodes = readable(batch).get("nodes")
    return likeness(outputs, np.asarray(nodes)) if nodes is not None else {}


def likeness(outputs: dict[str, dict], nodes: np.ndarray) -> dict:
    layers = {
        side: {
            name: x[nodes]
            for name, x in of_side.items()
            if x.shape[:2] == nodes.shape and x.ndim == 3 and 2 < x.shape[2] <= WIDEST
        }
        for side, of_side in outputs.items()
    }
    if not all(layers.values()):
        return {}
    alike = cka.similarities(layers["teacher"], layers["student"])
    return {"likeness": {"cka": alike.tolist(), **{side: list(named) for side, named in layers.items()}}}


def maps_compared(learner: Learner, key: str) -> dict[str, str]:
    """The endpoints of teacher and student that a term compares as maps [b, h, w, c]; {} where there are none."""
    for bound in learner.terms:
        teacher, _, endpoint = bound.term.teacher.partition(":")
        shapes = [shape.shape for shape in jax.tree.leaves(bound.examples)]
        if teacher == key and len(shapes) == 2 and all(len(shape) == 4 and shape[-1] > 3 for shape in shapes):
            return {"teacher": endpoint, "student": bound.term.student}
    return {}


def measure_costs(opened: Run) -> None:
    """Writes what the finished models cost, all measured in one go, where that is not known yet."""
    models: dict[str, tuple[Learner, dict]] = {}
    path, finished = opened.folder / COSTS, [name for name in opened.learners if opened.finished(name)]
    if path.exists() and kept.read_json(path, AGAIN)["of"] == finished:
        return
    for name in finished:
        learner = opened.learners[name]
        if not learner.stage.auxiliary:
            models[name] = learner, opened.weights(name)
            teachers = from_files(learner, opened.teachers(learner.stage))
            models |= {f"{name}/{key}": of_file for key, of_file in teachers.items()}
    measured = costs(models)
    if jax.process_index() == 0:
        kept.write_json(path, {"of": finished, "costs": measured})


def summarise(opened: Run, skipped: dict[str, str] | None = None) -> dict:
    """What the tables and the report show. `skipped` says why stages did not run."""
    stages = {name: learner.stage for name, learner in opened.learners.items()}
    teaching = {t.stage for stage in stages.values() for t in stage.teachers.values()}
    results = {name: result for name in stages if (result := result_of(opened.folder_of(name)))}
    known = opened.folder / COSTS
    cost = kept.read_json(known, AGAIN)["costs"] if known.exists() else {}
    rows = []
    for name, stage in stages.items():
        if stage.auxiliary or name not in results:
            continue
        control = name.endswith("_control")
        role = "control" if control else "student" if stage.teachers else "teacher" if name in teaching else "other"
        teachers = [t.stage or name for t in stage.teachers.values() if t.stage or t.weights]
        row = {"stage": name, "role": role, "teachers": teachers}  # the rows of teachers from files are of this stage
        row |= {k: v for k, v in results[name].items() if k not in FILES} | cost.get(name, {})
        others = [{"stage": name, "role": "baseline", **other} for other in row.pop("beside", [])]
        from_files = [other | cost.get(f"{name}/{other['from_file']}", {}) for other in others if "from_file" in other]
        rows += [*from_files, row, *(other for other in others if "from_file" not in other)]
    last = opened.learners[rows[-1]["stage"]] if rows else next(reversed(opened.learners.values()))
    return {
        "name": opened.experiment.name,
        "seed": opened.experiment.seed,
        "seconds": sum(result["seconds"] for result in results.values()),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "numpy")},
        "num_classes": last.stage.data.num_classes,
        "test_images": (rows[-1] if rows else {}).get("test_images", last.dataset.sizes["test"]),
        "item": last.dataset.item,
        "image_size": last.stage.data.image_size,
        "data": data_of(opened),
        **last.task.words(last.dataset),
        "skipped": skipped or {},
        **gates(opened),
        "warnings": opened.warnings,
        "disagreements": disagreements(rows),
        "rows": rows,
    }


def gates(opened: Run) -> dict[str, list[str]]:
    """What the gates of finished stages have decided, and why, and those that were not reached once more."""
    told: dict[str, list[str]] = {"gates": [], "unreached": []}
    for name, learner in opened.learners.items():
        gate, result = learner.stage.gate, result_of(opened.folder_of(name))
        if gate and result and (verdict := judged(name, gate, learner.task.primary, result["best"])):
            told["gates"].append(verdict)
            told["unreached"] += [verdict] if result["best"] < gate.at_least else []
    return told


def data_of(opened: Run) -> list[str]:
    """The data of the stages, told once for all that read the same."""
    readers: dict[str, list[str]] = {}
    for name, learner in opened.learners.items():
        counts = ", ".join(f"{n} {split}" for split, n in learner.dataset.sizes.items())
        data = learner.stage.data
        readers.setdefault(f"{data.source}, {counts}; {data.labelled:.0%} of train labelled", []).append(name)
    return [data + (f" ({', '.join(names)})" if len(readers) > 1 else "") for data, names in readers.items()]


def report(opened: Run, summary: dict) -> None:
    """`summary.json`, `test_results.txt` and `report.html`, from what lies in the working directory."""
    from kdjax.report import page  # matplotlib takes its time, and training needs none of it

    folder = opened.folder
    curves = {
        learner.stage.title or name: trackers.read(path)
        for name, learner in opened.learners.items()
        if not fault(path := opened.folder_of(name) / trackers.METRICS)
    }
    html = page.render(summary, curves, pictures(opened, summary), to_json(opened.experiment))
    kept.write_json(folder / SUMMARY, summary)
    kept.write(folder / "test_results.txt", tables.results(summary))
    kept.write(folder / "report.html", html)


def showable(path: Path) -> bool:
    """Whether a file that the report alone needs is there, as its stage left it; of a damaged one the start told."""
    return path.exists() and not fault(path)


def pictures(opened: Run, summary: dict) -> dict[str, str]:
    """What each task that was learned has to show of its finished stages, and feature maps: sections of the report."""
    tested: dict[str, list[Tested]] = {}
    maps = ""
    for row in summary["rows"]:
        if row["role"] == "baseline" or "from_file" in row:
            continue
        folder, learner = opened.folder_of(row["stage"]), opened.learners[row["stage"]]
        if showable(folder / "test.npz"):
            predictions = dict(np.load(folder / "test.npz"))
            tested.setdefault(task_of(learner.stage).name, []).append(Tested(row, learner.dataset, predictions))
        maps += feature_maps(row, folder / "maps.npz")
    sections: dict[str, str] = {}
    for stages in tested.values():
        sections |= opened.learners[stages[-1].row["stage"]].task.pictures(stages)
    return sections | ({"Feature maps": maps} if maps else {})


def feature_maps(row: dict, path: Path) -> str:
    from kdjax.report.figures import features

    if not showable(path):
        return ""
    with np.load(path) as arrays:
        sides = {
            "teacher": list(arrays["teacher"].astype(np.float32)),
            row["title"]: list(arrays["student"].astype(np.float32)),
        }
        return features.maps(arrays["image"], sides)


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
