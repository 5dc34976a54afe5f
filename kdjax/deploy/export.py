"""A trained stage as files to deploy, each compared with the checkpoint before it is called done."""

import datetime
import importlib.util
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jraph
import numpy as np

from kdjax import config
from kdjax.config import ConfigError, Experiment
from kdjax.data import pipeline
from kdjax.data.graphs.packs import KEEPSAKE
from kdjax.data.images.resize import RULE
from kdjax.deploy.pictures import bits_of
from kdjax.deploy.predict import Kept, calibrated, chosen, load
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks
from kdjax.train import kept
from kdjax.train.setup import task_of
from kdjax.weights import safetensors, stablehlo

TOLERANCE = 1e-5  # relative to the largest output
BATCHES = (1, 3)  # what the StableHLO is tried on
SIGNATURE = "signature.json"  # written last: a folder without it is no export
PYTORCH = ("model.pth", "model_pytorch.safetensors")  # the second where there is no PyTorch
FILES = {SIGNATURE, "model.safetensors", "model.stablehlo", KEEPSAKE, *PYTORCH}
READ = """\
import numpy as np
from PIL import Image, ImageOps
def read(path):  # -> float32 [1, {side}, {side}, 3]
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize(({side}, {side}), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)[None] / 255
"""
MASK = """\
def mask(logits, height, width):  # of one image, [h, w, k] -> class ids uint8 [height, width]
    planes = np.moveaxis(np.asarray(logits, np.float32), -1, 0)
    large = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    large = np.stack([np.asarray(plane) for plane in large], axis=-1)
    return ({decided}).astype(np.uint8)
"""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Form:
    """What the program in the StableHLO file reads and gives, which depends on the kind of the data."""

    inputs: dict[
        str, tuple[tuple[int | str, ...], str]
    ]  # shape without the batch, and dtype; a size with a name is any
    example: Callable[[int], Arrays]  # random inputs
    batch: Callable[[dict], dict]  # of the inputs
    output: str
    read: Callable[[dict, dict], jax.Array]  # of the model's outputs and the batch
    item: str
    told: dict[str, Any]  # of it in the signature


