"""A family of foreign checkpoints, and what every one of them can do: come in, be proved, go out."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from convert.config_json import Config, beside
from convert.example import shapes as example_shapes
from convert.sources import PREFIXES
from convert.table import Row, Slot, known, ranks, slots
from kdjax import registry
from kdjax.config import ConfigError, Model
from kdjax.weights import safetensors

Shapes = Mapping[str, tuple[int, ...]]


class ConvertError(safetensors.WeightsError):
    """A checkpoint that does not come in or go out: says what was expected, what was found, and what to do."""


@dataclass(frozen=True)
class Family:
    name: str
    told: str  # what its files usually look like
    variants: dict[str, Model]  # the model of each published form
    rows: Callable[[Model], tuple[Row, ...]]
    model_of: Callable[[Shapes], Model]  # the model that fits the tensors; may raise KeyError, IndexError, ConvertError
    original: str = ""  # the module with `build(model)` and `outputs(module, *inputs)`, in PyTorch
    stacks: tuple[tuple[str, str], ...] = ()
    dropped: tuple[tuple[str, str], ...] = ()  # (pattern of a tensor's name, why no model needs it)
    # The tensors under the table's names, where files differ among themselves; of names alone the tensors are None.
    prepared: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
    # Where files hold a part of a model, with pairs in "lora": the family of the weights that it is put on, the leaves
    # of a file with these tensors, and (model, variables, base's model, base's variables) -> the whole, not merged.
    base: str = ""
    held: Callable[[Model, Shapes], dict[str, Any]] | None = None
    onto: Callable[[Model, Mapping, Model, Mapping], tuple[Model, dict]] | None = None
    resizing: str = ""  # how tensors come to another image size
    # What an exported file calls a tensor of the table, where the usual ones have a prefix.
    exported: Callable[[Model, str], str] = lambda model, name: name
    # A tensor's name in files -> in a module of transformers 5 in memory.
    in_modules: Callable[[Model, str], str] | None = None
    kept: tuple[str, ...] = ()  # numbers and texts beside the weights that go into the written file's metadata
    # Of transformers' models: the `model_type` of their config.json, and the options that it tells, checked against the
    # tensors' shapes.
    model_types: tuple[str, ...] = ()
    configured: Callable[[Config, Shapes], dict[str, Any]] | None = None
    # Options that no tensor's shape tells, and that change the answer: they are the variant's, unless they are given.
    untold: Callable[[Model], tuple[str, ...]] = lambda model: ()
    hint: Callable[[Shapes], str] = lambda shapes: ""  # of files whose shapes leave an option open
    spellings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # option -> the original's word -> ours
    told_by_photographs: str = ""  # the option that no shape tells, and running statistics do

    def known(self, model: Model) -> re.Pattern:
        dropped = [pattern for pattern, _ in self.dropped]
        return re.compile("|".join([known(self.rows(model)).pattern, *dropped]))

    @cached_property
    def ranks(self) -> dict[re.Pattern, set[int]]:
        """How many axes a tensor of a name has, in whichever of its models."""
        found: dict[re.Pattern, set[int]] = {}
        for model in self.variants.values():
            for pattern, rank in ranks(self.rows(model)):
                found.setdefault(pattern, set()).add(rank)
        return found

    def likeness(self, names: list[str]) -> float:
        """The share of the names that this family knows."""
        names = list(self.prepared(dict.fromkeys(names)))
        patterns = [self.known(model) for model in self.variants.values()]
        return max(sum(bool(pattern.fullmatch(name)) for name in names) for pattern in patterns) / max(1, len(names))

    def likeness_of(self, names: Iterable[str]) -> float:
        """As `likeness`, whatever wrappers put before the names."""
        prefix = self.without_prefix(list(names))
        return self.likeness([name.removeprefix(prefix) for name in names])

    def without_prefix(self, names: list[str]) -> str:
        """The prefix before all names, that of wrappers, without which this family knows most of them; the longest
        such."""
        found, prefix, rest = [""], "", names
        while step := next((p for p in PREFIXES if rest and all(name.startswith(p) for name in rest)), None):
            prefix, rest = prefix + step, [name.removeprefix(step) for name in rest]
            found.append(prefix)
        return max(found, key=lambda p: (self.likeness([name.removeprefix(p) for name in names]), len(p)))


@dataclass(frozen=True)
class Converted:
    """A checkpoint's tensors against a model of ours: where each goes."""

    family: Family
    model: Model
    tensors: Mapping[str, Any]  # name, prefix taken off -> tensor with shape, dtype, read()
    slots: list[Slot]
    dropped: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    cast: tuple[str, ...] = ()
    config: Config | None = None  # the source's own
    configured: Mapping[str, Any] = field(default_factory=dict)  # options that it told
    assumed: Mapping[str, Any] = field(default_factory=dict)  # options that nothing told

    @property
    def compared(self) -> int:
        """How many tensors come back as they were, which `prove` sees to."""
        return len({name for slot in self.slots for name in slot.tensors} - set(self.resized))

    def leaf(self, slot: Slot) -> np.ndarray:
        return slot.together(lambda name: self.tensors[name].read())

    @cached_property
    def variables(self) -> dict:
        """The model's variables, each leaf read when it is asked for."""
        return unflatten_dict({slot.target: Leaf(slot, self) for slot in self.slots}, sep="/")


