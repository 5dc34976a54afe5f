"""SAM (LoRA) distilled into TinyUSFM: lesions in breast ultrasound.

    python -m kdjax.launch --config=configs/sam_distill.py          generated images, nothing to download
    python -m kdjax.launch --config=configs/sam_distill.py:smoke    the same, tiny, in under a minute
    python -m kdjax.launch --config=configs/sam_distill.py:busi --config.stages.teacher.data.options.root=...
"""

from kdjax.config import Data, Experiment, Gate, Lora, Model, Optim, Stage, Teacher, Term

AUGMENT = {"hflip": 0.5, "vflip": 0.5, "rotate": 0.5, "zoom": 0.5, "gamma": 0.5, "contrast": 0.5}


def get_config(variant: str = "") -> Experiment:
    smoke = variant == "smoke"
    size = 64 if smoke else 128
    images = {"size": size, "train": 64, "val": 16, "test": 16} if smoke else {"size": size, "train": 600, "val": 64, "test": 128}
    epochs = (1, 1, 2) if smoke else (10, 6, 16)

    def data(**changes) -> Data:
        return Data("ultrasound", image_size=size, batch_size=16, augment=AUGMENT, **images, **changes)

    sam_model = Model("sam_seg", variant="vit_t", image_size=size, **({"depth": 2, "global_blocks": (1,), "decoder_depth": 1} if smoke else {}))
    sam = Stage(
        task="segmentation", title="SAM, pretraining", auxiliary=True, data=data(), model=sam_model,
        optim=Optim("adamw", lr=1e-3, warmup=0.5, weight_decay=0.01, clip=1.0), epochs=epochs[0], grad_norms_every=0,
    )
    teacher = Stage(
        task="segmentation", title="teacher (SAM, LoRA)", data=data(), model=sam_model, init="stage:sam",
        lora=Lora(rank=4, targets=((r"image_encoder/.*/attn/qkv", "q_v"),)),
        optim=Optim("adamw", lr=5e-4, warmup=0.5, clip=1.0, trainable=((r"model/image_encoder/.*", False), (r".*", True))),
        epochs=epochs[1], gate=Gate("dice", 0.0 if smoke else 0.7), grad_norms_every=0,
    )
    student = Stage(
        task="segmentation", title="student, distilled", data=data(labelled=0.1),
        model=Model("tinyusfm_seg", image_size=size, scan=True, **({"depth": 4, "taps": (0, 1, 2, 3)} if smoke else {})),
        teachers={"sam": Teacher(stage="teacher")},
        terms={
            "bce": Term("bce", label="mask", weight=0.25),
            "dice": Term("dice", label="mask", weight=0.25),
            "kl": Term("binary_kl", teacher="sam:logits", weight=0.5, args={"temperature": 4.0}),
            "feature": Term("mse", student="neck_2", teacher="sam:image_embeddings", adapter="conv_bn_relu", weight=0.2),
        },
        optim=Optim("adamw", lr=1e-3, warmup=1, weight_decay=0.01, clip=1.0), epochs=epochs[2],
    )
    return Experiment(name="sam_distill", stages={"sam": sam, "teacher": teacher, "student": student})
