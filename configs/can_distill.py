"""Intrusion detection on a car's CAN bus: VGAE, GAT and their fusion, large ones distilled into small ones.

    python -m kdjax.launch --config=configs/can_distill.py                 generated traffic, nothing to download
    python -m kdjax.launch --config=configs/can_distill.py:smoke           the same, tiny
    python -m kdjax.launch --config=configs/can_distill.py:hcrl_sa=DIR     HCRL survival analysis: CSV or parquet
    python -m kdjax.launch --config=configs/can_distill.py:own=DIR         your own logs

Windows of a hundred messages become graphs: a node for each id, an edge from an id to the one that follows it. The VGAE
learns what normal traffic is like, without labels. The GAT learns attacks from labels, beside the normal windows that
the VGAE finds strangest. The agent weighs the word of both small models, graph by graph.

On hcrl_sa, three seeds, mean F1 and AUC over its four test sets: GAT 0.660 and 0.996 (large), 0.585 and 0.955 (small,
distilled), 0.549 and 0.828 (small, no teacher); about 10 min a seed on two cores of an AMD EPYC. A stage of it takes a
batch size from a budget of memory with `--config.stages.gat_teacher.budget.bytes=8000000000`.

The modes are stages: autoencoder, curriculum and fusion as they stand; `--config.stages.gat_student.curriculum.scorer=`
makes it the normal one, without a curriculum.

A run lies in `{modality}/{dataset}/{learning type}/{model}/{size}/{with-kd|no-kd}/{mode}` below the working directory.
"""

from typing import Any

from kdjax.config import (
    Budget,
    ConfigError,
    Curriculum,
    Data,
    Experiment,
    Model,
    Optim,
    Stage,
    Task,
    Teacher,
    Term,
    layout,
    nearest,
    to_dict,
)

VARIANTS = ("", "smoke", "hcrl_sa", "hcrl_ch", "set_01", "set_02", "set_03", "set_04", "own")
T, ALPHA = 4.0, 0.7  # temperature, and the share of the objective that distillation has


def get_config(variant: str = "") -> Experiment:
    variant, _, folder = variant.partition("=")
    if variant not in VARIANTS:
        raise ConfigError(f"configs/can_distill.py has no variant {variant!r}; {nearest(variant, VARIANTS[1:])}")
    smoke, real = variant == "smoke", variant not in ("", "smoke")
    data, normal = logs(variant, folder)
    large, small = sizes(smoke, real)
    epochs = {"vgae": 10, "gat": 12, "dqn": 6}
    if real:
        epochs = {"vgae": 6, "gat": 5, "dqn": 4}
    if smoke:
        epochs = {"vgae": 1, "gat": 1, "dqn": 1}

    def stage(name: str, kind: str, size: str, title: str, **fields: Any) -> Stage:
        mode = {"autoencoder": "autoencoder", "detection": "curriculum", "fusion": "fusion"}[name]
        learning = {"autoencoder": "unsupervised", "detection": "supervised", "fusion": "rl"}[name]
        task = Task(name, replay=1_000) if name == "fusion" and smoke else Task(name)
        where = layout("automotive", variant or "generated", learning, kind, size, mode, distilled="teachers" in fields)
        optim = Optim("adamw", lr=1e-3, warmup=0.25, weight_decay=1e-4, clip=1.0)
        model = (large if size == "large" else small).get(kind)
        shared = {"data": data, "model": model, "epochs": epochs[kind], "optim": optim, "grad_norms_every": 0}
        shared["budget"] = Budget(safety=safety(variant, "teachers" in fields))
        return Stage(task=task, title=title, folder=where, **{**shared, **fields})

    vgae_teacher = stage("autoencoder", "vgae", "large", "VGAE, large", data=normal)
    vgae_student = stage(
        "autoencoder",
        "vgae",
        "small",
        "VGAE, small, distilled",
        data=normal,
        teachers={"large": Teacher(stage="vgae_teacher")},
        terms={
            **rebuilding(1 - ALPHA),
            "latent": Term("mse", "z_mean", "large:z_mean", adapter="linear", over="nodes", weight=ALPHA / 2),
            "rebuilt": Term("mse", "features", "large:features", over="nodes", weight=ALPHA / 2),
        },
    )
    curriculum = Curriculum(scorer="vgae_teacher", start=1.0, end=4.0, warmup=epochs["gat"] / 2, momentum=0.5)
    gat_teacher = stage("detection", "gat", "large", "GAT, large", curriculum=curriculum)
    gat_student = stage(
        "detection",
        "gat",
        "small",
        "GAT, small, distilled",
        curriculum=curriculum,
        teachers={"large": Teacher(stage="gat_teacher")},
        terms={
            "bce": Term("bce", label="class", weight=1 - ALPHA),
            "soft": Term("binary_kl", teacher="large:logits", weight=ALPHA, args={"temperature": T}),
        },
    )
    fused = {part: to_dict(small[part]) for part in ("vgae", "gat")}
    fusion = stage(
        "fusion",
        "dqn",
        "small",
        "fusion of both small ones, DQN",
        model=Model("can_fusion", **fused, agent={"variant": "small"}),
        parts={"vgae": "vgae_student", "gat": "gat_student"},
        optim=Optim(
            "adamw", lr=1e-3, schedule="constant", clip=1.0, trainable=((r"model/agent/.*", True), (r".*", False))
        ),
    )
    stages = {"vgae_teacher": vgae_teacher, "vgae_student": vgae_student, "gat_teacher": gat_teacher}
    stages |= {"gat_student": gat_student, "fusion": fusion}
    return Experiment(name="can_distill", stages=stages, quick_compile=smoke)


