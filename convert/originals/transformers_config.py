"""A model of transformers as the config.json beside its weights describes it, under the names that its files have."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from convert.config_json import Config
from convert.family import ConvertError


def described(config: Config, own: Mapping[str, Any]) -> Any:
    """transformers' config object; `own` is put over what the file says. Code that the file names is not looked at."""
    hide_broken_torchvision()
    from transformers import AutoConfig

    values = {name: x for name, x in config.values.items() if name not in ("auto_map", "model_type", "torch_dtype")}
    values = {name: x for name, x in values.items() if name != "dtype" and not name.startswith("_")}
    try:
        return AutoConfig.for_model(config.values["model_type"], **{**values, **own})
    except Exception as error:  # transformers checks a value when it meets it, with errors of many kinds
        raise ConvertError(f"{config.path}: transformers does not take it: {error}") from error


def hide_broken_torchvision() -> None:
    """transformers imports torchvision where it is installed; one of another PyTorch than ours cannot be imported, and
    without any it builds its models all the same."""
    try:
        import torchvision  # noqa: F401  # type: ignore[import-not-found]
    except ImportError:
        return
    except Exception:  # RuntimeError: operator torchvision::nms does not exist
        sys.modules["torchvision"] = None  # type: ignore[assignment]


def from_config(kind: str, settings: Any, **options: Any) -> Any:
    """A module of the class that transformers has for it: "AutoModel", "AutoModelForImageClassification" ..."""
    import transformers

    try:
        return getattr(transformers, kind).from_config(settings, trust_remote_code=False, **options).float().eval()
    except Exception as error:  # as above
        raise ConvertError(f"transformers builds no {settings.model_type} of these settings: {error}") from error


def named_as_in_files(module: Any, in_files: Callable[[str], str]) -> Any:
    """The module, whose state dict now has the names that are in files, whatever the version's modules are called."""

    def as_in_files(module: Any, state: dict, prefix: str, metadata: dict) -> None:
        for name in list(state):
            state[prefix + in_files(name.removeprefix(prefix))] = state.pop(name)

    def as_in_module(module: Any, state: dict, prefix: str, *rest: Any) -> None:
        names = {in_files(name): name for name, _ in module.named_parameters()}
        for name in list(state):
            if new := names.get(name.removeprefix(prefix)):
                state[prefix + new] = state.pop(name)

    module.register_state_dict_post_hook(as_in_files)
    module.register_load_state_dict_pre_hook(as_in_module)
    return module
