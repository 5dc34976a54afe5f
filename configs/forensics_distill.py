"""LaDeDa distilled into Tiny-LaDeDa: was an image generated, told patch by patch.

    python -m kdjax.launch --config=configs/forensics_distill.py               drawn images, nothing to download
    python -m kdjax.launch --config=configs/forensics_distill.py:smoke         the same, tiny
    python -m kdjax.launch --config=configs/forensics_distill.py:folder=DIR    {train,val}/{0_real,1_fake}, test/SET/..
    python -m kdjax.launch --config=configs/forensics_distill.py:csv=FILE      a table of path,label
    python -m kdjax.launch --config=configs/forensics_distill.py --stage=diagnose    is the teacher any good here?

A detector knows the generators that it was trained on; on one's own images it may be worth nothing. So it is measured
first (`diagnose`), and the gates act by what they find: from an AUC of 0.65 on it is good, from 0.55 on marginal, and
below that its last block is trained on one's own images (`finetuned`); where that does not help either, the students
are trained with cross-entropy alone. `:camera=phone` draws a teacher that knows other cameras. The
students learn the teacher's logit of each patch beside the labels, in two stages (`head`, then `student`) or in one
(`single`).

Drawn images, twelve of 1,200 labelled, AUC over seeds 0 to 2: LaDeDa 0.791 ± 0.008 (343,057 parameters), distilled in
one stage 0.803 ± 0.002 (1,297), the same without teacher 0.712 ± 0.016; 159 s on two cores of an AMD EPYC.

--teacher=wildrf|forensynth takes the published weights, --teacher=finetuned tunes whatever comes, and any other word is
a file. The published ones are converted by

    python -m convert ladeda --src WildRF_LaDeDa.pth --dst weights/ladeda_wildrf.safetensors --set preprocess=npr
"""

from typing import Any

from kdjax.config import (
    ConfigError,
    Data,
    Experiment,
    Gate,
    Model,
    Optim,
    Schedule,
    Stage,
    Stop,
    Task,
    Teacher,
    Term,
    nearest,
)

VARIANTS = ("", "smoke", "folder", "csv")
WORDS = ("teacher", "blocks", "align", "progress", "camera")  # behind a comma: folder=/faces,teacher=wildrf,blocks=2
PUBLISHED = {name: f"weights/ladeda_{name}.safetensors" for name in ("wildrf", "forensynth")}
ALIGN = ("windows", "centres", "crops")  # how the student's patches meet the teacher's
PROGRESS = ("epochs", "auc")  # what the weights of the terms go by
CAMERAS = ("studio", "phone")  # that took the drawn images which the teacher is trained on; those that matter: studio

GOOD, MARGINAL = 0.65, 0.55  # AUC
WEIGHTS = (0.01, 0.05, 0.1, 0.5)  # of what the teacher says of patches; the labels have the rest
SURER = (0.7, 0.8, 0.9)  # the AUC from which on each following weight holds, where they go by it
EPOCHS = {  # of the teacher, of tuning it, and of the students: head, student, single
    "": (7, 8, 3, 8, 16),
    "smoke": (1, 1, 1, 1, 2),
    "folder": (0, 30, 5, 20, 50),
    "csv": (0, 30, 5, 20, 50),
}
DETECTION = Task("detection", by="auc", threshold="accuracy", damages=("jpeg", "blur", "resize"))


def get_config(variant: str = "") -> Experiment:
    variant, place, words = read(variant)
    own, tuned = variant in ("folder", "csv"), words["teacher"] == "finetuned"
    file = PUBLISHED.get(words["teacher"], "" if tuned else words["teacher"]) or (PUBLISHED["wildrf"] if own else "")
    pretraining, tuning, first, second, single = EPOCHS[variant]
    large, tiny = models(bool(file), variant == "smoke")
    here, elsewhere = images(variant, place, words["camera"] or "studio")
    rate = 1e-4 if own else 1e-3

    teacher = Stage(
        task=DETECTION,
        title="LaDeDa, pretraining",
        auxiliary=True,
        data=here if file else elsewhere,
        model=large,
        init=file,
        adopt=True,
        optim=Optim("adam", lr=1e-3, warmup=0.5, weight_decay=1e-4, clip=1.0, ema=0.98),
        epochs=0 if file else pretraining,
        grad_norms_every=0,
    )
    diagnose = Stage(
        task=DETECTION,
        title="LaDeDa, as it comes",
        data=here,
        model=large,
        init="stage:teacher",
        adopt=True,
        epochs=0,
        gate=None if tuned else Gate(MARGINAL, good=GOOD, otherwise="finetuned"),
    )
    plateau: dict[str, Any] = {"schedule": "plateau", "over": "auc", "patience": 3, "weight_decay": 1e-4}
    finetuned = Stage(
        task=DETECTION,
        title="LaDeDa, last block tuned",
        data=here,
        model=large,
        init="stage:diagnose",
        adopt=True,
        optim=Optim("adam", lr=rate, trainable=last_blocks(large, int(words["blocks"] or 1)), **plateau),
        epochs=tuning,
        stop=Stop(patience=5),
        gate=Gate(MARGINAL, good=GOOD, otherwise="control"),
        grad_norms_every=0,
    )
    stages = {"teacher": teacher, "diagnose": diagnose, "finetuned": finetuned}

    def distilled(title: str, epochs: int, optim: Optim, **fields: Any) -> Stage:
        learnt_from = Teacher(stage="finetuned" if tuned else "diagnose")
        return student(here, tiny, learnt_from, words, epochs, title=title, optim=optim, **fields)

    cosine: dict[str, Any] = {"end_lr": 1e-6, "weight_decay": 1e-4, "clip": 1.0}
    stages["head"] = distilled(
        "student, first stage, distilled",
        first,
        Optim("adam", lr=1e-3, trainable=only("fc"), **plateau),
        auxiliary=True,
    )
    stages["student"] = distilled(
        "student, two stages, distilled",
        second,
        Optim("adam", lr=rate, trainable=only("layer1_0", "fc"), **cosine),
        init="stage:head",
    )
    stages["single"] = distilled(
        "student, one stage, distilled", single, Optim("adam", lr=1e-3 if own else 4e-3, **cosine)
    )
    return Experiment(name="forensics_distill", stages=stages, quick_compile=variant == "smoke")