@dataclass(frozen=True)
class Leaf:
    """A leaf that is made when it is written."""

    slot: Slot
    of: Converted = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.slot.leaf.shape

    @property
    def dtype(self) -> np.dtype:
        return self.slot.leaf.dtype

    def read(self) -> np.ndarray:
        return self.of.leaf(self.slot)


def fit(
    family: Family, source: Mapping[str, Any], options: Mapping[str, Any] = {}, model: Model | None = None
) -> Converted:
    """Where each tensor goes; one error with everything that has no place, or another shape or kind.

    The tensors' shapes tell the model where none is given, None where they tell nothing of an option; over its options
    are put those of the source's config.json, and over these `options`.
    """
    prefix = family.without_prefix(list(source))
    misshapen: dict[str, str] = {}
    try:
        tensors = family.prepared({name.removeprefix(prefix): tensor for name, tensor in source.items()})
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        misshapen = _misshapen(family, shapes)
        shapes = {name: shape for name, shape in shapes.items() if name not in misshapen}
        config = None if model else config_of(family, source)
        model = model or family.model_of(shapes)
        configured = family.configured(config, shapes) if config and family.configured else {}
    except (KeyError, IndexError, ConvertError, ConfigError) as error:
        why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
        raise ConvertError(f"this is no checkpoint of {family.name}: {_cannot(misshapen) or why}") from error
    model = Model(model.name, **{**model.options, **configured, **spelled(family, options)})
    if untold := [name for name, value in model.options.items() if value is None]:
        if misshapen:
            raise ConvertError(f"this is no checkpoint of {family.name}: {_cannot(misshapen)}")
        given, hint = " ".join(f"{name}=..." for name in untold), family.hint(shapes)
        raise ConvertError(f"no tensor's shape tells {', '.join(untold)} of this {model.name}; add --set {given}{hint}")
    expected = family.held(model, shapes) if family.held else leaves(model)
    converted = _checked(family, model, tensors, slots(family.rows(model), expected, family.stacks), misshapen)
    unsaid = [name for name in family.untold(model) if name not in configured | dict(options)]
    assumed = {name: getattr(build(model).options, name) for name in unsaid}  # a model of one's own need not have them
    return replace(converted, config=config, configured=configured, assumed=assumed)


def spelled(family: Family, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options in our words."""
    words = lambda name, x: family.spellings.get(name, {}).get(x, x) if isinstance(x, str) else x  # noqa: E731
    return {name: words(name, value) for name, value in options.items()}


def config_of(family: Family, source: Any) -> Config | None:
    """The config.json beside the weights, where the family has such; one of another model is refused."""
    config = beside(source.path) if family.model_types and hasattr(source, "path") else None
    if config and (kind := config.get("model_type", "")) not in family.model_types:
        raise ConvertError(
            f"{config.path} says model_type {kind!r}, expected {' or '.join(map(repr, family.model_types))}; use the "
            "family of that model if there is one (python -m convert --list), or move a config of other weights away"
        )
    return config


def _misshapen(family: Family, shapes: Shapes) -> dict[str, str]:
    """Name -> what is wrong with a shape, whichever model of the family it is of: a name tells how many axes there are,
    and none is empty. `model_of` relies on that, and gets the others alone."""
    found = {}
    for name, shape in shapes.items():
        expected = {rank for pattern, several in family.ranks.items() if pattern.fullmatch(name) for rank in several}
        if expected and (len(shape) not in expected or 0 in shape):
            axes = " or ".join(map(str, sorted(expected)))
            found[name] = f"shape of {name}: expected {axes} axes, none of length 0, found {list(shape)}"
    return found


def _cannot(misshapen: Mapping[str, str]) -> str:
    head = f"{len(misshapen)} tensors have shapes that they cannot have:"
    return "\n  ".join([head, *misshapen.values()]) if misshapen else ""


def _checked(
    family: Family, model: Model, tensors: Mapping[str, Any], found: list[Slot], misshapen: Mapping[str, str]
) -> Converted:
    wrong: list[str] = list(misshapen.values())
    used: dict[str, str] = {}
    resized, cast = [], []
    for slot in found:
        leaf, expected = f"{slot.target} {list(slot.leaf.shape)}", slot.shapes
        if not slot.parts:
            wrong.append(f"unfilled: {leaf}, of which the table of {family.name} says nothing")
        for part, name in ((one, name) for one in slot.parts for name in one.names):
            if name in used:
                wrong.append(f"used twice: {name}, for {used[name]} and {slot.target}")
            used[name] = slot.target
            if name not in tensors:
                wrong.append(f"unfilled: {leaf}, for want of {name} {list(expected[name])}")
                continue
            shape, dtype = tuple(tensors[name].shape), tensors[name].dtype
            if part.row.resize and shape != expected[name] and len(shape) == len(expected[name]):
                resized.append(name)
            elif shape != expected[name] and name not in misshapen:
                wrong.append(f"shape of {name}: expected {list(expected[name])}, found {list(shape)}")
            if fault := getattr(tensors[name], "fault", ""):
                wrong.append(f"kind of {name}: expected a dense tensor of real numbers, found {fault}")
            elif np.dtype(dtype).kind in "iub":
                wrong.append(f"dtype of {name}: expected {slot.leaf.dtype}, found {dtype}")
            elif dtype != slot.leaf.dtype:
                cast.append(name)
    tied = {copy: name for slot in found for copy, name in slot.tied.items() if {copy, name} <= tensors.keys()}
    for copy, name in tied.items():
        if not np.array_equal(tensors[copy].read(), tensors[name].read(), equal_nan=True):
            wrong.append(f"tied: {copy} is not the copy of {name} that it should be")
    beside = {name for slot in found for name in (*slot.beside, *slot.tied)}
    dropped = {
        n for n in tensors if n in beside or (n not in used and any(re.fullmatch(p, n) for p, _ in family.dropped))
    }
    unused = sorted(set(tensors) - set(used) - dropped - set(misshapen))
    wrong += [f"unused: {name} {tensors[name].dtype}{list(tensors[name].shape)}" for name in unused]
    if wrong:
        raise ConvertError(
            f"the checkpoint does not fit {family.name} as {told(model)}, {len(wrong)} faults:\n  " + "\n  ".join(wrong)
        )
    return Converted(family, model, tensors, found, tuple(sorted(dropped)), tuple(resized), tuple(cast))


def leaves(model: Model) -> dict[str, Any]:
    """Shape and dtype of every leaf of the model's variables."""
    return dict(_leaves(build(model)))


@cache
def _leaves(module: Any) -> dict[str, Any]:
    return flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *example_shapes(module)), sep="/")


