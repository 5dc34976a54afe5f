"""What a run of a tiny model of images and captions has left, of random weights: its data are not there."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kdjax.config import Data, Experiment, Mesh, Model, Stage, Task
from kdjax.data.text import tokenizers
from kdjax.distill.teachers import build_model
from kdjax.experiment.saved import to_json
from kdjax.train.setup import initialiser
from kdjax.weights import safetensors
from tests.support import folders

CLASSES = {"modality": ["CT", "MR"], "location": ["Abdomen", "Head <b>", "Thorax"]}
TEMPERATURES = {"modality": 0.5, "location": 2.0}
WORDS = ("axial", "ct", "mr", "of", "the", "head", "chest", "shows", "a", "mass")
SIDE, LENGTH = 16, 6
INPUTS = {name: f"{name}_student" for name in ("input_ids", "attention_mask")}
TOKENIZER = "tokenizer_student.json"


class Run(NamedTuple):
    workdir: Path
    experiment: Experiment
    model: Any
    variables: dict

    @property
    def folder(self) -> Path:
        return self.workdir / "stages" / "student"


def tokenizer(words: tuple[str, ...] = WORDS, length: int = LENGTH) -> tokenizers.Tokenizer:
    vocab = {word: i for i, word in enumerate((*tokenizers.SPECIALS, *words))}
    return tokenizers.Tokenizer(tokenizers.bert(vocab), length, tokenizers.PAD)


def saved(folder: Path) -> str:
    """A file with the tokenizer."""
    path = folder / TOKENIZER
    path.write_text(json.dumps(tokenizer().keepsake()))
    return str(path)


def run(workdir: Path, parts: tuple[str, ...] = ("image", "text"), table: str = "nowhere.csv") -> Run:
    """`parts` are what the model reads, `table` its data."""
    words = tokenizer()
    given: dict[str, Any] = {
        "image": {
            "name": "convnet",
            "options": {"image_size": SIDE, "widths": (4,), "depths": (1,), "num_classes": 0},
        },
        "text": {
            "name": "bert",
            "options": {
                "variant": "tiny",
                "dim": 8,
                "depth": 1,
                "heads": 2,
                "positions": 8,
                "vocab_size": words.vocab_size,
                "vocabulary": words.vocabulary,
            },
        },
    }
    given = {name: given[name] for name in parts}
    labels = {name: len(classes) for name, classes in CLASSES.items()}
    model = Model("image_text", labels=labels, dim=8, fusion="gated", **given)
    tokens = {"tokenizers": {"student": {"path": str(workdir / "stages" / "student" / TOKENIZER)}}, "cache": ""}
    of_records = {"table": table, "labels": CLASSES, "missing": "text", **tokens}
    data = Data("records", **of_records, image_size=SIDE, batch_size=4, num_classes=None)
    stage = Stage(task=Task("answers", labels=tuple(CLASSES)), data=data, model=model, epochs=1, inputs=INPUTS)
    experiment = Experiment(name="tiny", stages={"student": stage}, mesh=Mesh(data=1))
    built = build_model(model)
    variables = jax.tree.map(np.array, initialiser(built)(jax.random.key(0)))
    for label in CLASSES:
        variables["params"][f"head_{label}"]["kernel"] *= 20
    about = safetensors.about(model) | {"label_classes": json.dumps(CLASSES)}
    about |= {f"temperature_{label}": repr(value) for label, value in TEMPERATURES.items()}
    made = Run(workdir, experiment, built, variables)
    made.folder.mkdir(parents=True)
    safetensors.save(made.folder / "model.safetensors", variables, about)
    if "text" in parts:
        saved(made.folder)
    (workdir / "config.json").write_text(to_json(experiment))
    return made


def table(folder: Path, splits: tuple[str, ...] = ("test",) * 8) -> Path:
    """Of records of these splits, with images beside it."""
    lines = ["image,text,split,modality,location"]
    for i, split in enumerate(splits):
        image = "" if i == 3 else folders.picture(folder / f"{i}.png", i, (20, 30)).name
        text, place = ("" if i == 1 else f"{WORDS[1 + i % 2]} of the {WORDS[5 + i % 3]}"), CLASSES["location"][i % 3]
        lines.append(f"{image},{text},{split},{CLASSES['modality'][i % 2]},{'' if i == 2 else place}")
    path = folder / "records.csv"
    path.write_text("\n".join(lines))
    return path
