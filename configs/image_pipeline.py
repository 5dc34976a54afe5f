"""draft"""

from typing import Any

from kdjax.config import ConfigError, Data, Experiment, Model, Optim, Stage, Task, Teacher, Term, nearest

VARIANTS = ("", "smoke", "digits", "cifar100", "tfds", "classes")
SHARE = 0.3  # of what the teacher says: half of it its answers, half of it its features
SCALE = 16.0


def get_config(variant: str = "") -> Experiment:
    size = 32
    augment = {"crop": 1.0, "hflip": 0.5, "rotate": 0.5, "contrast": 0.5, "gamma": 0.3}
    data: dict[str, Any] = {
        "size": size,
        "train": 1600,
        "val": 200,
        "test": 800,
        "image_size": size,
        "num_classes": None,
        "labelled": 0.2,
    }
    conv = {
        "name": "convnet",
        "options": {"variant": "small", "widths": [24, 48, 96], "depths": [1, 1, 1], "image_size": size},
    }
    trans = {
        "name": "vit",
        "options": {
            "variant": "vit_ti16",
            "image_size": size,
            "patch_size": 4,
            "dim": 64,
            "depth": 2,
            "heads": 2,
            "taps": [1],
        },
    }
    tiny = {"name": "convnet", "options": {"variant": "nano", "image_size": size}}
    hybrid = {"convolutional": conv, "transformer": trans, "dim": 128}
    cosine = {"head": "cosine", "scale": SCALE, "num_classes": None}
    both = Optim("adamw", lr=2e-3, warmup=1, weight_decay=0.02, ema=0.98)

    supcon = Stage(
        task="contrastive",
        title="SupCon",
        data=Data("beetles", batch_size=128, copies=2, augment=augment, **data),
        model=Model("hybrid", num_classes=0, **hybrid),
        epochs=12,
        optim=both,
        grad_norms_every=0,
    )
    teacher = Stage(
        task="classification",
        title="hybrid, SupCon and margin",
        data=Data("beetles", batch_size=64, augment=augment, **data),
        model=Model("hybrid", **hybrid, **cosine),
        init="stage:supcon",
        init_skip=("params/head/.*",),
        terms={"ce": Term("arcface", "cosines", label="class", args={"scale": SCALE, "margin": 0.2})},
        epochs=12,
        optim=both,
        grad_norms_every=0,
    )
    student = Stage(
        task="classification",
        title="student, distilled",
        data=Data("beetles", batch_size=64, augment=augment | {"mixup": 0.3}, **data),
        model=Model("hybrid", convolutional=tiny, dim=128, **cosine),
        teachers={"hybrid": Teacher(stage="teacher", inputs={"image": "clean_image"})},
        terms={
            "ce": Term("arcface", "cosines", label="target", args={"scale": SCALE, "margin": 0.2}, weight=1 - SHARE),
            "kl": Term("kl", teacher="hybrid:logits", args={"temperature": 2.0}, weight=SHARE / 2),
            "features": Term("mse", "features", "hybrid:features", weight=SHARE / 2),
        },
        epochs=20,
        optim=both,
        grad_norms_every=0,
    )
    return Experiment(name="image_pipeline", stages={"supcon": supcon, "teacher": teacher, "student": student})
