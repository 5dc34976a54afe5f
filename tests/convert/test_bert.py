"""What BERT's files differ in: prefixes, heads of pretraining, TensorFlow's names; and the vocabulary beside them."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers

from convert import families
from convert.export import export_file
from convert.family import ConvertError, build, fit
from convert.onto import read
from convert.sources import SourceError, Tensor, open_source
from kdjax.vocabulary import vocabulary_of
from tests.support.twins import randomised

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lung", "##s", "ä", "a\u2028b"]
TABLE = {token: i for i, token in enumerate(VOCAB)}
SIZES = {"vocab_size": 12, "max_position_embeddings": 16, "num_labels": 3}
BERT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 36, **SIZES}
DISTIL = {"dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 36, **SIZES}
KINDS = {"bert": ("Bert", BERT), "distilbert": ("DistilBert", DISTIL)}


def module(kind: str, what: str, **options: Any) -> Any:
    name, told = KINDS[kind]
    told = told | ({"num_labels": 2} if what == "ForQuestionAnswering" else {})
    config = getattr(transformers, f"{name}Config")(**told | options)
    return randomised(getattr(transformers, f"{name}{what}")(config).eval())


def state(of: Any) -> dict[str, Tensor]:
    return {name: tensor(x) for name, x in of.state_dict().items()}


def tensor(x: torch.Tensor) -> Tensor:
    array = x.detach().numpy()
    return Tensor("", array.shape, array.dtype, lambda: array)


def values(kind: str, tensors: dict[str, Tensor], **options: Any) -> dict[str, np.ndarray]:
    converted = fit(families.get(kind), tensors, {"heads": 3, **options})
    return {slot.target: converted.leaf(slot) for slot in converted.slots}


def equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        *[("bert", f"For{what}") for what in ("PreTraining", "MaskedLM", "TokenClassification", "QuestionAnswering")],
        *[("distilbert", f"For{what}") for what in ("MaskedLM", "TokenClassification", "QuestionAnswering")],
    ],
)
def test_heads_that_read_words_are_left_out_by_name(kind, what):
    """The encoder in them comes in as it would alone."""
    of = module(kind, what)
    converted = fit(families.get(kind), state(of), {"heads": 3})
    assert build(converted.model).num_classes == 0
    equal(values(kind, state(of)), values(kind, state(getattr(of, kind))))
    assert set(state(of)) == {n for n in state(of) if n.startswith(f"{kind}.")} | {
        n for n in converted.dropped if not n.startswith("pooler.")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_classifier_with_its_classes_or_without(kind):
    of = module(kind, "ForSequenceClassification")
    assert build(fit(families.get(kind), state(of), {"heads": 3}).model).num_classes == 3
    alone = values(kind, state(of), num_classes=0)
    equal(alone, values(kind, state(getattr(of, kind))))
    with pytest.raises(ConvertError, match="classifiers read the first token, found pool='mean'; features alone"):
        values(kind, state(of), pool="mean")
    equal(values(kind, state(of), pool="mean", num_classes=0), alone)


def test_names_of_files_that_came_from_tensorflow():
    plain = state(module("bert", "Model"))
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {next((n.replace(a, b) for a, b in older.items() if n.endswith(a)), n): x for n, x in plain.items()}
    assert len(set(renamed) - set(plain)) == 10
    renamed = {f"bert.{name}": x for name, x in renamed.items()}
    renamed["bert.embeddings.position_ids"] = tensor(torch.arange(16)[None])
    renamed["cls.predictions.transform.LayerNorm.gamma"] = tensor(torch.ones(24))
    equal(values("bert", renamed), values("bert", plain))
    dropped = fit(families.get("bert"), renamed, {"heads": 3}).dropped
    assert {"embeddings.position_ids", "cls.predictions.transform.LayerNorm.weight"} <= set(dropped)


def test_heads_are_the_variants_of_that_width():
    big = transformers.BertConfig(**BERT | {"hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 1})
    found = fit(families.get("bert"), state(transformers.BertModel(big)))
    assert build(found.model).options.heads == found.assumed["heads"] == 12  # MiniLM's
    with pytest.raises(ConvertError, match=r"no tensor's shape tells heads of this bert; add --set heads=\.\.\."):
        fit(families.get("bert"), state(module("bert", "Model")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What transformers saves of a BERT."""
    made = tmp_path_factory.mktemp("bert")
    module("bert", "Model", hidden_act="relu", layer_norm_eps=1e-3, hidden_dropout_prob=0.2).save_pretrained(made)
    return made


