"""BatchNorms of frozen layers: they go by what they remember, and remember what they did."""

import contextlib
import inspect
import re
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from kdjax.config import Optim
from kdjax.models.layers.batch_norm import BatchNorm


def frozen(optim: Optim, variables: dict) -> frozenset[str]:
    """The paths of the modules with statistics of their own whose parameters are all frozen."""
    if optim.statistics == "all":
        return frozenset()
    parameters = flatten_dict(variables["params"], sep="/")
    modules = {path.rpartition("/")[0] for path in flatten_dict(variables.get("batch_stats", {}), sep="/")}
    return frozenset(module for module in modules if not _is_trained(module, parameters, optim.trainable))


def _is_trained(module: str, parameters: dict[str, Any], rules: tuple[tuple[str, bool], ...]) -> bool:
    own = [path for path in parameters if path.rpartition("/")[0] == module]
    decided = [next((on for rule, on in rules if re.fullmatch(rule, f"model/{path}")), True) for path in own]
    return any(decided) or not own  # a BatchNorm without parameters goes by the batch


def standing(paths: frozenset[str]) -> AbstractContextManager:
    """Within this context the BatchNorms at these paths do not train, ours and Flax's."""
    if not paths:
        return contextlib.nullcontext()

    def intercept(call: Any, args: tuple, kwargs: dict[str, Any], context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or "/".join(module.path) not in paths:
            return call(*args, **kwargs)
        if isinstance(module, BatchNorm):
            given = inspect.signature(BatchNorm.__call__).bind(module, *args, **kwargs)
            given.arguments["train"] = False
            return call(*given.args[1:], **given.kwargs)
        if isinstance(module, nn.BatchNorm):
            return _by_memory(module, call, args, kwargs)
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _by_memory(module: nn.BatchNorm, call: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Flax's layer takes the switch as a field or in the call, and refuses both."""
    if module.use_running_average is None:
        return call(*args, **{**kwargs, "use_running_average": True})
    object.__setattr__(module, "use_running_average", True)  # this one call's own copy of the layer
    return call(*args, **kwargs)
