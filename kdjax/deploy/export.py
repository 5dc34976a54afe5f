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
from kdjax.data.fields import IMAGE_THERE, TEXT_THERE
from kdjax.data.graphs.packs import KEEPSAKE
from kdjax.data.images.resize import RULE
from kdjax.data.text.tokens import IDS, MASK
from kdjax.deploy.answer import PARTS, heads
from kdjax.deploy.pictures import bits_of
from kdjax.deploy.predict import Kept, calibrated, chosen, keepsakes_in, load
from kdjax.deploy.tokens import reader_of
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks
from kdjax.tasks.answers import SHARES
from kdjax.train import kept
from kdjax.train.setup import task_of
from kdjax.weights import safetensors, stablehlo

TOLERANCE = 1e-5  # relative to the largest output
BATCHES = (1, 3)  # what the StableHLO is tried on
SIGNATURE = "signature.json"  # written last: a folder without it is no export
PYTORCH = ("model.pth", "model_pytorch.safetensors")  # the second where there is no PyTorch
FILES = {SIGNATURE, "model.safetensors", "model.stablehlo", *PYTORCH}
READ = """\
import numpy as np
from PIL import Image, ImageOps
def read(path):  # -> float32 [1, {side}, {side}, 3]
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB").resize(({side}, {side}), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)[None] / 255
"""
DECIDE = """\
def mask(logits, height, width):  # of one image, [h, w, k] -> class ids uint8 [height, width]
    planes = np.moveaxis(np.asarray(logits, np.float32), -1, 0)
    large = [Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    large = np.stack([np.asarray(plane) for plane in large], axis=-1)
    return ({decided}).astype(np.uint8)
"""

