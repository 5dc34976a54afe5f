"""The mesh, and the rules that place arrays on it. One program runs on one device, eight or many hosts."""

import math
import re
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from kdjax import config
from kdjax.config import ConfigError

BATCH = P(("data", "fsdp"))  # the batch axis goes over both
SMALL = 1024  # arrays of fewer numbers are copied to every device: splitting them saves nothing


def make_mesh(wanted: config.Mesh) -> Mesh:
    """Axes data, fsdp and model over all devices; one size of -1 takes what the others leave."""
    devices = jax.device_count()
    sizes = [wanted.data, wanted.fsdp, wanted.model]
    rest = math.prod(size for size in sizes if size > 0)
    if sizes.count(-1) > 1 or (-1 in sizes and devices % rest) or (-1 not in sizes and rest > devices):
        raise ConfigError(
            f"mesh data={wanted.data} fsdp={wanted.fsdp} model={wanted.model} does not fit {devices} device(s): "
            "the sizes multiply to at most that, and at most one is -1 (takes what is left)"
        )
    sizes = [devices // rest if size == -1 else size for size in sizes]
    count = math.prod(sizes)
    if count < devices and jax.process_count() > 1:
        raise ConfigError(f"mesh {sizes} uses {count} of {devices} devices; over several processes it must use all")
    if sizes[0] * sizes[1] % jax.process_count():
        raise ConfigError(
            f"mesh.data {sizes[0]} x mesh.fsdp {sizes[1]} does not divide over {jax.process_count()} processes, each "
            "of which reads its own share of every batch; lower mesh.model"
        )
    return jax.make_mesh(
        tuple(sizes), ("data", "fsdp", "model"), axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:count]
    )


def shares(mesh: Mesh) -> int:
    """Into how many parts the devices divide a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def parts(mesh: Mesh, batch_size: int, accumulate: int, where: str) -> int:
    """Into how many parts devices and micro-batches divide a batch; refused where they are not equal."""
    unit = shares(mesh) * accumulate
    if batch_size % unit:
        raise ConfigError(
            f"{where}.data.batch_size {batch_size} does not divide into {accumulate} micro-batch(es) over "
            f"{shares(mesh)} devices (mesh.data x mesh.fsdp); use a multiple of {unit}, such as "
            f"{math.ceil(batch_size / unit) * unit}"
        )
    return unit


def shardings(tree: Any, mesh: Mesh, rules: tuple[tuple[str, str], ...]) -> Any:
    """A sharding for every leaf, by the first rule whose pattern matches its "/"-joined path."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        rule = next((value for pattern, value in rules if re.fullmatch(pattern, name)), "replicate")
        if rule not in ("fsdp", "replicate"):
            raise ConfigError(f"mesh.rules: expected 'fsdp' or 'replicate' for {name}, found {rule!r}")
        return NamedSharding(mesh, _split_largest(leaf.shape, mesh.shape["fsdp"]) if rule == "fsdp" else P())

    return jax.tree_util.tree_map_with_path(place, tree)


def _split_largest(shape: tuple[int, ...], shares: int) -> P:
    """The largest axis that divides goes over `fsdp`; small arrays stay whole."""
    axes = [axis for axis, size in enumerate(shape) if size % shares == 0]
    if shares == 1 or math.prod(shape) < SMALL or not axes:
        return P()
    split = max(axes, key=lambda axis: shape[axis])
    return P(*("fsdp" if axis == split else None for axis in range(len(shape))))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def split(mesh: Mesh) -> NamedSharding:
    """Of a batch."""
    return NamedSharding(mesh, BATCH)


def shapes(tree: Any, placement: Any) -> Any:
    """Shapes in their places."""
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, placement)


def place(tree: Any, placement: Any) -> Any:
    """Host arrays onto the mesh; every process holds the whole value and keeps its shards."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding == sharding:
            return leaf
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree, placement)


def global_batch(local: dict[str, Any], mesh: Mesh) -> dict[str, Any]:
    """This process's share of a batch as part of the global arrays."""
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(split(mesh), value), local)


def to_host(tree: Any) -> Any:
    """Whole numpy arrays, also of leaves whose shards lie on other hosts; every process takes part."""

    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = jax.device_put(leaf, replicated(leaf.sharding.mesh))  # type: ignore
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)
