"""DistilBERT under transformers' names: distilbert-base-uncased, and classifiers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from convert.config_json import Config
from convert.families import bert
from convert.family import Family, Shapes, build
from convert.table import Row, embed, linear, norm
from convert.vocabulary import vocabulary_beside
from kdjax.config import Model
from kdjax.models.text.bert import DISTILBERT_VARIANTS

BETWEEN = "pre_classifier.weight"
LAYERS = "transformer.layer"
# Of a layer: names in files -> of our modules, which are BERT's.
LINEAR = {
    "attention.q_lin": "attention/self/query",
    "attention.k_lin": "attention/self/key",
    "attention.v_lin": "attention/self/value",
    "attention.out_lin": "attention/output/dense",
    "ffn.lin1": "intermediate/dense",
    "ffn.lin2": "output/dense",
}
NORMS = {"sa_layer_norm": "attention/output/LayerNorm", "output_layer_norm": "output/LayerNorm"}


def exported(model: Model, name: str) -> str:
    alone = name.startswith(("classifier.", "pre_classifier.")) or not build(model).num_classes
    return name if alone else f"distilbert.{name}"


def rows(model: Model) -> tuple[Row, ...]:
    bert.refuse_means(model)

    def each(kind: Any, names: Mapping[str, str]) -> tuple[Row, ...]:
        found = (kind(f"{LAYERS}.{{i}}.{name}", target=f"encoder/layer_{{i}}/{ours}") for name, ours in names.items())
        return tuple(row for several in found for row in several)

    return (
        *embed(*bert.EMBEDDINGS),
        *norm("embeddings.LayerNorm"),
        *each(linear, LINEAR),
        *each(norm, NORMS),
        *linear("pre_classifier", target="pooler/dense"),
        *linear("classifier"),
    )


def model_of(shapes: Shapes) -> Model:
    return bert.model_with("distilbert", DISTILBERT_VARIANTS, told(shapes), bert.classes(shapes, BETWEEN))


def told(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    return {**bert.tables(shapes), **bert.layers(shapes, LAYERS, shapes[f"{LAYERS}.0.ffn.lin1.weight"][0])}


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    tensors = told(shapes)
    config.agrees("dim", 768, tensors["dim"])
    config.agrees("n_layers", 6, tensors["depth"])
    config.agrees("hidden_dim", 3072, int(tensors["dim"] * tensors["mlp_ratio"]))
    config.agrees("vocab_size", 30_522, tensors["vocab_size"])
    config.agrees("max_position_embeddings", 512, tensors["positions"])
    if count := bert.classes(shapes, BETWEEN):
        config.classes(count)
    options = {
        "heads": config.get("n_heads", 12),
        "activation": config.activation("activation", "gelu"),
        "dropout": config.get("dropout", 0.1),
        **vocabulary_beside(config, tensors["vocab_size"]),
    }
    config.check()
    return options


FAMILY = Family(
    name="distilbert",
    told="DistilBERT under Hugging Face's names: distilbert-base-uncased, and classifiers",
    variants={
        **{name: Model("distilbert", variant=name) for name in DISTILBERT_VARIANTS},
        "a classifier": Model("distilbert", variant="base", num_classes=2),
    },
    rows=rows,
    model_of=model_of,
    original="convert.originals.bert",
    prepared=partial(bert.prepared, at="distilbert."),
    exported=exported,
    in_modules=lambda model, name: name,
    model_types=("distilbert",),
    configured=configured,
    untold=lambda model: ("heads", "activation"),
    dropped=(bert.BUFFERS, bert.CLASSIFIER, (r"(vocab_\w+|qa_outputs)\..*", "a head for words, as in pretraining")),
)
