"""Radiology images with captions: a large vision and text teacher into a small student.

    python -m kdjax.launch --config=configs/medpix_distill.py                     generated scans, nothing to download
    python -m kdjax.launch --config=configs/medpix_distill.py:smoke               the same, tiny
    python -m kdjax.launch --config=configs/medpix_distill.py:medpix=DIR          splitted_dataset/*.jsonl and images/
    python -m kdjax.launch --config=configs/medpix_distill.py:text=DIR            its captions alone
    python -m kdjax.launch --config=configs/medpix_distill.py:recipe=rkd          another way to distil, of five

Both models read an image and its caption and answer two questions: modality (CT, MR) and location (five places). Each
has a tokenizer of its own, and a batch holds the tokens of both. What the teacher hands on is a recipe: `vanilla` (its
answers, softened, and its embeddings), `combined` (these and `crd`), `crd` (which embedding belongs to which), `rkd`
(distances and angles between embeddings), `mmd` (their distribution). `:recipe=rkd,frozen` compares through random maps
that nothing trains, as the original does. The fusion of image and text is an option:

    --config.stages.student.model.options.fusion=film

`:medpix=DIR` takes ViT-L and Bio_ClinicalBERT, DeiT-B and DistilBERT, and trains them as the original does; published
weights are named behind commas, as `python -m convert` writes them, and the tokenizers that belong to them:
`:medpix=DIR,teacher_image=weights/vit.safetensors,teacher_text=weights/clinical.safetensors,teacher_tokens=clinical`.
`:medpix=DIR,small` and `:text=DIR` take models that learn from nothing, and tokenizers made of the captions.

Generated scans, 1,600 of them labelled for the teacher and 83 for the student, macro F1 over both labels on 400 test
records, mean of three seeds: teacher 0.834 (1,142,503 parameters), student 0.809 (77,223), the same without teacher
0.592; 187 s on two idle cores of an AMD EPYC. Published models were not trained.
"""

from typing import Any

from kdjax.config import ConfigError, Data, Experiment, Model, Optim, Stage, Task, Teacher, Term, nearest

VARIANTS = ("", "smoke", "medpix", "text")
RECIPES = ("vanilla", "combined", "crd", "rkd", "mmd")
ALONE = ("small", "frozen")  # words without a value
FILES = tuple(f"{who}_{what}" for who in ("teacher", "student") for what in ("image", "text", "tokens"))
LABELS = ("modality", "location")
TOKENS = {"": 64, "smoke": 32, "medpix": 96, "text": 96}  # of a caption at most, for small models; others: 256
SIZES = {"": 48, "smoke": 32, "medpix": 64, "text": 64}  # pixels, of small models; published ones take 224
VOCABULARY = {"teacher": 2000, "student": 400}  # of tokenizers that are made of the captions
EPOCHS = {"": (12, 20), "smoke": (1, 1), "medpix": (40, 60), "text": (12, 40)}  # of small models; others: (5, 10)


def get_config(variant: str = "") -> Experiment:
    name, place, words = read(variant)
    small = name != "medpix" or "small" in words
    data: dict[str, Any] = {"name": name, "place": place, "words": words, "small": small}
    epochs = EPOCHS[name] if small else (5, 10)
    seen = ("text",) if name == "text" else ("image", "text")
    models = small_models(SIZES[name], seen) if small else published_models()
    teacher = Stage(
        task=Task("answers", labels=LABELS),
        title="teacher",
        data=records(**data),
        model=models["teacher"],
        inputs=tokens_of("teacher"),
        parts=weights_in(words, "teacher"),
        optim=optim(small, 1e-5),
        epochs=epochs[0],
        grad_norms_every=0,
    )
    student = Stage(
        task=Task("answers", labels=LABELS),
        title="student, distilled",
        data=records(**data, labelled=0.05 if name in ("", "smoke") else 1.0),
        model=models["student"],
        inputs=tokens_of("student"),
        parts=weights_in(words, "student"),
        teachers={"large": Teacher(stage="teacher", inputs=tokens_of("teacher"))},
        terms=recipe(words.get("recipe", "vanilla"), seen, "frozen" in words),
        optim=optim(small, 3e-4),
        epochs=epochs[1],
        grad_norms_every=0,
    )
    stages = {"teacher": teacher, "student": student}
    return Experiment(name="medpix_distill", stages=stages, quick_compile=name == "smoke")


def read(variant: str) -> tuple[str, str, dict[str, str]]:
    """ "medpix=DIR,recipe=crd" -> the variant, its place, and the words behind it."""
    first, *others = variant.split(",")
    if first.partition("=")[0] not in VARIANTS:
        first, others = "", [first, *others]
    name, _, place = first.partition("=")
    words: dict[str, str] = {}
    for word in others:
        key, _, words[key] = word.partition("=")
    known = [*ALONE, *(f"{word}=..." for word in ("recipe", *FILES))]
    for word, value in words.items():
        if word not in (*ALONE, "recipe", *FILES) or bool(value) == (word in ALONE):
            raise ConfigError(
                f"configs/medpix_distill.py has no variant {word!r}; {nearest(word, [*VARIANTS[1:], *known])}"
            )
    if (chosen := words.get("recipe", "vanilla")) not in RECIPES:
        raise ConfigError(f"recipe={chosen}: no such recipe; {nearest(chosen, RECIPES)}")
    small = "small" in words or name != "medpix"
    if small and (named := [word for word in words if word in FILES and not word.endswith("tokens")]):
        raise ConfigError(f"{', '.join(named)}: published weights are not for small models; leave out either")
    return name, place, words