def read(variant: str) -> tuple[str, str, dict[str, str]]:
    """ "folder=DIR,teacher=wildrf" -> the variant, its place, and the other words."""
    first, *others = variant.split(",")
    name, _, place = first.partition("=")
    if name in WORDS:
        name, place, others = "", "", [first, *others]
    if name not in VARIANTS:
        raise ConfigError(
            f"configs/forensics_distill.py has no variant {name!r}; {nearest(name, [*VARIANTS[1:], *WORDS])}"
        )
    words: dict[str, str] = {word: "" for word in WORDS}
    for other in others:
        word, _, value = other.partition("=")
        if word not in WORDS:
            raise ConfigError(f"configs/forensics_distill.py knows no {word!r}; {nearest(word, WORDS)}")
        words[word] = value
    for word, choices in (("align", ALIGN), ("progress", PROGRESS), ("camera", CAMERAS)):
        if words[word] not in ("", *choices):
            raise ConfigError(f"{word}={words[word]}: expected one of {', '.join(choices)}")
    if words["blocks"] and not words["blocks"].isdigit():
        raise ConfigError(f"blocks={words['blocks']}: expected how many of the last blocks are tuned, a whole number")
    return name, place, words


def student(data: Data, tiny: Model, teacher: Teacher, words: dict[str, str], epochs: int, **fields: Any) -> Stage:
    """What the teacher says of each patch, and the labels; the former counts for more as training goes on."""
    if words["align"] == "crops":
        tiny = Model(tiny.name, **tiny.options, crop=10, stride=8)
    adapter = {"windows": "adaptive_pool", "centres": "patch_centres", "crops": ""}[words["align"] or "windows"]
    over = "auc" if words["progress"] == "auc" else ""
    at = SURER if over else [epochs * quarter / 4 for quarter in (1, 2, 3)]

    def progress(weights: list[float]) -> Schedule:
        return Schedule("steps", start=weights[0], points=tuple(zip(at, weights[1:], strict=True)), over=over)

    return Stage(
        task=DETECTION,
        data=data,
        model=tiny,
        epochs=epochs,
        teachers={"ladeda": teacher},
        terms={
            "patches": Term(
                "mse", "patch_logits", "ladeda:patch_logits", adapter=adapter, schedule=progress([*WEIGHTS])
            ),
            "bce": Term("bce", label="class", schedule=progress([1 - weight for weight in WEIGHTS])),
        },
        grad_norms_every=5,
        **fields,
    )


def models(published: bool, smoke: bool) -> tuple[Model, Model]:
    """LaDeDa sees what cells of 2 x 2 pixels leave over, Tiny-LaDeDa a diagonal gradient, as in the original."""
    size = 256 if published else 64
    options: dict[str, Any] = {} if published else {"variant": "small"}
    if smoke:
        options["widths"] = (4, 8, 8, 16)
    return Model("ladeda", preprocess="npr", image_size=size, **options), Model("tiny_ladeda", image_size=size)


def images(variant: str, place: str, camera: str) -> tuple[Data, Data]:
    """The images that matter, of those that are drawn few labelled, and others that the small LaDeDa is trained on."""
    augment = {"augment": {"hflip": 0.5, "jpeg": 0.1, "blur": 0.1}}
    if variant in ("folder", "csv"):
        own: dict[str, Any] = {"image_size": 256, "batch_size": 16, **augment}
        if variant == "folder":
            here = Data("real_fake", root=place or "data/faces", **own)
        else:
            here = Data("real_fake_table", csv=place or "data/faces.csv", **own)
        return here, here
    drawn: dict[str, Any] = {"size": 64, "image_size": 64, "batch_size": 16, **augment}
    drawn |= {"train": 64, "val": 32, "test": 16} if variant == "smoke" else {"train": 1200, "val": 300, "test": 200}
    here = Data("forgeries", labelled=0.5 if variant == "smoke" else 0.01, **drawn)
    return here, Data("forgeries", domain=camera, seed=1, **drawn)


def only(*parts: str) -> tuple[tuple[str, bool], ...]:
    """These parts of the model are trained, and the adapters."""
    return ((rf"model/({'|'.join(parts)})/.*", True), (r"model/.*", False), (r".*", True))


def last_blocks(model: Model, count: int) -> tuple[tuple[str, bool], ...]:
    depths = model.options.get("depths") or ((1, 1, 1, 1) if model.options.get("variant") == "small" else (3, 4, 6, 3))
    blocks = [f"layer{i + 1}_{j}" for i, depth in enumerate(depths) for j in range(depth)]
    return only(*blocks[-count:], "fc")
