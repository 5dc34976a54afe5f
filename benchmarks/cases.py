"""What is measured: the work of each case, its inputs and its arithmetic. Imports neither torch nor jax."""

from dataclasses import dataclass

import numpy as np

PRODUCT_FLOOR = 0.65  # the least that is excused by XLA's matrix product on a CPU; the case "product" measures it
PRODUCT = (1024, 768, 3072)
LORA_RANK = 4
TINYUSFM_SIZE = 224
CLASSES = 2
LABELS = {"modality": 2, "location": 5}  # of images with captions, and their classes
CAPTION = 256  # tokens of the longest
VOCABULARY = 30_522  # tokens
TEMPERATURE = 2.0
TERMS = {"bce": 0.25, "dice": 0.25, "kl": 0.5, "feature": 0.1}  # of distillation; plain training has half and half
LR, WEIGHT_DECAY = 1e-4, 0.01


@dataclass(frozen=True)
class Case:
    """`work` is product, encoder, patches, classifier or reader (a forward pass), lora, tinyusfm, distil, tiny_ladeda,
    classify, read or answer (a training step).

    `size` is the side in pixels of the image of SAM, or of the detector or classifier that `variant` names; of a reader
    of texts, "MODEL/VARIANT", it is the tokens of the longest. What answers questions reads images of that side with a
    reader of texts, "VARIANT of vit MODEL/VARIANT LAYERS of the fusion". `bound` names what most of the time goes to,
    which sets the floor.
    """

    work: str
    title: str
    bound: str = "products"  # products | rest
    variant: str = "vit_b"
    size: int = 0
    batch: int = 1
    gpu_only: bool = False

    def floor(self, backend: str, product: float | None) -> float:
        """The least ratio (time of PyTorch / time of kdjax) that is good enough.

        `product` is the ratio of the plain matrix product, if measured: what that does not excuse is not excused.
        """
        if backend != "cpu" or self.bound != "products":
            return 1.0
        return PRODUCT_FLOOR if self.work == "product" else min(1.0, max(PRODUCT_FLOOR, product or 0.0))

    @property
    def image_size(self) -> int:
        """Side of the images and masks of a training step on images."""
        return self.size if self.work in ("lora", "tiny_ladeda", "classify", "answer") else TINYUSFM_SIZE


CASES = {
    "product": Case("product", "matrix product {}x{} by {}".format(*PRODUCT[:2], PRODUCT[2])),
    **{
        f"sam_b_forward_{size}": Case("encoder", f"SAM ViT-B encoder, forward, {size} px", size=size)
        for size in (256, 512, 1024)
    },
    "sam_b_lora_512": Case("lora", "SAM ViT-B, LoRA training step, 512 px", size=512),
    "tinyusfm_step": Case("tinyusfm", "TinyUSFM training step, 224 px, batch 8", "rest", batch=8),
    "distil_256": Case("distil", "SAM ViT-B (256 px) to TinyUSFM (224 px), training step, batch 8", size=256, batch=8),
    "ladeda9_forward": Case("patches", "LaDeDa9, forward, 256 px", variant="ladeda", size=256),
    "tiny_ladeda_forward": Case(
        "patches", "Tiny-LaDeDa, forward, 256 px, batch 16", "rest", variant="tiny_ladeda", size=256, batch=16
    ),
    "tiny_ladeda_step": Case(
        "tiny_ladeda",
        "Tiny-LaDeDa, training step, 256 px, batch 16",
        "rest",
        variant="tiny_ladeda",
        size=256,
        batch=16,
    ),
    "convnextv2_forward": Case(
        "classifier", "ConvNeXt-V2-tiny, forward, 224 px, batch 4", variant="convnextv2", size=224, batch=4
    ),
    "convnextv2_step": Case(
        "classify", "ConvNeXt-V2-tiny, training step, 224 px, batch 8", variant="convnextv2", size=224, batch=8
    ),
    "swinv2_forward": Case("classifier", "Swin-V2-tiny, forward, 256 px, batch 4", variant="swinv2", size=256, batch=4),
    "swinv2_step": Case(
        "classify", "Swin-V2-tiny, training step, 256 px, batch 8", variant="swinv2", size=256, batch=8
    ),
    "mobilevit_forward": Case(
        "classifier", "MobileViT-xxs, forward, 256 px, batch 4", "rest", variant="mobilevit", size=256, batch=4
    ),
    "mobilevit_step": Case(
        "classify", "MobileViT-xxs, training step, 256 px, batch 8", "rest", variant="mobilevit", size=256, batch=8
    ),
    "mobilenetv2_forward": Case(
        "classifier", "MobileNet-V2, forward, 224 px, batch 4", "rest", variant="mobilenetv2", size=224, batch=4
    ),
    "mobilenetv2_step": Case(
        "classify", "MobileNet-V2, training step, 224 px, batch 8", "rest", variant="mobilenetv2", size=224, batch=8
    ),
    "bert_forward": Case("reader", "BERT-mini, forward, 128 tokens, batch 16", variant="bert/mini", size=128, batch=16),
    "bert_step": Case(
        "read", "BERT-mini, training step, 128 tokens, batch 16", variant="bert/mini", size=128, batch=16
    ),
    "distilbert_step": Case(
        "read", "DistilBERT, training step, 128 tokens, batch 16", variant="distilbert/base", size=128, batch=16
    ),
    "image_text_teacher_step": Case(
        "answer",
        "ViT-L/16 with BERT-base, training step, 224 px, 256 tokens, batch 2",
        variant="vit_l16 bert/base 2",
        size=224,
        batch=2,
    ),
    "image_text_student_step": Case(
        "answer",
        "DeiT-B/16 with DistilBERT, training step, 224 px, 256 tokens, batch 4",
        variant="deit_b16_distilled distilbert/base 1",
        size=224,
        batch=4,
    ),
    **{
        f"sam_{v}_forward_1024": Case(
            "encoder",
            f"SAM ViT-{v.upper()} encoder, forward, 1024 px, batch 4",
            variant=f"vit_{v}",
            size=1024,
            batch=4,
            gpu_only=True,
        )
        for v in "lh"
    },
}