def safety(variant: str, taught: bool) -> float:
    """The share of a budget of memory that a step may take; real traffic has packs beyond the largest bucket. The
    numbers are those of the published runs, which leave a quarter for a teacher in memory."""
    known = {"": 0.8, "smoke": 0.8, "hcrl_ch": 0.6, "hcrl_sa": 0.55, "set_01": 0.55}
    known |= dict.fromkeys(("set_02", "set_03", "set_04"), 0.35)
    return known.get(variant, 0.5) * (0.75 if taught and variant not in ("", "smoke") else 1.0)


def rebuilding(weight: float) -> dict[str, Term]:
    """Of a VGAE: features, ids, neighbours, and a posterior that stays near the prior."""
    return {
        "features": Term("mse", "features", label="x", over="nodes", weight=weight),
        "ids": Term("ce", "id_logits", label="id", over="nodes", weight=weight),
        "neighbours": Term("value", "neighbour_error", over="nodes", weight=weight),
        "kl": Term("normal_kl", "posterior", over="nodes", weight=0.1 * weight),
    }


def sizes(smoke: bool, real: bool) -> tuple[dict[str, Model], dict[str, Model]]:
    """The large and the small models; the data tell how many ids there are."""
    ids: dict[str, Any] = {"num_ids": None}
    small = Model("can_vgae", variant="b_student", **ids), Model("can_gat", variant="b_student", **ids)
    large = Model("can_vgae", variant="b_teacher", **ids), Model("can_gat", variant="b_teacher", **ids)
    if smoke:
        large = small
        tiny = {"encoder": (16, 8), "latent": 8, "decoder": (16,)}
        small = (
            Model("can_vgae", variant="b_student", **tiny, **ids),
            Model("can_gat", variant="b_student", hidden=8, **ids),
        )
    elif not real:
        large[1].options |= {"heads": 4, "layers": 3}
    return dict(zip(("vgae", "gat"), large, strict=True)), dict(zip(("vgae", "gat"), small, strict=True))


def logs(variant: str, folder: str) -> tuple[Data, Data]:
    """All windows, and those without an attack."""
    options: dict[str, Any] = {"batch_size": 64, "split": (0.7, 0.15, 0.15)}
    if variant == "smoke":
        options |= {"source": "can_traffic", "train_windows": 128, "test_windows": 32, "batch_size": 32, "buckets": 1}
    elif not variant:
        options |= {"source": "can_traffic", "train_windows": 4000, "batch_size": 32}
    else:
        options |= {"source": "can", "root": folder or f"data/{variant}"}
    return Data(**options), Data(**options, normal_only=True)