def copied(folder: Path, into: Path, **config: Any) -> Path:
    (into / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    told = {**json.loads((folder / "config.json").read_text()), **config}
    (into / "config.json").write_text(json.dumps({name: x for name, x in told.items() if x is not None}))
    return into


def options(folder: Path) -> Any:
    return build(fit(families.get("bert"), open_source(folder)).model).options


@pytest.mark.parametrize("kind", ["bert", None], ids=["as now", "as in older files"])
def test_a_config_tells_what_no_tensor_does(folder, tmp_path, kind):
    found = options(copied(folder, tmp_path, model_type=kind))
    assert (found.heads, found.activation, found.norm_eps, found.dropout) == (3, "relu", 1e-3, 0.2)
    assert found.vocabulary == ""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"vocab_size": 13}, "vocab_size: the tensors have 12, found 13"),
        ({"max_position_embeddings": 512}, "max_position_embeddings: the tensors have 16, found 512"),
        ({"position_embedding_type": "relative_key"}, 'position_embedding_type: kdjax computes it as "absolute" alone'),
        ({"model_type": "roberta"}, "says model_type 'roberta', expected 'bert'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folder, tmp_path, changed, said):
    with pytest.raises((SourceError, ConvertError), match=said):
        options(copied(folder, tmp_path, **changed))


def tokenizer(added: tuple[str, ...] = ()) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(dict(TABLE), unk_token="[UNK]"))
    made.add_special_tokens(["[CLS]"])
    made.add_tokens(list(added))
    return made


def test_the_vocabulary_beside_the_weights_is_the_tokenizers(folder, tmp_path):
    copied(folder, tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n", encoding="utf-8")
    assert tokenizers.models.WordPiece.read_file(str(tmp_path / "vocab.txt")) == TABLE
    assert options(tmp_path).vocabulary == vocabulary_of(TABLE)
    (tmp_path / "vocab.txt").write_bytes("\r\n".join(VOCAB).encode())
    assert options(tmp_path).vocabulary == vocabulary_of(TABLE)
    of = tokenizer(("<image>",))
    of.save(str(tmp_path / "tokenizer.json"))  # which transformers prefers too
    assert options(tmp_path).vocabulary == vocabulary_of(of.get_vocab()) != vocabulary_of(TABLE)
    spec = build(fit(families.get("bert"), open_source(tmp_path)).model).inputs["input_ids"]
    assert spec.vocabulary == vocabulary_of(of.get_vocab())


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vocab.txt", "\n".join(map(str, range(13))), "vocab.txt numbers tokens up to 12, the tensors have 12 rows"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0', "no whole file of a tokenizer; fetch it again"),
        ("tokenizer.json", '{"model": {}}', "expected tokens and their numbers, found something else"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "0"}}}', "expected tokens and their numbers"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "added_tokens": [3]}', "expected tokens and their numbers"),
        ("tokenizer.json", '{"model": {"vocab": [["a", -1.5]]}}', "expected tokens and their numbers"),
    ],
)
def test_a_vocabulary_that_cannot_be_the_weights_is_refused(folder, tmp_path, name, content, said):
    (copied(folder, tmp_path) / name).write_text(content)
    with pytest.raises((SourceError, ConvertError), match=said):
        options(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["Model", "ForSequenceClassification"])
def test_transformers_reads_what_goes_out(kind, what, tmp_path):
    """Nothing is missing but the pooler of features alone, and nothing is too much."""
    of = module(kind, what)
    of.save_pretrained(tmp_path)
    family = families.get(kind)
    converted = fit(family, open_source(tmp_path))
    variables = read(converted.variables)
    export_file(family, converted.model, variables, tmp_path / "model.safetensors")
    back, told = type(of).from_pretrained(tmp_path, output_loading_info=True)
    assert not told["unexpected_keys"]
    pooler = {f"pooler.dense.{leaf}" for leaf in ("weight", "bias")}
    assert set(told["missing_keys"]) == (pooler if (kind, what) == ("bert", "Model") else set())
    for name, x in of.state_dict().items():
        assert name in pooler or torch.equal(back.state_dict()[name], x), name
    export_file(family, converted.model, variables, tmp_path / "model.pth")
    assert not of.load_state_dict(torch.load(tmp_path / "model.pth"), strict=False).unexpected_keys


def test_the_hub_is_asked_for_vocabularies(monkeypatch, folder):
    asked = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(folder)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=download))
    assert len(open_source("hf:somebody/bert")) > 10
    assert {"config.json", "tokenizer.json", "vocab.txt"} <= set(asked)
