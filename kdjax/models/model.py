"""What a model is to the rest: a Flax module with declared inputs and named endpoints."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array

from kdjax.models.inputs import Input


@runtime_checkable
class Model(Protocol):
    """`__call__(*inputs, train=False) -> {"logits": ..., ...}`, applied to variables as Flax has it.

    It knows nothing of teachers, losses, low-rank pairs, taps or labels.
    """

    @property
    def inputs(self) -> Mapping[str, Input]:
        """The fields of the batch that it reads, in the order of `__call__`."""
        ...

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The names that it returns."""
        ...

    def init(self, rngs: Any, *inputs: Any, **options: Any) -> Any: ...

    def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any: ...

    def __call__(self, *inputs: Any, train: bool = False) -> dict[str, Array]: ...
