"""BERT under transformers' names: google/bert_uncased_L-4_H-256_A-4, emilyalsentzer/Bio_ClinicalBERT, MiniLM."""

from collections.abc import Mapping
from typing import Any

from convert.config_json import Config
from convert.families.vit import depth, ratio
from convert.family import ConvertError, Family, Shapes, build, nearest
from convert.table import Row, embed, linear, norm
from convert.vocabulary import vocabulary_beside
from kdjax.config import Model
from kdjax.models.text.bert import VARIANTS

# Of modules of BertModel, each alike in DistilBertModel but for its name.
EMBEDDINGS = ("embeddings.word_embeddings", "embeddings.position_embeddings")
BUFFERS = (r"embeddings\.(position_ids|token_type_ids)", "numbers the positions, as older files have it")
CLASSIFIER = (r"(pre_)?classifier\..*|pooler\..*", "features alone are read, no classes")


def prepared(tensors: Mapping[str, Any], at: str = "bert.") -> dict[str, Any]:
    """Under the names of the encoder alone; converted from TensorFlow, norms had other names."""
    older = {".gamma": ".weight", ".beta": ".bias"}

    def named(name: str) -> str:
        start, dot, leaf = name.removeprefix(at).rpartition(".")
        return start + older.get(dot + leaf, dot + leaf) if start.endswith("LayerNorm") else start + dot + leaf

    return {named(name): tensor for name, tensor in tensors.items()}


def exported(model: Model, name: str) -> str:
    """A classifier has its encoder in a module of its own."""
    return name if name.startswith("classifier.") or not build(model).num_classes else f"bert.{name}"


def rows(model: Model) -> tuple[Row, ...]:
    refuse_means(model)
    layer = "encoder.layer.{i}"
    return (
        *embed(*EMBEDDINGS, "embeddings.token_type_embeddings"),
        *norm("embeddings.LayerNorm", f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"),
        *linear(*(f"{layer}.attention.self.{name}" for name in ("query", "key", "value"))),
        *linear(f"{layer}.attention.output.dense", f"{layer}.intermediate.dense", f"{layer}.output.dense"),
        *linear("pooler.dense", "classifier"),
    )


def refuse_means(model: Model) -> None:
    ours = build(model)
    if ours.num_classes and ours.options.pool != "token":
        raise ConvertError(
            f"transformers' classifiers read the first token, found pool={ours.options.pool!r}; features alone "
            "(num_classes=0) may be a mean"
        )


def model_of(shapes: Shapes) -> Model:
    return model_with("bert", VARIANTS, told(shapes), classes(shapes, "pooler.dense.weight"))


def told(shapes: Shapes) -> dict[str, Any]:
    """What the shapes tell."""
    first = "encoder.layer.0.intermediate.dense.weight"
    return {**tables(shapes), **layers(shapes, "encoder.layer", shapes[first][0])}


def tables(shapes: Shapes) -> dict[str, Any]:
    (vocab_size, dim), (positions, _) = (shapes[f"{name}.weight"] for name in EMBEDDINGS)
    return {"vocab_size": vocab_size, "dim": dim, "positions": positions}


def layers(shapes: Shapes, at: str, hidden: int) -> dict[str, Any]:
    return {"depth": depth(shapes, at), "mlp_ratio": ratio(tables(shapes)["dim"], hidden)}


def classes(shapes: Shapes, between: str) -> int:
    """Of a classifier of whole texts, which has this tensor before it."""
    return shapes["classifier.weight"][0] if {"classifier.weight", between} <= shapes.keys() else 0


def model_with(name: str, variants: Mapping[str, Mapping[str, Any]], told: Mapping[str, Any], classes: int) -> Model:
    """The variant of that width, and what differs from it. No shape tells the number of heads, which is the
    variant's."""
    same = [variant for variant, own in variants.items() if own["dim"] == told["dim"]]
    options = nearest(name, same or variants, told) | ({} if same else {"heads": None})
    return Model(name, **options, num_classes=classes)


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    tensors = told(shapes)
    config.agrees("hidden_size", 768, tensors["dim"])
    config.agrees("num_hidden_layers", 12, tensors["depth"])
    config.agrees("intermediate_size", 3072, int(tensors["dim"] * tensors["mlp_ratio"]))
    config.agrees("vocab_size", 30_522, tensors["vocab_size"])
    config.agrees("max_position_embeddings", 512, tensors["positions"])
    if count := classes(shapes, "pooler.dense.weight"):
        config.classes(count)
    config.only("type_vocab_size", 2)
    config.only("position_embedding_type", "absolute")
    config.only("is_decoder", False)
    options = {
        "heads": config.get("num_attention_heads", 12),
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "activation": config.activation("hidden_act", "gelu"),
        "dropout": config.get("hidden_dropout_prob", 0.1),
        **vocabulary_beside(config, tensors["vocab_size"]),
    }
    config.check()
    return options


def untold(model: Model) -> tuple[str, ...]:
    return ("heads", "norm_eps", "activation")


FAMILY = Family(
    name="bert",
    told="BERT under Hugging Face's names, MiniLM too: google/bert_uncased_L-4_H-256_A-4, Bio_ClinicalBERT",
    variants={
        **{name: Model("bert", variant=name) for name in VARIANTS},
        "a classifier": Model("bert", variant="base", num_classes=2),
    },
    rows=rows,
    model_of=model_of,
    original="convert.originals.bert",
    prepared=prepared,
    exported=exported,
    in_modules=lambda model, name: name,
    model_types=("bert",),
    configured=configured,
    untold=untold,
    dropped=(
        BUFFERS,
        CLASSIFIER,
        (r"(cls|qa_outputs)\..*", "a head for words, as in pretraining"),
    ),
)