# -- what is learned from ----------------------------------------------------------------------------------------------


def records(name: str, place: str, words: dict[str, str], small: bool, labelled: float = 1.0) -> Data:
    tokenizers = {
        who: {"path": words[f"{who}_tokens"]} if f"{who}_tokens" in words else {"train": size}
        for who, size in VOCABULARY.items()
    }
    common: dict[str, Any] = {
        "image_size": SIZES[name] if small else 224,
        "num_classes": None,
        "batch_size": 64 if name in ("", "text") else 16,
        "tokenizers": tokenizers,
        "length": TOKENS[name] if small else 256,
        "labelled": labelled,
        "augment": {} if name == "text" else {"crop": 0.5, "rotate": 0.3},
    }
    if name in ("medpix", "text"):
        return Data("medpix", root=place or "data/MedPix-2.0", images=name == "medpix", **common)
    drawn = {"train": 120, "val": 40, "test": 40} if name == "smoke" else {}
    return Data("scans", size=SIZES[name], **drawn, **common)


def tokens_of(whose: str) -> dict[str, str]:
    """Which fields a model reads of the two that hold tokens."""
    return {field: f"{field}_{whose}" for field in ("input_ids", "attention_mask")}


# -- models ------------------------------------------------------------------------------------------------------------


def published_models() -> dict[str, Model]:
    """ViT-L with Bio_ClinicalBERT, and DeiT-B with DistilBERT."""
    return {
        "teacher": model(
            part("vit", variant="vit_l16", norm_eps=1e-12),
            part("bert", variant="base", vocab_size=None, vocabulary=None),
            512,
            2,
        ),
        "student": model(
            part("vit", variant="deit_b16_distilled", norm_eps=1e-12),
            part("distilbert", variant="base", vocab_size=None, vocabulary=None),
            512,
            1,
        ),
    }


def small_models(size: int, seen: tuple[str, ...]) -> dict[str, Model]:
    """What learns from nothing in minutes: transformers of patches of 8 pixels, and BERTs of a few layers."""

    def pair(dim: int, depth: int, heads: int) -> Model:
        shape = {"dim": dim, "depth": depth, "heads": heads}
        image = part("vit", variant="vit_ti16", image_size=size, patch_size=8, taps=[depth - 1], **shape)
        text = part("bert", variant="tiny", vocab_size=None, vocabulary=None, pool="mean", **shape)
        return model(image if "image" in seen else None, text, dim, 1)

    return {"teacher": pair(96, 4, 4), "student": pair(32, 1, 2)}


def model(image: dict | None, text: dict, dim: int, layers: int) -> Model:
    parts = {"image": image, "text": text} if image else {"text": text}
    return Model("image_text", **parts, fusion="simple", dim=dim, layers=layers, labels=None)


def part(name: str, **options: Any) -> dict[str, Any]:
    return {"name": name, "options": options}


def weights_in(words: dict[str, str], whose: str) -> dict[str, str]:
    return {part: words[f"{whose}_{part}"] for part in ("image", "text") if f"{whose}_{part}" in words}


# -- how it is learned -------------------------------------------------------------------------------------------------


def recipe(name: str, seen: tuple[str, ...], frozen: bool = False) -> dict[str, Term]:
    """What is learned of the teacher, beside the labels, with the weights of the original. `frozen`: as it has them,
    the teacher's features go through random maps that nothing trains, and relations are those of its code."""
    temperature = 4.0 if name == "combined" else 2.0
    answers = {
        f"kl_{label}": Term("kl", f"logits_{label}", f"large:logits_{label}", args={"temperature": temperature})
        for label in LABELS
    }
    variant = {"variant": "code"} if frozen else {}

    def features(loss: str, weight: float, **args: Any) -> dict[str, Term]:
        return {f"{e}_{loss}": embedding(loss, e, weight, args, frozen) for e in seen}

    share = 1.0 / len(seen)  # all but the squares are a mean over image and text
    match name:
        case "vanilla":
            return answers | features("mse", 100.0)
        case "combined":
            return answers | features("mse", 100.0) | features("infonce", 10.0 * share)
        case "crd":
            return features("infonce", share)
        case "rkd":
            return features("rkd_distance", 25.0 * share, **variant) | features("rkd_angle", 50.0 * share, **variant)
    return features("mmd", share)


def embedding(loss: str, of: str, weight: float, args: dict[str, Any], frozen: bool) -> Term:
    """Between the student's embedding of image or text and what the teacher's backbone gives, where there is one."""
    student, teacher, common = f"{of}_embedding", f"large:{of}_features", {"weight": weight, "over": f"{of}_there"}
    reads = {"student": f"student:{student}", "teacher": teacher}
    if frozen:
        return Term("projected", reads=reads, args={"loss": loss, "args": args}, **common)
    if loss.startswith("rkd"):  # relations are of any two widths
        return Term(loss, reads=reads, args=args, **common)
    return Term(loss, student, teacher, adapter="linear", args=args, **common)


def optim(small: bool, lr: float) -> Optim:
    """`lr` is the original's, for models that come with weights."""
    if small:
        return Optim("adamw", lr=2e-3, warmup=0.5, weight_decay=0.02, ema=0.98)
    return Optim("adamw", lr=lr, schedule="constant", weight_decay=0.01)
