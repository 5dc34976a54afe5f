"""Where in an image a model sees a class: Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063) at any layer.

The layer is a module, found by its path or by an endpoint that shows its output. Nothing of a model is changed: a
shift of zero is added to what the module gives, and the class score is differentiated with respect to that shift.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kdjax.config import ConfigError, nearest
from kdjax.deploy.pictures import Program, as_floats
from kdjax.distill.taps import Network

LAST = "last"  # as a name: the last map that has a say in the score
LEADING = 8  # tokens that stand before those of the places at most: of the class, of a teacher, registers
LAYOUT = ("reshape", "slice", "squeeze", "expand_dims", "transpose", "convert_element_type", "copy")
CALLS = ("checkpoint", "remat2", "jit", "pjit")  # steps of a program that are programs, whose outputs they hand on


@dataclass(frozen=True)
class Layer:
    """A module that gives a map [b, h, w, c], or tokens [b, n, c] of which the last are those of the places."""

    name: str  # of an endpoint that shows it, or else its path
    path: str
    grid: tuple[int, ...]  # (rows, columns)

    def places(self, x: Float[Array, "b ..."]) -> Float[Array, "b h w c"]:
        """The module's output as a map."""
        h, w = self.grid
        x = x if x.ndim == 4 else x[:, x.shape[1] - h * w :].reshape(len(x), h, w, x.shape[-1])
        return x.astype(jnp.float32)