def build(model: Model) -> Any:
    return registry.build("models", model.name, model.options)


def refuse_other(family: Family, model: Model, families: Mapping[str, Family]) -> None:
    """Refuses a registered model that is not one of the family's."""
    if model.name in registry.names("models") and model.name not in _models(family):
        others = [other.name for other in families.values() if model.name in _models(other)]
        hint = f"use {' or '.join(others)}" if others else "no family has one"
        raise ConvertError(
            f"expected weights of {', '.join(_models(family))}, as {family.name} has them, found {model.name}; {hint}"
        )


def nearest(name: str, variants: Iterable[str], told: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a model of that name: the variant that has the most of what is told, and the rest of it."""

    def others(variant: str) -> dict[str, Any]:
        own = build(Model(name, variant=variant)).options
        return {option: value for option, value in told.items() if getattr(own, option) != value}

    variant = min(variants, key=lambda variant: len(others(variant)))
    return {"variant": variant, **others(variant)}


def told(model: Model) -> str:
    """ "sam (variant vit_b, image_size 512)" """
    return f"{model.name} ({', '.join(f'{k} {v}' for k, v in model.options.items())})"


def settings(options: Mapping[str, Any]) -> str:
    """As `--set` takes them: "heads=3 mean=(0.5,0.5,0.5)"."""
    return " ".join(f"{name}={value}".replace(", ", ",") for name, value in options.items())


# -- in, and the proof -----------------------------------------------------------------------------------------------


def write(converted: Converted, path: Path, about: Mapping[str, str]) -> None:
    """The kdjax file, which says in itself which model it is for; proved before it gets its name."""
    metadata = {**safetensors.about(converted.model), **about}
    safetensors.save(path, converted.variables, metadata, lambda written: prove(converted, written))


def prove(converted: Converted, path: Path) -> None:
    """Reads the written file back, takes it apart and compares it with the source, bit for bit."""
    resized, written = set(converted.resized), safetensors.stored(path)[0]
    for slot in converted.slots:
        for name, found in slot.apart(written[slot.target].read()).items():
            if name not in resized:
                expected = converted.tensors[name].read().astype(slot.leaf.dtype, copy=False)
                if not np.array_equal(found, expected, equal_nan=True):
                    raise ConvertError(f"{path}: {name} did not survive the way in and out; this is a fault of kdjax")


# -- out -------------------------------------------------------------------------------------------------------------


def tensors(family: Family, model: Model, variables: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """The original's tensors, by name, of a model's variables, one leaf at a time."""
    flat, rows = flatten_dict(dict(variables), sep="/"), family.rows(model)
    if family.held:
        there = [slot.shapes for slot in slots(rows, flat, family.stacks)]
        expected = family.held(model, {name: shape for shapes in there for name, shape in shapes.items()})
    else:
        expected = leaves(model)
    safetensors.check(unflatten_dict(expected, sep="/"), variables)
    module = build(model)
    for slot in slots(rows, expected, family.stacks):
        if not slot.parts:
            raise ConvertError(
                f"{family.name} has no name for {slot.target}; its models are {', '.join(_models(family))}"
            )
        made = slot.apart(np.asarray(flat[slot.target]))
        for name, tensor in (made | slot.further(made, module)).items():
            yield family.exported(model, name), tensor


def _models(family: Family) -> list[str]:
    return sorted({model.name for model in family.variants.values()})