SAM = {  # variant -> width, depth, heads, blocks with global attention
    "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
}
WINDOW, PATCH, NECK = 14, 16, 256

BFLOAT16_TFLOPS = {  # dense peak by a part of the device's name, first match; TF32's is half of it on all of these
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "RTX 4090": 165,
}


def encoder_flops(variant: str, size: int) -> float:
    """Multiplications and additions that SAM's encoder needs for one image; what only padding costs is left out."""
    width, depth, _, everywhere = SAM[variant]
    side = size // PATCH
    n = side * side
    total = 2 * n * 3 * PATCH**2 * width + 2 * n * NECK * (width + 9 * NECK)
    for i in range(depth):
        keys = side if i in everywhere else min(WINDOW, side)  # along each axis
        total += 2 * n * 12 * width**2  # qkv, proj and the MLP of four times the width
        total += 2 * n * width * (2 * keys**2 + 2 * keys)  # scores and answers; relative positions
    return float(total)


def peak_flops(device: str, dtype: str, tflops: float | None = None) -> float | None:
    """Of the device's products per second in `dtype`; `tflops` is bfloat16's, where the table is not to be asked."""
    known = tflops or next((peak for name, peak in BFLOAT16_TFLOPS.items() if name in device), None)
    return known and known * 1e12 * (0.5 if dtype == "float32" else 1.0)


def arrays(case: Case) -> dict[str, np.ndarray]:
    """The same inputs for both sides. Images of a forward pass are normalised, [b, h, w, 3]; a step's are bytes."""
    rng = np.random.default_rng(0)
    if case.work == "product":
        m, k, n = PRODUCT
        return {"a": rng.normal(size=(m, k)).astype(np.float32), "b": rng.normal(size=(k, n)).astype(np.float32)}
    if case.work in ("encoder", "patches", "classifier"):
        return {"image": rng.normal(size=(case.batch, case.size, case.size, 3)).astype(np.float32)}
    if case.work in ("reader", "read"):
        return {**tokens(rng, case.batch, case.size), "class": rng.integers(0, 2, case.batch).astype(np.int32)}
    shape = (case.batch, case.image_size, case.image_size)
    image = rng.integers(0, 256, (*shape, 3)).astype(np.uint8)
    if case.work == "answer":
        answers = {name: rng.integers(0, classes, case.batch).astype(np.int32) for name, classes in LABELS.items()}
        return {"image": image, **tokens(rng, case.batch, CAPTION), **answers}
    return {
        "image": image,
        "mask": (rng.random(shape) < 0.3).astype(np.int32),
        "class": rng.integers(0, 2, case.batch).astype(np.int32),
    }


def tokens(rng: np.random.Generator, batch: int, longest: int) -> dict[str, np.ndarray]:
    """Of texts of several lengths."""
    mask = (np.arange(longest) < rng.integers(2, longest + 1, (batch, 1))).astype(np.int32)
    return {"input_ids": rng.integers(1, VOCABULARY, mask.shape).astype(np.int32) * mask, "attention_mask": mask}
