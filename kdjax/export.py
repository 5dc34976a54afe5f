"""A trained stage as files to deploy, each compared with the checkpoint before it is called done."""

import datetime
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kdjax import checks, config
from kdjax import experiment as running
from kdjax.config import ConfigError, Experiment, Stage
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.predict import chosen, load
from kdjax.weights import safetensors, stablehlo

TOLERANCE = 1e-5  # relative to the largest logit
BATCHES = (1, 3)  # what the StableHLO is tried on
SIGNATURE = "signature.json"  # written last: a folder without it is no export


def export(experiment: Experiment, workdir: str | Path, stage: str = "", weights: str = "", output: str = "") -> dict:
    """Writes model.safetensors, model.stablehlo, the PyTorch file and signature.json, and returns what the latter says.

    Without a name it is the last stage with teachers. A stage's weights have LoRA merged and no adapters. An earlier
    export in the same folder stays until the new one is whole.
    """
    checks.validate(experiment)
    if jax.process_count() > 1:
        raise ConfigError("--mode=export runs in one process; leave --coordinator out")
    name, of = chosen(experiment, stage)
    path, whole = load(of, Path(workdir), name, weights)
    folder = Path(output).expanduser() if output else Path(workdir) / "export" / name
    if folder.exists() and not (folder / SIGNATURE).is_file():
        raise ConfigError(f"{folder} exists and is no earlier export; choose another --output")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        files = {
            "model.safetensors": _safetensors(partial / "model.safetensors", of, whole),
            "model.stablehlo": _stablehlo(partial / "model.stablehlo", of, whole),
            **_pytorch(partial, of, whole),
        }
        found = {"stage": name, "weights": str(path), **signature(of), "files": files}
        running.write(partial / SIGNATURE, json.dumps(found, indent=1) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return {"folder": folder, **found}


def signature(stage: Stage) -> dict[str, Any]:
    """What a program needs to know to use the files."""
    side, classes = stage.data.image_size, stage.data.num_classes
    spec = build_model(stage.model).input_spec
    binary = "1 channel, the logit of the foreground: it is there where logits > 0"
    several = f"{classes} channels, a logit for each class: the class is their argmax"
    return {
        "model": {"name": stage.model.name, "options": config.to_dict(stage.model.options)},
        "input": {
            "image": {"shape": ["b", side, side, 3], "dtype": "float32", "range": [0, 1]},
            "how": f"RGB resized to {side} x {side} (bilinear) and divided by 255",
        },
        "output": {"logits": {"dtype": "float32", "how": binary if classes == 2 else several}},
        "inside": {"image_size": spec.size, "mean": list(spec.mean), "std": list(spec.std)},
    }


def _safetensors(path: Path, stage: Stage, whole: dict) -> dict:
    safetensors.save(path, whole, safetensors.about(stage.model))
    if safetensors.fingerprint(safetensors.load(path)[0]) != safetensors.fingerprint(whole):
        raise safetensors.WeightsError(f"{path}: what was written is not what was to be; try again, on another disk")
    return {"bytes": path.stat().st_size, "how": "kdjax.load(model, path)", "compared": "every bit"}


def _stablehlo(path: Path, stage: Stage, whole: dict) -> dict:
    network, side = Network(build_model(stage.model, stage.dtype)), stage.data.image_size

    def logits(variables: dict, image: jax.Array) -> dict[str, jax.Array]:
        return {"logits": network(variables, {"image": image})[0]["logits"].astype("float32")}

    stablehlo.save(path, logits, whole, [((side, side, 3), "float32")])
    loaded, ours, worst = stablehlo.load(path), jax.jit(logits), 0.0
    for b in BATCHES:
        image = np.random.default_rng(b).random((b, side, side, 3), np.float32)
        found, expected = (np.asarray(x["logits"]) for x in (loaded(image), ours(whole, image)))
        worst = max(worst, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-9)))
    if not worst <= TOLERANCE:
        raise safetensors.WeightsError(
            f"{path}: its logits are {worst:.1e} (relative) from the checkpoint's, allowed is {TOLERANCE:.0e}"
        )
    until = datetime.date.today() + datetime.timedelta(days=30 * stablehlo.MONTHS)
    return {
        "bytes": path.stat().st_size,
        "how": "jax.export.deserialize(bytearray(open(path, 'rb').read())).call(image)",
        "platforms": list(stablehlo.PLATFORMS),
        "jax": jax.__version__,
        "expires": f"{until}: until then, at least, newer versions of jax read it; export again, or keep this version",
        "compared": f"logits of {' and '.join(map(str, BATCHES))} images, relative error {worst:.1e}",
    }


def _pytorch(folder: Path, stage: Stage, whole: dict) -> dict:
    """A file in the original's names, where there is an original; without PyTorch it is a safetensors."""
    from convert import families
    from convert.export import export_file, family_of

    family = family_of(families.all(), stage.model)
    if family is None:
        return {}
    name = "model.pth" if importlib.util.find_spec("torch") else "model_pytorch.safetensors"
    count = export_file(family, stage.model, whole, folder / name)
    how = f"load_state_dict(..., strict=True) of {family.told}"
    return {name: {"bytes": (folder / name).stat().st_size, "how": how, "compared": f"{count} tensors, every bit"}}
