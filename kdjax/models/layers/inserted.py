"""A layer set into a model that knows nothing of it, at one of its endpoints."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array

from kdjax.config import ConfigError

Path = tuple[str, ...]


@contextmanager
def inserted(path: Path, layer: Callable[[Array], Array]) -> Iterator[None]:
    """Within this context the output of the module at `path` is what `layer` makes of it, for all that follows."""

    def add(call: Any, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **kwargs)
        return layer(y) if context.method_name == "__call__" and context.module.path == path else y

    with nn.intercept_methods(add):
        yield


@cache
def path_of(model: Any, endpoint: str) -> Path:
    """The path of the module that returns an endpoint, the outermost one where there are several."""
    paths: list[Path] = []

    def run(key: jax.Array, *inputs: Any) -> None:
        returned: list[tuple[Path, Any]] = []

        def note(call: Any, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
            y = call(*args, **kwargs)
            if context.method_name == "__call__" and not any(y is x for x in args):  # as a dropout that is off
                returned.append((context.module.path, y))
            return y

        with nn.intercept_methods(note):
            outputs, _ = model.init_with_output(key, *inputs)
        paths.extend(path for path, y in returned if y is outputs[endpoint])

    jax.eval_shape(run, jax.random.key(0), *(spec.shape(1) for spec in model.inputs.values()))
    if not paths:
        raise ConfigError(
            f"{type(model).__name__}: expected a module that returns {endpoint!r}, to set a layer in after it, found "
            "none; name another endpoint, or build the model without remat and scan"
        )
    return min((path for path in paths if paths[0][: len(path)] == path), key=len)