def plus_plus(maps: Float[Array, "b h w c"], slopes: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """relu(Σ w A) over channels, with w = Σ α relu(g) over places and α = g² / (2 g² + ΣA g³); `slopes` are g, those of
    the score by the maps A.

    A map of both signs, which the paper's, after a ReLU, are not, can bring the denominator to nothing: it counts as g²
    at least.
    """
    alpha = 1 / jnp.maximum(2 + maps.sum((1, 2), keepdims=True) * slopes, 1)
    weights = (alpha * nn.relu(slopes)).sum((1, 2), keepdims=True)
    return nn.relu((weights * maps).sum(-1))


@cache
def explaining(network: Network, task: Any, layer: Layer, of: int | None = None) -> Program:
    """What the task predicts of each image, and `cam` [h, w]: where the layer sees the class `of`, or else the one that
    is predicted."""

    def run(variables: dict, batch: dict[str, Any]) -> dict[str, Array]:
        batch = as_floats(batch)
        outputs, maps, slopes = differentiated(network, layer, of, variables, batch)
        return {**task.predict(outputs, batch), "cam": plus_plus(maps, slopes)}

    return jax.jit(run)


def differentiated(
    network: Network, layer: Layer, of: int | None, variables: dict, batch: dict[str, Array]
) -> tuple[dict[str, Array], Float[Array, "b h w c"], Float[Array, "b h w c"]]:
    """The endpoints, the layer's map, and the slope of each image's class score by it."""
    tap = f"/{layer.path}"
    tapped = replace(network, taps=(tap,))

    def score(shift: Array) -> tuple[Array, dict[str, Array]]:
        outputs, _ = replace(tapped, around=partial(shifted, layer.path, shift))(variables, batch)
        logits = outputs["logits"].astype(jnp.float32)
        classes = logits.argmax(-1) if of is None else jnp.full(len(logits), of)
        return jnp.take_along_axis(logits, classes[:, None], axis=1).sum(), outputs

    there = jax.eval_shape(lambda v, b: tapped(v, b)[0][tap], variables, batch)
    slopes, outputs = jax.grad(score, has_aux=True)(jnp.zeros(there.shape, there.dtype))
    return outputs, layer.places(outputs[tap]), layer.places(slopes)


@contextmanager
def shifted(path: str, shift: Array) -> Iterator[None]:
    """Within it the module at `path` gives so much more."""

    def add(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        y = call(*args, **kwargs)
        return y + shift if is_at(path, context) else y

    with nn.intercept_methods(add):
        yield


def is_at(path: str, context: Any) -> bool:
    return context.method_name == "__call__" and "/".join(context.module.path) == path


# -- which layer -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    """What a model gives on its way: the shapes of endpoints and of modules by path, and those that have places, in the
    order in which they are declared and computed."""

    shapes: dict[str, tuple[int, ...]]
    maps: list[str]  # the endpoints that are maps, whether or not a module gives them
    endpoints: dict[str, Layer]
    modules: dict[str, Layer]

    def named(self, name: str) -> Layer:
        """The layer that a person asks for; refused where there is none such, or it has no places."""
        path = name.strip("/")
        if layer := self.endpoints.get(name) or self.modules.get(path):
            return layer
        shape = self.shapes.get(name) or self.shapes.get(path)
        if shape is None:
            raise ConfigError(f"--gradcam={name}: the model has no such layer; {self.near(name)}")
        raise ConfigError(
            f"--gradcam={name}: expected a map [b, h, w, c] or tokens [b, n, c] of an image's places, which one module "
            f"gives, found {['b', *shape[1:]]}; {self.near(name)}"
        )

    def near(self, name: str) -> str:
        """The layers of nearly that name, else the endpoints alone, as modules are many."""
        near = nearest(name, [*self.endpoints, *self.modules])
        if not near.startswith("known") or not self.endpoints:
            return near
        return f"{nearest(name, self.endpoints)}, and modules by path, such as {next(reversed(self.modules))}"

    def last(self) -> list[Layer]:
        """The last map among the endpoints, of the first part of a model that has several, and what to take where the
        score reads none of its places: the block before it, as of the last block only the class token may count. Of a
        model without such endpoints the maps that its modules give, the last first."""
        maps = [name for name in self.maps if part_of(name) == part_of(self.maps[0])]
        if not maps:
            layers = [layer for path, layer in reversed(self.modules.items()) if len(self.shapes[path]) == 4]
            if not layers:
                raise ConfigError("--gradcam: expected a model that gives a map [b, h, w, c] on its way, found none")
            return layers
        if maps[-1] not in self.endpoints:
            told = f"{maps[-1]!r} comes of no module alone, as inside nn.scan"
            raise ConfigError(f"--gradcam: the last map {told}; name another layer, {self.near(maps[-1])}")
        last = self.endpoints[maps[-1]]
        before = re.sub(r"\d+(?!.*\d)", lambda number: str(int(number[0]) - 1), last.path)
        return [last, *([self.modules[before]] if before in self.modules else [])]


def part_of(endpoint: str) -> str:
    """The part of a composed model that an endpoint is of, "" of a plain one."""
    return endpoint.rpartition(".")[0]


class Given(NamedTuple):
    """An array on a model's way."""

    shape: tuple[int, ...]
    variable: Any  # of the traced program


def layers(network: Network, variables: dict, batch: dict[str, jax.ShapeDtypeStruct]) -> Layers:
    """Those of a network, without computing anything."""
    endpoints, modules, steps = traced(network, variables, batch)
    rows = batch["image"].shape[0]
    maps = {name: given.shape[1:3] for name, given in endpoints.items() if is_map(given.shape, rows)}
    grids = {path: grid_of(given.shape, rows, beside(path, maps)) for path, given in modules.items()}
    placed = {path: Layer(path, path, grid) for path, grid in grids.items() if grid}
    origins = {innermost(modules[path].variable, steps): path for path in reversed(placed)}
    shown = {}
    for name, given in endpoints.items():
        path = origin(given.variable, origins, steps)
        if path and grid_of(given.shape, rows, [placed[path].grid]):
            shown[name] = replace(placed[path], name=name)
    shapes = {name: given.shape for name, given in {**modules, **endpoints}.items()}
    return Layers(shapes, list(maps), shown, placed)


def traced(
    network: Network, variables: dict, batch: dict[str, jax.ShapeDtypeStruct]
) -> tuple[dict[str, Given], dict[str, Given], dict[int, Any]]:
    """Endpoints by name, modules that give one array by path, and the step of the program that makes each variable."""
    called: dict[str, set[tuple[int, ...]]] = {}  # shapes at each call; what a scan repeats arrives as one stack

    def look(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and hasattr(y, "shape"):
            called.setdefault("/".join(context.module.path), set()).add(y.shape)
        return y

    def run(variables: dict, batch: dict[str, Any]) -> tuple[dict, dict]:
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        with nn.intercept_methods(look):
            outputs, kept = network.model.apply(variables, *network.view(batch), **options)
        return outputs, kept["intermediates"]

    program, given = jax.make_jaxpr(run, return_shape=True)(variables, batch)
    leaves = jax.tree_util.tree_leaves_with_path(given)
    found = {
        tuple(getattr(key, "key", getattr(key, "idx", None)) for key in keys): Given(array.shape, variable)
        for (keys, array), variable in zip(leaves, program.jaxpr.outvars, strict=True)
    }
    modules: dict[str, Given] = {}
    for path, shapes in called.items():
        at = (1, *path.split("/"), "__call__")
        if (*at, 0) in found and (*at, 1) not in found and shapes == {found[*at, 0].shape}:
            modules[path] = found[*at, 0]
    endpoints = {name: found[0, name] for name in network.model.endpoints if (0, name) in found}
    return endpoints, modules, {id(made): step for step in program.jaxpr.eqns for made in step.outvars}


def is_map(shape: tuple[int, ...], rows: int) -> bool:
    return len(shape) == 4 and shape[0] == rows and shape[1] * shape[2] > 1


def beside(path: str, maps: dict[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The grids of those maps that are of the same part as a module, where a model has parts."""
    return [grid for name, grid in maps.items() if part_of(name) in ("", path.partition("/")[0])]


def grid_of(shape: tuple[int, ...], rows: int, grids: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Rows and columns of a module's places, () where it has none; tokens lie as those of a map of the model do."""
    if is_map(shape, rows):
        return shape[1:3]
    tokens = shape[1] if len(shape) == 3 and shape[0] == rows else 0
    return max((grid for grid in grids if 0 <= tokens - math.prod(grid) <= LEADING), key=math.prod, default=())


def origin(variable: Any, origins: dict[int, str], steps: dict[int, Any]) -> str:
    """The module whose output an array is, as it was or laid out anew; "" where it is none's."""
    while innermost(variable, steps) not in origins:
        step = steps.get(id(variable))
        if step is None or step.primitive.name not in LAYOUT:
            return ""
        variable = step.invars[0]
    return origins[innermost(variable, steps)]


def innermost(variable: Any, steps: dict[int, Any]) -> int:
    """The id of a variable; of one that a program within the program gives, there, where it may have several names."""
    step = steps.get(id(variable))
    if step is None or step.primitive.name not in CALLS:
        return id(variable)
    program = step.params["jaxpr"]
    place = next(i for i, made in enumerate(step.outvars) if made is variable)
    return id(getattr(program, "jaxpr", program).outvars[place])


def candidates(network: Network, variables: dict, batch: dict[str, jax.ShapeDtypeStruct], name: str) -> list[Layer]:
    """The layer of that name, or for `LAST` those that may be it, the best first."""
    there = layers(network, variables, batch)
    return there.last() if name == LAST else [there.named(name)]


def first_read(network: Network, variables: dict, side: int, among: list[Layer]) -> Layer:
    """The first layer whose places the class score depends on, tried on an image of noise."""
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3), np.uint8)
    for layer in among:
        if read(network, layer)(variables, {"image": image, "index": np.zeros(1, np.int32)}):
            return layer
    names = " and ".join(layer.name for layer in among)
    raise ConfigError(
        f"--gradcam: no place of {names} has a say in the class score, which reads something else after it, such as "
        "the class token; name an earlier layer"
    )


@cache
def read(network: Network, layer: Layer) -> Any:
    """Whether the class score depends on any place of the layer. It runs once: the compiler spends little effort."""
    quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

    def run(variables: dict, batch: dict[str, Any]) -> Array:
        return (differentiated(network, layer, None, variables, as_floats(batch))[2] != 0).any()

    return jax.jit(run, compiler_options=quick if jax.default_backend() == "cpu" else None)
