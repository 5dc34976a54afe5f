"""Records: `build` looks for all that is wrong with them, `RecordSet` makes their batches."""

from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from kdjax.config import ConfigError, Data
from kdjax.data.dataset import Batch
from kdjax.data.fields import TokensField
from kdjax.data.images.dataset import Images, Opened, look_over, refuse, told
from kdjax.data.text.source import RecordSource
from kdjax.data.text.tokens import Tokens


def build(data: Data, parts: int = 1) -> "RecordSet":
    """Opens the data set and looks it over; raises one ConfigError with everything that is wrong with it."""
    opened = look_over(data)
    assert isinstance(opened.source, RecordSource)
    try:
        tokens = opened.source.captions.tokens(opened.where["train"])
    except ConfigError as error:
        refuse(data, [str(error)])
    return RecordSet(opened._replace(notes=told(data, [*opened.notes, *tokens.notes])), opened.source, tokens)


class RecordSet(Images):
    """Batches of what records have of an image, a caption and labels, each of which an example may lack.

    image uint8 [b, s, s, 3], black where image_there, bool [b], is False; input_ids and attention_mask int32 [b, n], of
    each tokenizer ("input_ids_NAME"), those of an empty caption where text_there, bool [b], is False; of each label its
    class int32 [b], -1 where it is not known, and the flag LABEL_known. `valid`, `index` and `view` as of images.
    """

    item: ClassVar[str] = "record"

    def __init__(self, opened: Opened, source: RecordSource, tokens: Tokens):
        super().__init__(opened.data, opened.examples, opened.facts, opened.where, opened.notes)
        self.records, self.label_classes, self._tokens = source.records, source.label_classes, tokens
        self.image_classes = self.kinds = source.classes
        self.fields = {**self.fields, **tokens.fields}
        self.keepsakes = tokens.keepsakes
        self.facts = {
            **({"num_classes": self.num_classes} if source.classes else {}),
            "labels": {name: len(classes) for name, classes in self.label_classes.items()},
            "tokens": {
                name: {"vocab_size": field.vocab_size, "vocabulary": field.vocabulary}
                for name, field in tokens.fields.items()
                if isinstance(field, TokensField)
            },
        }

    def fact(self, name: str) -> Any:
        if name == "class_weights" and "class" not in self.label_classes:
            labels = ", ".join(self.label_classes)
            raise ConfigError(f"the data tell class_weights of one label 'class', and have {labels}; say them")
        return super().fact(name)

    def label_counts(self, split: str) -> dict[str, Int[np.ndarray, " k"]]:
        """How many examples of a split are of each class of each label, among those whose labels may be used."""
        usable = [self.records[int(i)].labels for i in self._where[split][self._labelled[split]]]
        return {
            name: np.array([sum(labels.get(name) == one for labels in usable) for one in classes])
            for name, classes in self.label_classes.items()
        }

    def class_counts(self, split: str) -> Int[np.ndarray, " k"]:
        return self.label_counts(split)["class"]

    def caption(self, split: str, i: int) -> str:
        """What a record says, "" where it has no caption."""
        return self.records[int(self._where[split][i])].caption or ""

    def token_lengths(self, split: str) -> dict[str, Int[np.ndarray, " m"]]:
        """How many tokens the captions of a split have, by the name of each tokenizer."""
        there = np.array([bool(self.records[int(i)].caption) for i in self._where[split]], bool)
        return {name: lengths[self._where[split][there]] for name, lengths in self._tokens.lengths.items()}

    def content(self, split: str) -> list[bytes]:
        where = self._where[split]
        rows = [ids[where].tobytes() for ids in self._tokens.ids.values()]
        tables = [field.vocabulary.encode() for field in self._tokens.fields.values() if isinstance(field, TokensField)]
        return [*super().content(split), *rows, *tables]

    def batch(self, split: str, indices: Int[np.ndarray, " b"], share: slice = slice(None)) -> Batch:
        batch, mine = super().batch(split, indices, share), indices[share]
        where = np.where(mine >= 0, self._where[split][mine], -1)
        return {**batch, **self._tokens.batch(where)}
