"""The cases in kdjax: forward passes by the models themselves, training steps by the frame, as the loop runs them."""

from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import (
    CLASSES,
    LABELS,
    LORA_RANK,
    LR,
    TEMPERATURE,
    TERMS,
    TINYUSFM_SIZE,
    WEIGHT_DECAY,
    Case,
    arrays,
)
from benchmarks.made_up import MadeUp
from kdjax.config import Data, Experiment, Lora, Mesh, Model, Optim, Stage, Task, Teacher, Term
from kdjax.data import pipeline
from kdjax.data.fields import FLAG
from kdjax.distill.teachers import build_model
from kdjax.models.vision.sam import build_sam
from kdjax.models.vision.sam.image_encoder import ImageEncoder
from kdjax.train import sharding
from kdjax.train.finish import count
from kdjax.train.setup import initial, prepare

ASKED = {  # what is asked of a detector, a classifier, a reader of texts
    "patches": ("logits", "patch_logits"),
    "classifier": ("logits",),
    "reader": ("tokens", "features"),
}


def facts() -> dict:
    versions = {name: version(name) for name in ("jax", "jaxlib", "flax")}
    backend = jax.default_backend()
    return {"backend": backend, "device": jax.devices()[0].device_kind, "versions": versions}


def build(case: Case, dtype: str, compiled: bool, threads: int) -> tuple[Callable[[], object], Callable, int]:
    """What runs the work once, what waits for a result, and the number of trained parameters.

    XLA has a thread for each core that the process may use, which is what `threads` counts.
    """
    given = arrays(case)
    if case.work == "product":
        a, b = (jnp.asarray(given[name], dtype) for name in "ab")
        return partial(jax.jit(jnp.matmul), a, b), jax.block_until_ready, 0
    if case.work == "encoder":
        model = ImageEncoder(build_sam(case.variant, image_size=case.size, dtype=dtype).options)
        image = jnp.asarray(given["image"])
        variables = jax.device_put(weights(partial(model.init, jax.random.key(0), image)))
        return partial(jax.jit(model.apply), variables, image), jax.block_until_ready, 0
    if case.work in ASKED:
        names = build_model(named(case), dtype).inputs
        return partial(forward(case, dtype), *(jnp.asarray(given[name]) for name in names)), jax.block_until_ready, 0
    return step(case, dtype, given)


def forward(case: Case, dtype: str) -> Callable[..., dict[str, jax.Array]]:
    model = build_model(named(case), dtype)
    asked = jax.jit(lambda weights, *inputs: {name: model.apply(weights, *inputs)[name] for name in ASKED[case.work]})
    return partial(asked, jax.device_put(variables(model)))


def step(case: Case, dtype: str, given: dict[str, np.ndarray]) -> tuple[Callable[[], object], Callable, int]:
    stage, taught = STAGES[case.work](case, dtype)
    experiment = Experiment(name="benchmark", stages={"measured": stage}, mesh=Mesh(data=1))
    mesh = sharding.make_mesh(experiment.mesh)
    dataset = MadeUp(case) if case.work in ("read", "answer") else pipeline.build(stage.data)
    learner = prepare("measured", stage, experiment, mesh, dataset, taught)
    teachers = {name: variables(build_model(taught[teacher.stage])) for name, teacher in stage.teachers.items()}
    state, fixed, _ = learner.start({"": variables(learner.model)}, teachers)
    placed = jax.tree.map(lambda x: x.sharding, state)
    train = jax.jit(learner.step.train, donate_argnums=0, out_shardings=(placed, sharding.replicated(mesh)))
    trained, n = count(state.params), case.batch
    every = {name: np.ones(n, bool) for name, field in dataset.fields.items() if field == FLAG}
    numbers = {"view": np.zeros(n, np.int32), "index": np.arange(n, dtype=np.int32)}
    local = {**given, **every, **numbers}
    assert local.keys() == dataset.fields.keys() >= given.keys()
    at = [state]

    def once() -> object:
        at[0], measures = train(at[0], fixed, learner.knobs, sharding.global_batch(local, mesh))
        return at[0], measures

    del state, teachers
    return once, jax.block_until_ready, trained


