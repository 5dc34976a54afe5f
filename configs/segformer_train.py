"""SegFormer B0 trained on its own: lesions in breast ultrasound.

    python -m kdjax.launch --config=configs/segformer_train.py                generated images, nothing to download
    python -m kdjax.launch --config=configs/segformer_train.py:smoke          the same, tiny
    python -m kdjax.launch --config=configs/segformer_train.py:busi=DIR       BUSI: benign, malignant, normal
    python -m kdjax.launch --config=configs/segformer_train.py:busi_b0=DIR    from published weights, for a GPU
    python -m kdjax.launch --config=configs/segformer_train.py:folder=DIR     your own images, as in `sam_distill.py`

`busi_b0` starts from `weights/segformer_b0.safetensors`, a converted checkpoint of Hugging Face's names, whatever its
classes: the last convolution is new.

The default, seed 0: Dice 0.826, in 147 s of processor time, 2 min 25 s on the two cores of an AMD EPYC that others were
using (load 3 to 4); smoke 21 s there. `busi_b0` has not been run.
"""

from typing import Any

from kdjax.config import ConfigError, Data, Experiment, Model, Optim, Stage, Task, nearest

VARIANTS = ("", "smoke", "busi", "busi_b0", "folder")
AUGMENT = {"hflip": 0.5, "rotate": 0.5, "zoom": 0.5, "gamma": 0.5, "contrast": 0.5}
TINY = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 4), "decoder_dim": 24}


def get_config(variant: str = "") -> Experiment:
    variant, _, folder = variant.partition("=")
    if variant not in VARIANTS:
        raise ConfigError(f"configs/segformer_train.py has no variant {variant!r}; {nearest(variant, VARIANTS[1:])}")
    smoke, published = variant == "smoke", variant == "busi_b0"
    size = {"": 64, "smoke": 48, "busi": 96, "busi_b0": 512, "folder": 96}[variant]
    segformer = Stage(
        # Half cross-entropy, half soft Dice; smooth=1 so that an image without a lesion asks for an empty mask.
        task=Task("segmentation", weight=0.5, smooth=1.0, balanced=False),
        title="SegFormer B0",
        data=images(size, variant, folder),
        model=Model("segformer", variant="b0", image_size=size, **(TINY if smoke else {})),
        init="weights/segformer_b0.safetensors" if published else "",
        init_skip=("params/decode_head/classifier/.*",) if published else (),
        # The original's recipe: the head learns ten times as fast as an encoder that knows something already.
        optim=Optim(
            "adamw",
            lr=6e-4 if published else 1e-3,
            lr_scale=((r"model/segformer/.*", 0.1 if published else 1.0), (r".*", 1.0)),
            warmup=0.5,
            weight_decay=0.01,
            clip=1.0,
            ema=0.98,
        ),
        epochs={"": 10, "smoke": 1, "busi": 100, "busi_b0": 50, "folder": 100}[variant],
        grad_norms_every=0,
        dtype="bfloat16" if published else "float32",
    )
    return Experiment(name="segformer_train", stages={"segformer": segformer}, quick_compile=smoke)


def images(size: int, variant: str, folder: str) -> Data:
    common: dict[str, Any] = {"image_size": size, "batch_size": 8, "augment": AUGMENT}
    if variant == "folder":
        return Data("folder", root=folder or "data/folder", num_classes=None, bits=None, **common)
    if variant.startswith("busi"):
        return Data("busi", root=folder or "data/busi", **common)
    train, held_out = (64, 16) if variant == "smoke" else (1200, 96)
    generated = {"size": size, "domain": "linear", "train": train, "val": held_out, "test": held_out}
    return Data("ultrasound", **common, **generated)
