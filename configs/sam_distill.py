"""SAM (LoRA) distilled into TinyUSFM: lesions in breast ultrasound.

    python -m kdjax.launch --config=configs/sam_distill.py             generated images, nothing to download
    python -m kdjax.launch --config=configs/sam_distill.py:smoke       the same, tiny
    python -m kdjax.launch --config=configs/sam_distill.py:busi=DIR    BUSI: the folder of benign, malignant, normal
    python -m kdjax.launch --config=configs/sam_distill.py:busi_vit_b=DIR    with the published SAM ViT-B, for a GPU
    python -m kdjax.launch --config=configs/sam_distill.py:folder=DIR  your own images and masks, all of them labelled

The story is the usual one: a large model that knows images, few labels in the domain that matters, many images without.
Where no published weights are at hand, the large model is a small SAM that is trained here on other generated scans
(`sam`). The teacher adapts it with LoRA to the labelled images; the student learns from these, and from the teacher on
all images. Of `folder` the values in the masks are the classes; --classes=cyst,tumour names them, and --mode=look shows
what is read before anything is trained. The published weights come from

    python -m convert sam --src sam_vit_b_01ec64.pth --dst weights/sam_vit_b.safetensors --set image_size=512
"""

from typing import Any

from kdjax.config import ConfigError, Data, Experiment, Gate, Lora, Model, Optim, Stage, Task, Teacher, Term, nearest

VARIANTS = ("", "smoke", "busi", "busi_vit_b", "folder")
AUGMENT = {"hflip": 0.5, "rotate": 0.5, "zoom": 0.5, "gamma": 0.5, "contrast": 0.5}
MASKS = (
    r"params/mask_decoder/(mask_tokens|output_hypernetworks_mlps_\d|iou_prediction_head)/.*",
)  # one for each class
EVERYTHING = ((r".*", True),)
FROZEN_ENCODER = ((r"model/image_encoder/.*", False), (r".*", True))  # LoRA leaves it as it was; the decoder learns


def get_config(variant: str = "") -> Experiment:
    variant, _, folder = variant.partition("=")
    if variant not in VARIANTS:
        raise ConfigError(f"configs/sam_distill.py has no variant {variant!r}; {nearest(variant, VARIANTS[1:])}")
    smoke, own, published = variant == "smoke", variant == "folder", variant == "busi_vit_b"
    small_set = own or variant.startswith("busi")
    size = {"": 64, "smoke": 48, "busi": 96, "busi_vit_b": 512, "folder": 96}[variant]
    sam_model, student_model = models(size, smoke, published)
    target, other = images(size, variant, folder or "data/busi")

    sam = Stage(
        task=supervised(0.5),
        title="SAM, pretraining",
        auxiliary=True,  # not run where the teacher starts from a file
        data=other,
        model=sam_model,
        optim=Optim("adamw", lr=1e-3, warmup=0.5, weight_decay=0.01, clip=1.0, ema=0.98),
        epochs=1 if smoke else 5,
        grad_norms_every=0,
    )
    teacher = Stage(
        task=supervised(0.5),
        title="teacher (SAM)" if own else "teacher (SAM, LoRA)",
        data=target,
        model=sam_model,
        init="weights/sam_vit_b.safetensors" if published else "stage:sam",
        init_skip=MASKS if published or own else (),
        adopt=True,  # a file of weights may be of another size
        # What generated ultrasound taught its encoder need not fit one's own images: there all of it learns.
        lora=None if own else Lora(rank=4, targets=((r"image_encoder/.*/attn/qkv", "q_v"),)),
        optim=Optim("adamw", lr=5e-4, warmup=0.5, clip=1.0, ema=0.98, trainable=EVERYTHING if own else FROZEN_ENCODER),
        epochs=1 if smoke else 20 if small_set else 3,
        gate=Gate(0.0 if smoke else 0.3 if small_set else 0.6),
        grad_norms_every=0,
        dtype="bfloat16" if published else "float32",
    )
    student = Stage(
        task=supervised(0.1),
        title="student, distilled",
        data=target,
        model=student_model,
        teachers={"sam": Teacher(stage="teacher")},
        terms={
            "kl": Term("kl", teacher="sam:logits", weight=1.0, args={"temperature": 2.0}),
            "feature": Term("mse", "neck_2", "sam:image_embeddings", adapter="conv_bn_relu", weight=0.1),
        },
        optim=Optim("adamw", lr=2e-3, warmup=1.0, weight_decay=0.01, clip=1.0, ema=0.98),
        epochs=2 if smoke else 60 if small_set else 13,
        grad_norms_every=0 if smoke else 1,
    )
    stages = {"sam": sam, "teacher": teacher, "student": student}
    return Experiment(name="sam_distill", stages=stages, quick_compile=smoke)


def supervised(weight: float) -> Task:
    """Cross-entropy and soft Dice; smooth=1 so that an image without a lesion asks for an empty mask."""
    return Task("segmentation", weight=weight, smooth=1.0, balanced=False)


def models(size: int, smoke: bool, published: bool) -> tuple[Model, Model]:
    if published:
        return Model("sam_seg", variant="vit_b", image_size=size), Model("tinyusfm_seg", image_size=224)
    # Patches of 8 pixels, two windows a side; the student is a twelfth of the SAM and takes a quarter of its time.
    sam = {"variant": "vit_t", "patch_size": 8, "window": size // 16, "image_size": size}
    tiny = {"patch_size": 8, "dim": 64, "heads": 2, "neck_dim": 16, "head_dim": 16, "image_size": size}
    if smoke:
        sam |= {"depth": 2, "global_blocks": (1,), "decoder_depth": 1}
    return Model("sam_seg", **sam), Model("tinyusfm_seg", depth=1, taps=(0, 0, 0, 0), **tiny)


def images(size: int, variant: str, folder: str) -> tuple[Data, Data]:
    """The images that matter, of which few are labelled, and others that the small SAM comes to know images from."""
    common: dict[str, Any] = {"image_size": size, "batch_size": 8, "augment": AUGMENT}
    if variant == "smoke":
        common |= {"size": size, "train": 64, "val": 16, "test": 16}
        return Data("ultrasound", labelled=0.5, **common), Data("ultrasound", seed=1, **common)
    other = Data("ultrasound", size=size, seed=1, train=2400, val=96, test=96, **common)
    if variant == "folder":
        return Data("folder", root=folder or "data/folder", num_classes=None, bits=None, **common), other
    if variant:
        return Data("busi", root=folder, labelled=0.25, **common), other
    here = Data("ultrasound", size=size, domain="linear", train=1200, val=96, test=1024, labelled=0.02, **common)
    return here, other