def lora_stage(case: Case, dtype: str) -> tuple[Stage, dict]:
    return Stage(
        task="segmentation",
        data=data(case),
        model=Model("sam_seg", variant=case.variant, image_size=case.size),
        lora=Lora(LORA_RANK, ((r"image_encoder/.*/attn/qkv", "q_v"),)),
        optim=optim(trainable=((r"model/image_encoder/.*", False), (r".*", True))),
        epochs=1,
        dtype=dtype,
    ), {}


def tinyusfm_stage(case: Case, dtype: str) -> tuple[Stage, dict]:
    model = Model("tinyusfm_seg", image_size=TINYUSFM_SIZE)
    return Stage(task="segmentation", data=data(case), model=model, optim=optim(), epochs=1, dtype=dtype), {}


def distil_stage(case: Case, dtype: str) -> tuple[Stage, dict]:
    stage, _ = tinyusfm_stage(case, dtype)
    stage.teachers = {"sam": Teacher(stage="teacher", dtype=dtype)}
    stage.terms = {
        "bce": Term("bce", label="mask", weight=TERMS["bce"]),
        "dice": Term("dice", label="mask", weight=TERMS["dice"]),
        "kl": Term("binary_kl", teacher="sam:logits", weight=TERMS["kl"], args={"temperature": TEMPERATURE}),
        "feature": Term("mse", "neck_2", "sam:image_embeddings", adapter="conv_bn_relu", weight=TERMS["feature"]),
    }
    return stage, {"teacher": Model("sam_seg", variant=case.variant, image_size=case.size)}


def tiny_ladeda_stage(case: Case, dtype: str) -> tuple[Stage, dict]:
    return Stage(task="detection", data=data(case), model=named(case), optim=optim(), epochs=1, dtype=dtype), {}


def classify_stage(case: Case, dtype: str) -> tuple[Stage, dict]:
    stage = Stage(task="classification", data=data(case), model=named(case), optim=optim(), epochs=1, dtype=dtype)
    return stage, {}


def answer_stage(case: Case, dtype: str) -> tuple[Stage, dict]:
    stage, _ = classify_stage(case, dtype)
    stage.task = Task("answers", labels=tuple(LABELS))
    return stage, {}


STAGES = {
    "lora": lora_stage,
    "tinyusfm": tinyusfm_stage,
    "distil": distil_stage,
    "tiny_ladeda": tiny_ladeda_stage,
    "classify": classify_stage,
    "read": classify_stage,
    "answer": answer_stage,
}


def named(case: Case) -> Model:
    """The detector, classifier, reader of texts or model of image and text of the case."""
    if case.work == "answer":
        image, text, layers = case.variant.split()
        name, _, variant = text.partition("/")
        return Model(
            "image_text",
            image={"name": "vit", "options": {"variant": image, "image_size": case.size}},
            text={"name": name, "options": {"variant": variant}},
            layers=int(layers),
            labels=LABELS,
        )
    classes = {"num_classes": CLASSES} if case.work in ("classifier", "classify", "read") else {}
    name, _, variant = case.variant.partition("/")
    return Model(name, **({"variant": variant} if variant else {"image_size": case.size}), **classes)


def data(case: Case) -> Data:
    """What the stage is prepared with, where nothing is made up; the step gets the arrays that the other side gets."""
    size, n = case.image_size, case.batch
    return Data("ultrasound", image_size=size, batch_size=n, size=32, train=n, val=1, test=1)


def optim(**rules: Any) -> Optim:
    return Optim("adamw", lr=LR, schedule="constant", weight_decay=WEIGHT_DECAY, **rules)


def variables(model: nn.Module) -> dict:
    return weights(partial(initial, model, jax.random.key(0)))


def weights(init: Callable[[], Any]) -> Any:
    """Small random numbers in the shapes that `init` would give, which is quicker than starting a large model."""
    rng = np.random.default_rng(0)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.ones(shape.shape, np.float32)
        return 0.02 * rng.standard_normal(shape.shape, np.float32)

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(init))


def peak_bytes() -> int | None:
    """On the GPU; None without one."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use") if jax.default_backend() != "cpu" else None