def export(experiment: Experiment, workdir: str | Path, stage: str = "", weights: str = "", output: str = "") -> dict:
    """Writes model.safetensors, model.stablehlo, the PyTorch file and signature.json, and returns what the latter says.

    Without a name it is the last stage with teachers. A stage's weights have LoRA merged and no adapters. An earlier
    export in the same folder stays until the new one is whole.
    """
    checks.validate(experiment)
    if jax.process_count() > 1:
        raise ConfigError("--mode=export runs in one process; leave --coordinator out")
    name, plain = chosen(experiment, stage)
    loaded = load(plain, Path(workdir), name, weights)
    folder = Path(output).expanduser() if output else Path(workdir) / "export" / name
    if not output and not folder.resolve().is_relative_to(Path(workdir).resolve()):
        raise ConfigError(f"{folder} leads out of the working directory; remove the link, or name an --output")
    refuse_foreign(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = {
            "model.safetensors": _safetensors(partial / "model.safetensors", loaded),
            "model.stablehlo": _stablehlo(partial / "model.stablehlo", loaded),
            **_pytorch(partial, loaded),
            **_keepsake(partial, loaded),
        }
        record = {"stage": name, "weights": str(loaded.path), **signature(loaded), "files": files}
        kept.write(partial / SIGNATURE, json.dumps(record, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"folder": folder, **record}


def refuse_foreign(folder: Path) -> None:
    """Refuses a folder to replace unless an earlier export has written everything in it."""
    if folder.exists():
        names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        if SIGNATURE not in names or names - FILES:
            more = f": it holds {', '.join(sorted(names - FILES))}" if names - FILES else ""
            raise ConfigError(f"{folder} exists and is no earlier export{more}; choose another --output")


def signature(loaded: Kept) -> dict[str, Any]:
    """What a program needs to know to use the files."""
    model = loaded.stage.model
    described = {"name": model.name, "options": config.to_dict(model.options)}
    return {"model": described, **FORMS[pipeline.kind(loaded.stage.data)](loaded).told}


def images(loaded: Kept) -> Form:
    """Images -> logits."""
    data = loaded.stage.data
    side, classes, bits = data.image_size, data.num_classes, bits_of(loaded.stage) or 16
    spec = build_model(loaded.stage.model).inputs["image"]
    binary = "1 channel, the logit of the foreground: it is there where logits > 0"
    several = f"{classes} channels, a logit for each class: the class is their argmax"
    described = {
        "input": {
            "image": {"shape": ["b", side, side, 3], "dtype": "float32", "range": [0, 1]},
            "how": f"RGB, upright by its EXIF, of {bits} bits the upper 8; resized to {side} x {side}, divided by 255",
            "resize": RULE,
        },
        "output": {"logits": {"dtype": "float32", "how": binary if classes == 2 else several}},
        "inside": {"image_size": spec.size, "mean": list(spec.mean), "std": list(spec.std), "resize": RULE},
    }
    code = READ.format(side=side)
    if config.task_of(loaded.stage).name == "segmentation":
        described["output"]["how"] = "at the size of an image: the logits are resized by the same rule, then decided"
        code += MASK.format(decided="large[..., 0] > 0" if classes == 2 else "large.argmax(axis=-1)")
    if config.task_of(loaded.stage).name == "detection":
        limit, kinds = (
            calibrated(loaded.about).get("threshold", 0.0),
            json.loads(loaded.about.get("image_classes", "[]")),
        )
        described["output"] |= {"how": "the logit of class 1, which it is above the threshold", "threshold": limit}
        described["output"] |= {"classes": kinds} if kinds else {}
    if data.classes:
        described["output"]["classes"] = ["background", *data.classes]
    described["code"] = code.splitlines()

    def example(b: int) -> Arrays:
        return {"image": np.random.default_rng(b).random((b, side, side, 3), np.float32)}

    return Form({"image": ((side, side, 3), "float32")}, example, dict, "logits", _logits, "images", described)


def graphs(loaded: Kept) -> Form:
    """Packs of graphs -> a score of each graph, as in `--mode=predict`."""
    task = task_of(loaded.stage)
    cut = json.loads(loaded.keepsake.read_text()) if loaded.keepsake else {}
    how = "packs of graphs, made as those of training"
    if cut:
        how = (
            f"windows of {cut['window']} messages, one every {cut['stride']}, made graphs of generation "
            f"{cut['generation']}; {loaded.keepsake.name} has the ids in the order of their indices"  # type: ignore
        )
    limit = calibrated(loaded.about)
    output = {"score": {"shape": ["b", "g"], "dtype": "float32", "how": "an attack where score > threshold"} | limit}
    return _graphs(loaded, how, "score", lambda outputs, batch: task.predict(outputs, batch)["score"], output)


def nodes(loaded: Kept) -> Form:
    """One graph -> logits of each of its nodes."""
    output = {"logits": {"shape": ["b", "n", "k"], "dtype": "float32", "how": "a node's class is their argmax"}}
    return _graphs(loaded, "the graph, and a graph of one node as padding", "logits", _logits, output)


FORMS = {"images": images, "graphs": graphs, "nodes": nodes}


def _logits(outputs: dict, batch: dict) -> jax.Array:
    return outputs["logits"]


def _graphs(loaded: Kept, how: str, output: str, read: Callable, output_spec: dict) -> Form:
    spec = build_model(loaded.stage.model).inputs["graphs"]
    inputs = {
        "x": (("n", spec.features), "float32"),
        "id": (("n",), "int32"),
        "senders": (("e",), "int32"),
        "receivers": (("e",), "int32"),
        "n_node": (("g",), "int32"),
        "n_edge": (("g",), "int32"),
    }
    meant = {
        "x": "features of each node",
        "id": "index of each node's id; 0 where there are none",
        "senders": "the node that an edge comes from",
        "receivers": "the node that it goes to",
        "n_node": "how many nodes each graph has; nodes lie graph by graph, and padding is a graph of its own",
        "n_edge": "how many edges each graph has",
    }
    shown = {k: {"shape": ["b", *shape], "dtype": dtype, "how": meant[k]} for k, (shape, dtype) in inputs.items()}

    def example(b: int) -> Arrays:
        rng, g, n, e = np.random.default_rng(b), b + 1, 9 * b, 15 * b
        graph = np.sort(rng.integers(0, g, (b, n)), axis=1)
        senders = np.sort(rng.integers(0, n - 1, (b, e), np.int32), axis=1)
        sending = np.take_along_axis(graph, senders, 1)
        counts = lambda graph: np.stack([np.bincount(row, minlength=g) for row in graph]).astype(np.int32)  # noqa: E731
        return {
            "x": rng.random((b, n, spec.features), np.float32),
            "id": rng.integers(0, max(1, spec.num_ids), (b, n), np.int32),
            "senders": senders,
            "receivers": senders + (np.take_along_axis(graph, senders + 1, 1) == sending),
            "n_node": counts(graph),
            "n_edge": counts(sending),
        }

    def batch(inputs: dict) -> dict:
        nodes = {name: inputs[name] for name in ("x", "id")}
        rest = {name: value for name, value in inputs.items() if name not in nodes}
        return {"graphs": jraph.GraphsTuple(nodes=nodes, edges=None, globals=None, **rest)}

    return Form(inputs, example, batch, output, read, "packs", {"input": {**shown, "how": how}, "output": output_spec})


def _safetensors(path: Path, loaded: Kept) -> dict:
    about = {**safetensors.about(loaded.stage.model), **{k: repr(v) for k, v in calibrated(loaded.about).items()}}
    safetensors.save(path, loaded.whole, about)
    if safetensors.fingerprint(safetensors.load(path)[0]) != safetensors.fingerprint(loaded.whole):
        raise safetensors.WeightsError(f"{path}: what was written is not what was to be; try again, on another disk")
    return {"bytes": path.stat().st_size, "how": "kdjax.load(model, path)", "compared": "every bit"}


def _stablehlo(path: Path, loaded: Kept) -> dict:
    form = FORMS[pipeline.kind(loaded.stage.data)](loaded)
    network = Network(build_model(loaded.stage.model, loaded.stage.dtype))

    def run(variables: dict, *arrays: jax.Array) -> dict[str, jax.Array]:
        batch = form.batch(dict(zip(form.inputs, arrays, strict=True)))
        return {form.output: form.read(network(variables, batch)[0], batch).astype("float32")}

    stablehlo.save(path, run, loaded.whole, list(form.inputs.values()))
    program, ours, worst = stablehlo.load(path), jax.jit(run), 0.0
    for b in BATCHES:
        arrays = form.example(b).values()
        actual, expected = (np.asarray(x[form.output]) for x in (program(*arrays), ours(loaded.whole, *arrays)))
        worst = max(worst, float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-9)))
    if not worst <= TOLERANCE:
        raise safetensors.WeightsError(
            f"{path}: its {form.output} are {worst:.1e} (relative) from the checkpoint's, allowed is {TOLERANCE:.0e}"
        )
    until = datetime.date.today() + datetime.timedelta(days=30 * stablehlo.MONTHS)
    return {
        "bytes": path.stat().st_size,
        "how": f"jax.export.deserialize(bytearray(open(path, 'rb').read())).call({', '.join(form.inputs)})",
        "platforms": list(stablehlo.PLATFORMS),
        "jax": jax.__version__,
        "expires": f"{until}: until then, at least, newer versions of jax read it; export again, or keep this version",
        "compared": f"{form.output} of {' and '.join(map(str, BATCHES))} {form.item}, relative error {worst:.1e}",
    }


def _pytorch(folder: Path, loaded: Kept) -> dict:
    """A file in the original's names, where there is an original; without PyTorch it is a safetensors."""
    from convert import families
    from convert.export import export_file, family_of, loading

    model = loaded.stage.model
    family = family_of(families.all(), model)
    if family is None:
        return {}
    name = PYTORCH[0] if importlib.util.find_spec("torch") else PYTORCH[1]
    count = export_file(family, model, loaded.whole, folder / name, loaded.about)
    how = f"{loading(family, folder / name, loaded.about)}; {family.told}"
    return {name: {"bytes": (folder / name).stat().st_size, "how": how, "compared": f"{count} tensors, every bit"}}


def _keepsake(folder: Path, loaded: Kept) -> dict:
    if loaded.keepsake is None:
        return {}
    shutil.copyfile(loaded.keepsake, folder / loaded.keepsake.name)
    how = "generation, window and stride, and the known ids by index; one that is not there has the next index"
    return {loaded.keepsake.name: {"bytes": loaded.keepsake.stat().st_size, "how": how, "compared": "every bit"}}
