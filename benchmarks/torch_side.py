"""The cases in PyTorch, written as its users write them."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import torch_image_text, torch_sam
from benchmarks.cases import CLASSES, LABELS, LR, TEMPERATURE, TERMS, WEIGHT_DECAY, Case, arrays
from convert.originals import bert, convnextv2_hf, ladeda, mobilenetv2, mobilevit, swinv2_hf, tinyusfm
from kdjax.config import Model

CLASSIFIERS = {  # model of kdjax -> the original
    "convnextv2": convnextv2_hf,
    "mobilenetv2": mobilenetv2,
    "mobilevit": mobilevit,
    "swinv2": swinv2_hf,
}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def facts() -> dict:
    cuda = torch.cuda.is_available()
    return {"backend": "gpu" if cuda else "cpu", "versions": {"torch": torch.__version__}}


def build(case: Case, dtype: str, compiled: bool, threads: int) -> tuple[Callable[[], object], Callable, int]:
    """What runs the work once, what waits for a result, and the number of trained parameters."""
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, XLA's default
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")
    given = arrays(case)

    def ready(model: nn.Module) -> nn.Module:
        return torch.compile(model.to(device)) if compiled else model.to(device)  # type: ignore

    def wait(result: object) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if case.work in ("product", "encoder", "patches", "classifier", "reader"):
        forward = forward_of(case, given, device, ready)

        def once() -> object:
            with torch.no_grad(), autocast:
                return forward()

        return once, wait, 0

    adapter = teacher = None
    model, normal = student_of(case)
    if case.work == "distil":
        teacher = ready(torch_sam.Segmenter(case.variant, case.size).eval().requires_grad_(False))
        adapter = nn.Sequential(nn.Conv2d(48, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()).to(device)
    model = ready(model.train())
    trained = [p for part in (model, adapter) if part is not None for p in part.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LR, weight_decay=WEIGHT_DECAY)

    def read_step() -> object:
        classes = torch.from_numpy(given["class"]).long().to(device)
        with autocast:
            logits = model(*tokens(given, device)).logits
        return descend(F.cross_entropy(logits.float(), classes))

    def answer_step() -> object:
        image = view(torch.from_numpy(given["image"]).to(device).permute(0, 3, 1, 2) / 255, *normal, case.image_size)
        with autocast:
            logits = model(image, *tokens(given, device))
        answers = {name: torch.from_numpy(given[name]).long().to(device) for name in LABELS}
        losses = [F.cross_entropy(logits[name].float(), right) for name, right in answers.items()]
        return descend(torch.stack(losses).sum())

    def descend(loss: torch.Tensor) -> torch.Tensor:
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.detach()

    def step() -> object:
        image = torch.from_numpy(given["image"]).to(device).permute(0, 3, 1, 2) / 255
        classes = torch.from_numpy(given["class"]).to(device)
        label = (classes if case.work == "tiny_ladeda" else torch.from_numpy(given["mask"]).to(device))[:, None].float()
        with autocast:
            seen = view(image, *normal, case.image_size)
            # Channels that come last make PyTorch 2.13 write where it may not, in gradients of so few of them.
            outputs = model(seen.contiguous() if case.work == "tiny_ladeda" else seen)
            if case.work == "tiny_ladeda":
                loss = F.binary_cross_entropy_with_logits(outputs.float(), label)
            elif case.work == "classify":
                loss = F.cross_entropy(outputs.logits.float(), classes.long())
            elif teacher is not None and adapter is not None:
                logits, features = outputs
                with torch.no_grad():
                    their_logits, theirs = teacher(view(image, *torch_sam.NORMAL, case.size))
                loss = distillation(logits, adapter(features), their_logits, theirs, label)
            else:
                bce, dice = supervised(outputs[0].float(), label)
                loss = 0.5 * (bce + dice)
        return descend(loss)

    steps = {"read": read_step, "answer": answer_step}
    return steps.get(case.work, step), wait, sum(p.numel() for p in trained)


def forward_of(case: Case, given: dict, device: torch.device, ready: Callable) -> Callable[[], object]:
    if case.work == "product":
        a, b = (torch.from_numpy(given[name]).to(device) for name in "ab")
        return lambda: a @ b
    if case.work == "reader":
        reads, of_texts = ready(reader(case).eval()), tokens(given, device)
        return lambda: reads(*of_texts)
    image = torch.from_numpy(given["image"]).permute(0, 3, 1, 2).to(device)  # channels come last
    if case.work == "classifier":
        model = classifier(case).to(memory_format=torch.channels_last)  # a fifth faster
    else:
        model = (
            ladeda.build(Model(case.variant)) if case.work == "patches" else torch_sam.encoder(case.variant, case.size)
        )
        image = image.contiguous()
    model = ready(model.eval())
    return lambda: model(image)


def classifier(case: Case) -> nn.Module:
    return CLASSIFIERS[case.variant].build(Model(case.variant, num_classes=CLASSES, image_size=case.size))


def reader(case: Case) -> nn.Module:
    """With the dropout of ours: of the states, not of the attention."""
    name, _, variant = case.variant.partition("/")
    module = bert.build(Model(name, variant=variant, num_classes=CLASSES if case.work == "read" else 0))
    for part in module.modules():
        if hasattr(part, "is_causal"):  # attention
            part.dropout.p = 0.0  # type: ignore
    return module


def tokens(given: dict, device: torch.device) -> list[torch.Tensor]:
    return [torch.from_numpy(given[name]).to(device) for name in ("input_ids", "attention_mask")]


def student_of(case: Case) -> tuple[nn.Module, tuple]:
    """What is trained, and what its images are normalised by."""
    if case.work == "lora":
        return torch_sam.with_lora(torch_sam.Segmenter(case.variant, case.size)), torch_sam.NORMAL
    if case.work == "tiny_ladeda":
        return ladeda.build(Model(case.variant)), IMAGENET
    if case.work == "classify":
        return classifier(case).to(memory_format=torch.channels_last), IMAGENET
    if case.work == "read":
        return reader(case), ()
    if case.work == "answer":
        image, text, layers = case.variant.split()
        reads = reader(replace(case, work="reader", variant=text))
        return torch_image_text.ImageText(image, case.size, reads, int(layers)), torch_image_text.NORMAL
    return Student(), IMAGENET


def peak_bytes() -> int | None:
    """On the GPU; None without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class Student(nn.Module):
    """TinyUSFM that also gives the features its teacher is compared with."""

    def __init__(self):
        super().__init__()
        self.model = tinyusfm.SegmentationModel()

    def forward(self, image):
        maps = self.model.neck(self.model.backbone.maps(image, self.model.taps))
        return tinyusfm.resize(self.model.decode_head(maps), image.shape[2:]), maps[2]


def view(image: torch.Tensor, mean: tuple, std: tuple, size: int) -> torch.Tensor:
    if image.shape[-1] != size:
        image = F.interpolate(image, (size, size), mode="bilinear", antialias=True)
    return (image - image.new_tensor(mean)[:, None, None]) / image.new_tensor(std)[:, None, None]


def supervised(logits: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy and soft Dice."""
    p = logits.sigmoid()
    overlap, size = (p * mask).sum((1, 2, 3)), (p * p + mask).sum((1, 2, 3))
    return F.binary_cross_entropy_with_logits(logits, mask), (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()


def distillation(logits, features, their_logits, theirs, mask) -> torch.Tensor:
    logits, features = logits.float(), features.float()
    their_logits, theirs = (
        tinyusfm.resize(x.float(), y.shape[2:]) for x, y in ((their_logits, logits), (theirs, features))
    )
    s, t = logits / TEMPERATURE, their_logits / TEMPERATURE
    kl = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s)) + (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    bce, dice = supervised(logits, mask)
    parts = {"bce": bce, "dice": dice, "kl": TEMPERATURE**2 * kl.mean(), "feature": F.mse_loss(features, theirs)}
    return torch.stack([TERMS[name] * part for name, part in parts.items()]).sum()
