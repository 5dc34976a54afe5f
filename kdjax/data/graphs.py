"""Many graphs in flat arrays."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64


@dataclass(frozen=True)
class Graphs:
    """Graphs one after the other. The nodes of graph i are `first_node[i]:first_node[i + 1]`, and so with its edges."""

    x: Float32[np.ndarray, "n f"]  # node features
    id: Int32[np.ndarray, " n"]  # index into an embedding of ids; 0 where there is none
    name: Int64[np.ndarray, " n"]  # what a person calls the node: the CAN id
    senders: Int32[np.ndarray, " e"]  # places within the graph
    receivers: Int32[np.ndarray, " e"]
    label: Int32[np.ndarray, " g"]  # 0 normal, 1 attack; -1 unknown
    file: Int32[np.ndarray, " g"]  # which of the files it comes from
    begin: Float64[np.ndarray, " g"]  # seconds: when its window begins
    first_node: Int64[np.ndarray, " g+1"]
    first_edge: Int64[np.ndarray, " g+1"]

    def __len__(self) -> int:
        return len(self.label)
