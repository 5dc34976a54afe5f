"""The end of a stage: the best epoch's model, calibrated on validation data, as a file."""

import json
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from kdjax.train import kept, sharding
from kdjax.train.evaluation import evaluate
from kdjax.train.recording import Record
from kdjax.train.setup import Learner
from kdjax.weights import safetensors


def finish(learner: Learner, folder: Path, record: Record, fixed: dict) -> dict[str, Any]:
    """Leaves `model.safetensors` of the best epoch in `folder`; returns what there is to tell of the stage."""
    if fault := record.fault(folder):
        raise kept.Damaged(f"{fault}; put it back, or remove {folder / 'checkpoints'} to start this stage over")
    best, _ = safetensors.load(folder / Path(record.best_file).name)
    best = learner.place({"params": best["params"], "collections": best.get("collections", {})})
    variables = learner.whole_fn(best["params"], best["collections"], fixed["frozen"])
    calibrated = learner.task.calibrate(evaluate(learner, variables, "val")[1], learner.dataset)
    about = {
        **safetensors.about(learner.stage.model),
        **{k: repr(v) for k, v in calibrated.items()},
        **classes(learner),
    }
    keep(folder / "model.safetensors", variables, about)
    if jax.process_index() == 0:
        for name, keepsake in learner.dataset.keepsakes.items():
            kept.write(folder / name, json.dumps(keepsake))
    return {
        "calibrated": calibrated,
        "epochs": record.epochs,
        "best": record.best,
        "best_epoch": record.best_epoch,
        "seconds": record.seconds,
        "parameters": count(variables["params"]),
    }


def classes(learner: Learner) -> dict[str, str]:
    """What a model's users must know of the classes of its data."""
    told = {"num_classes": str(learner.stage.data.num_classes)}
    of_masks, of_images = (getattr(learner.dataset, name, ()) for name in ("mask_classes", "image_classes"))
    told |= {"mask_classes": json.dumps(of_masks)} if of_masks else {}
    if labels := getattr(learner.dataset, "label_classes", {}):
        told["label_classes"] = json.dumps(labels)
    masked = any(field.kind == "mask" for field in learner.dataset.fields.values())
    return told | ({"image_classes": json.dumps(of_images)} if of_images and not masked else {})


def keep(path: Path, variables: dict, metadata: dict[str, str] | None = None) -> None:
    """Writes whole arrays; every process takes part in the gathering, the first one writes."""
    arrays = sharding.to_host(variables)
    if jax.process_index() == 0:
        safetensors.save(path, arrays, metadata or {})
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(str(path))


def count(params: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
