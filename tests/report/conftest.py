import copy

import numpy as np
import pytest

SPREAD = {"dice": 0.034, "iou": 0.041, "hd95": 2.52, "precision": 0.05, "recall": 0.06, "specificity": 0.004}


def metrics(dice):
    means = {"dice": dice, "iou": dice - 0.08, "hd95": 30 * (1 - dice), "precision": dice, "recall": dice}
    means["specificity"] = 0.99
    return {name: {"mean": value, "std": SPREAD[name], "n": 96} for name, value in means.items()}


def row(stage, role, title, parameters, ms, dice):
    return {
        "stage": stage,
        "role": role,
        "title": title,
        "parameters": parameters,
        "trained_parameters": parameters // 2,
        "ms_per_image": ms,
        "epochs": 12,
        "best_epoch": 9,
        "seconds": 55.0,
        "metrics": metrics(dice),
        "per_class": {"1": metrics(dice)},
    }


SUMMARY = {
    "name": "sam_distill",
    "seed": 0,
    "seconds": 241.0,
    "hardware": "2 x CPU (a processor)",
    "versions": {"jax": "0.10.2", "flax": "0.12.8", "python": "3.11.9"},
    "num_classes": 2,
    "test_images": 96,
    "class_names": ["background", "lesion"],
    "rows": [
        row("teacher", "teacher", "teacher (SAM, LoRA)", 6_179_073, 12.34, 0.912),
        row("student", "student", "student, distilled", 412_345, 0.871, 0.884),
        row("student_control", "control", "student, no teacher", 412_345, 0.871, 0.853),
    ],
}


@pytest.fixture
def summary():
    return copy.deepcopy(SUMMARY)


@pytest.fixture
def metrics_of():
    return metrics


@pytest.fixture
def make_row():
    return row


@pytest.fixture
def curves():
    """Records as metrics.jsonl has them, for a distilled stage, its teacher and its control."""

    def records(terms, level):
        for step in range(1, 61):
            fade = level / 9 + 1 / step
            values = {f"terms/{t}": fade * (i + 1) for i, t in enumerate(terms)}
            if step % 10 == 1:
                values |= {f"grad_norm/{t}": fade for t in terms}
            yield {
                "step": step,
                "split": "train",
                "loss": sum(values.values()),
                "grad_norm": fade,
                "lr": 1e-3,
                **values,
            }
            if step % 10 == 0:
                yield {"step": step, "split": "val", "dice": level * step / 60}

    return {
        "teacher": list(records(["bce", "dice"], 0.9)),
        "student": list(records(["bce", "dice", "kl", "feature"], 0.88)),
        "student_control": list(records(["bce", "dice"], 0.85)),
    }


@pytest.fixture
def examples():
    made = []
    for i, rank in enumerate(("best", "median", "worst")):
        y, x = np.mgrid[:96, :128]
        truth = ((y - 48) ** 2 + (x - 60) ** 2 < 24**2).astype(int)
        image = np.random.default_rng(i).integers(30, 200, (96, 128, 1), dtype=np.uint8).repeat(3, axis=2)
        image[truth == 1] //= 2
        predictions = {r["title"]: np.roll(truth, (1 + i) * (1 + k), 1) for k, r in enumerate(SUMMARY["rows"])}
        dice = {title: 0.9 - 0.1 * i for title in predictions}
        made.append(
            {"name": f"case{i}", "image": image, "truth": truth, "predictions": predictions, "dice": dice, "rank": rank}
        )
    return made
