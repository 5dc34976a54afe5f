"""What a batch holds: its fields by name. Batching, shapes and the table of what a term may read follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jraph
import numpy as np

KINDS = ("image", "mask", "class", "target", "number", "tokens", "array", "graphs", "flag")

LABELS = ("mask", "class", "target", "number", "array")  # kinds of which an example may lack its value


@dataclass(frozen=True)
class Field:
    """One array of the batch: its shape, dtype and padding for one row, and what it is.

    Beside a label NAME, which may be missing in some examples, stands a field of kind "flag", "NAME_known".
    """

    shape: tuple[int, ...]
    dtype: str
    kind: str
    padding: Any = 0

    def rows(self, n: int) -> np.ndarray:
        """So many rows of padding."""
        return np.full((n, *self.shape), self.padding, self.dtype)

    def shapes(self, n: int) -> Any:
        return jax.ShapeDtypeStruct((n, *self.shape), np.dtype(self.dtype))


@dataclass(frozen=True)
class TokensField(Field):
    """What a tokenizer made of texts, their ids or the mask of those that are no padding: how many ids it has, and a
    digest of its table, "" where that is not known."""

    vocab_size: int = 0
    vocabulary: str = ""


@dataclass(frozen=True)
class GraphsField:
    """Packs of graphs: so many nodes {"x": [nodes, features], "id": [nodes]}, edges and graphs.

    The last graph of a pack is padding, to which all padding nodes and edges belong, as `jraph.pad_with_graphs` has it.
    """

    nodes: int
    edges: int
    graphs: int
    features: int

    kind: ClassVar[str] = "graphs"

    def rows(self, n: int) -> jraph.GraphsTuple:
        """So many packs of padding."""

        def counts(total: int) -> np.ndarray:
            return np.tile(np.append(np.zeros(self.graphs - 1, np.int32), np.int32(total)), (n, 1))

        return graphs_tuple(
            x=np.zeros((n, self.nodes, self.features), np.float32),
            id=np.zeros((n, self.nodes), np.int32),
            senders=np.zeros((n, self.edges), np.int32),
            receivers=np.zeros((n, self.edges), np.int32),
            n_node=counts(self.nodes),
            n_edge=counts(self.edges),
        )

    def shapes(self, n: int) -> jraph.GraphsTuple:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), self.rows(1))


FLAG = Field((), "bool", "flag", False)
IMAGE_THERE, TEXT_THERE = "image_there", "text_there"  # flags of records, of which each may lack its image or its text
INDEX = Field((), "int32", "number", -1)
COMMON = {"valid": FLAG, "index": INDEX, "view": Field((), "int32", "number")}


def known(name: str) -> str:
    """The name of the flag that says for which examples the label `name` is there."""
    return f"{name}_known"


def with_flags(fields: Mapping[str, Field]) -> dict[str, Field]:
    """These fields, and beside each label the flag that says for which examples it is there."""
    return {**fields, **{known(name): FLAG for name, field in fields.items() if field.kind in LABELS}}


def graphs_tuple(*, x: Any, id: Any, **rest: Any) -> jraph.GraphsTuple:
    """Graphs whose nodes have features and ids, and whose edges and graphs have nothing."""
    return jraph.GraphsTuple(nodes={"x": x, "id": id}, edges=None, globals=None, **rest)


def examples(n: int) -> dict[str, Field]:
    """What is known of each of the n examples of a pack."""
    fields = {"class": Field((), "int32", "class", -1), known("class"): FLAG, "valid": FLAG, "index": INDEX}
    return {name: replace(field, shape=(n,)) for name, field in fields.items()}


def readable(batch: dict[str, Any]) -> dict[str, Any]:
    """What a term may read of a batch by name: its fields; and of graphs the arrays of their nodes, such as "x" and
    "id" [p, n, ...], and "nodes" [p, n], which is True for real nodes.
    """
    for graphs in [value for value in batch.values() if isinstance(value, jraph.GraphsTuple)]:
        batch = {**batch, **graphs.nodes, "nodes": jax.vmap(jraph.get_node_padding_mask)(graphs)}
    return batch
