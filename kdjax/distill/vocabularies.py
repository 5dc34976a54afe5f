"""Whether models read the tokens that they know: the ids of another tokenizer are numbers as well, of other words."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdjax.config import ConfigError, Model
from kdjax.data.fields import TokensField
from kdjax.distill.taps import Network
from kdjax.distill.teachers import Frozen, Source, Tail

BATCH = "batch:"


def refuse_strange_tokens(student: Network, sources: Mapping[str, Source], fields: Mapping[str, Any]) -> None:
    """Refuses a student or a frozen source that reads tokens of another vocabulary than its own."""
    reading = {"the student": (student.model, _read(student))}
    for key, source in sources.items():
        if isinstance(source, Frozen):
            reading[f"teachers.{key}"] = source.network.model, _read(source.network)
        elif isinstance(source, Tail):
            of_batch = {k: path.removeprefix(BATCH) for k, path in source.reads if path.startswith(BATCH)}
            reading[f"teachers.{key}"] = source.network.model, of_batch
    faults = [fault for who, (model, names) in reading.items() for fault in _faults(who, model, names, fields)]
    if faults:
        raise ConfigError("\n  ".join(faults))


def fault(model: Model, begun: Sequence[Model]) -> str:
    """What keeps a model from starting with the weights of others that read other tokens; "" where nothing does."""
    own, theirs = _of(model.options), {v for other in begun for v in _of(other.options)}
    if not own or not theirs or own & theirs:
        return ""
    return (
        f"the weights know tokens of the vocabulary {', '.join(sorted(theirs))}, and the model is given those of "
        f"{', '.join(sorted(own))}; let it read the field of that tokenizer, inputs={{'input_ids': FIELD}}, or give "
        "the data the tokenizer that was left beside the weights"
    )


def _read(network: Network) -> dict[str, str]:
    """The field of each input."""
    return {name: name for name in network.model.inputs} | dict(network.names)


def _faults(who: str, model: Any, names: Mapping[str, str], fields: Mapping[str, Any]) -> list[str]:
    tokens = {name: field for name, field in fields.items() if isinstance(field, TokensField)}
    read = {name: names[name] for name in model.inputs if names.get(name) in tokens}
    if len({tokens[name].vocabulary for name in read.values()}) > 1:
        return [f"{who} reads {' and '.join(read.values())}, which are of two tokenizers; name two fields of one"]
    faults = []
    for name, field in read.items():
        given, (size, vocabulary) = tokens[field], known(model.inputs[name])
        if fits(model.inputs[name], given):
            continue
        others = [k for k, other in tokens.items() if k != field and _same(other, given, size, vocabulary)]
        faults.append(
            f"{who} reads {field!r} as {name!r}: expected {told(size, vocabulary)}, found "
            f"{told(given.vocab_size, given.vocabulary)}, which are other words; "
            + (f"say inputs={{{name!r}: {others[0]!r}}}" if others else "give the data the tokenizer of these weights")
        )
    return faults


def known(spec: Any) -> tuple[int, str]:
    """How many tokens an input of a model knows, and their vocabulary; 0 and "" where it does not say."""
    return getattr(spec, "vocab_size", 0), getattr(spec, "vocabulary", "")


def fits(spec: Any, given: Any) -> bool:
    """Whether an input of a model reads these tokens: those of a field, or of a tokenizer."""
    size, vocabulary = known(spec)
    return size in (0, given.vocab_size) and (vocabulary == given.vocabulary or "" in (vocabulary, given.vocabulary))


def _same(field: TokensField, given: TokensField, size: int, vocabulary: str) -> bool:
    """Whether a field is what a model of this vocabulary reads, and the one that it was given is not."""
    if vocabulary and field.vocabulary:
        return field.vocabulary == vocabulary
    return field.vocab_size == size != given.vocab_size


def told(size: int, vocabulary: str) -> str:
    return f"{size} tokens" + (f" of the vocabulary {vocabulary}" if vocabulary else "")


def _of(options: Mapping[str, Any]) -> set[str]:
    """The vocabularies that a model and the models inside it name."""
    inside = {v for option in options.values() if isinstance(option, Mapping) for v in _of(option)}
    own = options.get("vocabulary")
    return inside | ({own} if isinstance(own, str) and own else set())
