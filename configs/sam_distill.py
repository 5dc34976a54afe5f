"""SAM (LoRA) distilled into TinyUSFM: lesions in breast ultrasound.

    python -m kdjax.launch --config=configs/sam_distill.py             generated images, nothing to download
    python -m kdjax.launch --config=configs/sam_distill.py:smoke       the same, tiny
    python -m kdjax.launch --config=configs/sam_distill.py:busi        BUSI in data/busi: the folders benign, malignant, normal
    python -m kdjax.launch --config=configs/sam_distill.py:busi_vit_b  the published SAM ViT-B and TinyUSFM, on a GPU

The story is the usual one: a large model that knows images (`sam`; where no published weights are at hand, it is
trained here on generated scans of another probe), few labels in the domain that matters, and many images without.
The teacher is adapted with LoRA on the labelled images; the student learns from those and from the teacher on all.
"""

from kdjax.config import ConfigError, Data, Experiment, Gate, Lora, Model, Optim, Stage, Teacher, Term, nearest

VARIANTS = ("", "smoke", "busi", "busi_vit_b")
AUGMENT = {"hflip": 0.5, "rotate": 0.5, "zoom": 0.5, "gamma": 0.5, "contrast": 0.5}
FROZEN_ENCODER = ((r"model/image_encoder/.*", False), (r".*", True))  # what LoRA leaves as it was; the decoder learns
SMALL_SAM = {"variant": "vit_t", "window": 6}
SMALL_STUDENT = {"dim": 64, "depth": 6, "heads": 4, "taps": (1, 2, 3, 5), "neck_dim": 24, "head_dim": 32, "scan": True}


def get_config(variant: str = "") -> Experiment:
    if variant not in VARIANTS:
        raise ConfigError(f"configs/sam_distill.py has no variant {variant!r}; {nearest(variant, VARIANTS[1:])}")
    smoke, busi, published = variant == "smoke", variant.startswith("busi"), variant == "busi_vit_b"
    size = 48 if smoke else 224 if published else 96
    teacher_size = 512 if published else size

    few = {"train": 64, "val": 16, "test": 16} if smoke else {"train": 480, "val": 64, "test": 128}
    generated = {"size": size, "seed": 0, "domain": "convex", **few}
    common = {"image_size": size, "batch_size": 16, "augment": AUGMENT}
    if busi:
        target = Data("busi", root="data/busi", labelled=0.25, **common)
    else:
        target = Data("ultrasound", labelled=0.5 if smoke else 0.125, **common, **generated)
    other = Data("ultrasound", **common, **{**generated, "seed": 1, "domain": "linear"})

    if published:
        model, init = Model("sam_seg", variant="vit_b", image_size=teacher_size), "weights/sam_vit_b.safetensors"
        student_model = Model("tinyusfm_seg", image_size=size)
    else:
        shallow = {"depth": 2, "global_blocks": (1,), "decoder_depth": 1} if smoke else {}
        model, init = Model("sam_seg", **{**SMALL_SAM, **shallow}, image_size=size), "stage:sam"
        student_model = Model("tinyusfm_seg", **SMALL_STUDENT, image_size=size)

    sam = Stage(
        task="segmentation",
        title="SAM, pretraining",
        auxiliary=True,
        data=other,
        model=model,
        optim=Optim("adamw", lr=1e-3, warmup=0.5, weight_decay=0.01, clip=1.0),
        epochs=1 if smoke else 12,
        grad_norms_every=0,
    )
    teacher = Stage(
        task="segmentation",
        title="teacher (SAM, LoRA)",
        data=target,
        model=model,
        init=init,
        lora=Lora(rank=4, targets=((r"image_encoder/.*/attn/qkv", "q_v"),)),
        optim=Optim("adamw", lr=1e-3, warmup=0.5, weight_decay=0.01, clip=1.0, trainable=FROZEN_ENCODER),
        epochs=1 if smoke else 6,
        gate=Gate(0.0 if smoke else 0.6),
        grad_norms_every=0,
        dtype="bfloat16" if published else "float32",
    )
    student = Stage(
        task="segmentation",
        title="student, distilled",
        data=target,
        model=student_model,
        teachers={"sam": Teacher(stage="teacher")},
        terms={
            "bce": Term("bce", label="mask", weight=0.25),
            "dice": Term("dice", label="mask", weight=0.25),
            "kl": Term("binary_kl", teacher="sam:logits", weight=0.5, args={"temperature": 2.0}),
            "feature": Term("mse", "neck_2", "sam:image_embeddings", adapter="conv_bn_relu", weight=0.1),
        },
        optim=Optim("adamw", lr=2e-3, warmup=1.0, weight_decay=0.01, clip=1.0),
        epochs=2 if smoke else 20,
    )
    return Experiment(name="sam_distill", stages={"sam": sam, "teacher": teacher, "student": student})