TOKENS = """\
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file("{file}")  # in the folder of this export
tokenizer.enable_truncation({length})
tokenizer.enable_padding(length={length}, pad_id={pad_id}, pad_token="{pad}")
def tokens(caption):  # "" where there is none -> input_ids and attention_mask, int32 [1, {length}]
    encoded = tokenizer.encode(caption)
    return np.array([encoded.ids], np.int32), np.array([encoded.attention_mask], np.int32)
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
    read: Callable[[dict, dict], dict[str, jax.Array]]  # the outputs, of the model's outputs and the batch
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
            **_keepsakes(partial, loaded),
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
        foreign = names - FILES - set(keepsakes_in(folder))
        if SIGNATURE not in names or foreign:
            more = f": it holds {', '.join(sorted(foreign))}" if foreign else ""
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
        code += DECIDE.format(decided="large[..., 0] > 0" if classes == 2 else "large.argmax(axis=-1)")
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

    return Form({"image": ((side, side, 3), "float32")}, example, dict, _only("logits"), "images", described)


def records(loaded: Kept) -> Form:
    """Images with captions -> logits of each label, and how both are weighed where the model tells it."""
    model, side, bits = build_model(loaded.stage.model), loaded.stage.data.image_size, bits_of(loaded.stage) or 16
    by_label, code = heads(loaded), "import numpy as np\n"
    shapes: dict[str, tuple[int, ...]] = {"image": (side, side, 3), IMAGE_THERE: (), TEXT_THERE: ()}
    dtypes = {"image": "float32", IMAGE_THERE: "bool", TEXT_THERE: "bool", IDS: "int32", MASK: "int32"}
    meant = {
        "image": f"RGB in [0, 1], upright by its EXIF, of {bits} bits the upper 8; resized to {side} x {side}",
        IMAGE_THERE: "False where a record has no image, which is then black",
        TEXT_THERE: "False where it has no caption, which is then empty",
    }
    largest, told = 1, {}
    if "image" in model.inputs:
        code, told = READ.format(side=side), {"resize": RULE}
    if IDS in model.inputs:
        reader = reader_of(loaded, model)
        words = reader.tokenizer
        shapes |= {IDS: (words.length,), MASK: (words.length,)}
        cut = f"of {reader.path.name}, cut at {words.length} and padded with {words.pad_id}"
        meant |= {IDS: f"the tokens of the caption, {cut}", MASK: "1 for a token, 0 for padding"}
        code += TOKENS.format(file=reader.path.name, length=words.length, pad_id=words.pad_id, pad=words.pad)
        largest = words.vocab_size
    inputs: dict[str, tuple[tuple[int | str, ...], str]] = {name: (shapes[name], dtypes[name]) for name in model.inputs}
    shown = {k: {"shape": ["b", *shape], "dtype": dtype, "how": meant[k]} for k, (shape, dtype) in inputs.items()}
    answered = {
        head.logits: {"label": label, "classes": head.classes, "temperature": head.temperature}
        for label, head in by_label.items()
    }
    how = "a logit for each class: the class is their argmax, softmax(logits / temperature) its probability"
    shares = (SHARES,) if SHARES in model.endpoints else ()
    weighed = {name: {"shape": ["b", 2], "how": f"how {' and '.join(PARTS)} are weighed"} for name in shares}
    described = {"input": {**shown, **told}, "output": {**answered, **weighed, "how": how}, "code": code.splitlines()}

    def example(b: int) -> Arrays:
        rng, arrays = np.random.default_rng(b), {}
        for name in inputs:
            drawn = rng.random((b, *shapes[name]), np.float32)
            drawn = drawn if name == "image" else drawn * (largest if name == IDS else 2)
            arrays[name] = drawn.astype(dtypes[name])
            if name == MASK:  # the first has one token, the next one two
                arrays[name] = (np.arange(drawn.shape[1]) <= np.arange(b)[:, None]).astype(dtypes[name])
        return arrays

    return Form(inputs, example, dict, _only(*answered, *shares), "records", described)


def graphs(loaded: Kept) -> Form:
    """Packs of graphs -> a score of each graph, as in `--mode=predict`."""
    task = task_of(loaded.stage)
    cut = json.loads(loaded.keepsakes[KEEPSAKE].read_text()) if KEEPSAKE in loaded.keepsakes else {}
    how = "packs of graphs, made as those of training"
    if cut:
        how = (
            f"windows of {cut['window']} messages, one every {cut['stride']}, made graphs of generation "
            f"{cut['generation']}; {KEEPSAKE} has the ids in the order of their indices"
        )
    limit = calibrated(loaded.about)
    output = {"score": {"shape": ["b", "g"], "dtype": "float32", "how": "an attack where score > threshold"} | limit}
    return _graphs(loaded, how, lambda outputs, batch: {"score": task.predict(outputs, batch)["score"]}, output)


def nodes(loaded: Kept) -> Form:
    """One graph -> logits of each of its nodes."""
    output = {"logits": {"shape": ["b", "n", "k"], "dtype": "float32", "how": "a node's class is their argmax"}}
    return _graphs(loaded, "the graph, and a graph of one node as padding", _only("logits"), output)


FORMS = {"images": images, "records": records, "graphs": graphs, "nodes": nodes}


def _only(*names: str) -> Callable[[dict, dict], dict[str, jax.Array]]:
    return lambda outputs, batch: {name: outputs[name] for name in names}


def _graphs(loaded: Kept, how: str, read: Callable, output_spec: dict) -> Form:
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

    return Form(inputs, example, batch, read, "packs", {"input": {**shown, "how": how}, "output": output_spec})


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
        return {name: x.astype("float32") for name, x in form.read(network(variables, batch)[0], batch).items()}

    stablehlo.save(path, run, loaded.whole, list(form.inputs.values()))
    program, ours, errors = stablehlo.load(path), jax.jit(run), {}
    for b in BATCHES:
        arrays = form.example(b).values()
        actual, expected = program(*arrays), ours(loaded.whole, *arrays)
        errors |= {name: max(errors.get(name, 0.0), relative_error(actual[name], y)) for name, y in expected.items()}
    outputs, worst = ", ".join(errors), float(np.max([*errors.values()]))  # nan, too
    if not worst <= TOLERANCE:
        raise safetensors.WeightsError(
            f"{path}: its {outputs} are {worst:.1e} (relative) from the checkpoint's, allowed is {TOLERANCE:.0e}"
        )
    until = datetime.date.today() + datetime.timedelta(days=30 * stablehlo.MONTHS)
    return {
        "bytes": path.stat().st_size,
        "how": f"jax.export.deserialize(bytearray(open(path, 'rb').read())).call({', '.join(form.inputs)})",
        "platforms": list(stablehlo.PLATFORMS),
        "jax": jax.__version__,
        "expires": f"{until}: until then, at least, newer versions of jax read it; export again, or keep this version",
        "compared": f"{outputs} of {' and '.join(map(str, BATCHES))} {form.item}, relative error {worst:.1e}",
    }


def relative_error(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual), np.asarray(expected)
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-9))


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


def _keepsakes(folder: Path, loaded: Kept) -> dict:
    """How logs become graphs, or captions tokens."""
    copied = {}
    for name, file in loaded.keepsakes.items():
        shutil.copyfile(file, folder / name)
        how = "tokenizers.Tokenizer.from_file(path), or transformers.PreTrainedTokenizerFast(tokenizer_file=path)"
        if name == KEEPSAKE:
            how = "generation, window and stride, and the known ids by index; one that is not there has the next index"
        copied[name] = {"bytes": file.stat().st_size, "how": how, "compared": "every bit"}
    return copied
