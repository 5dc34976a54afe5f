"""From a `Data` config to a `Dataset`, of whatever kind."""

from kdjax import registry
from kdjax.config import Data
from kdjax.data.dataset import Dataset
from kdjax.data.graphs import nodes, packs
from kdjax.data.images import dataset as images
from kdjax.data.text import dataset as records

KINDS = {"images": images.build, "records": records.build, "graphs": packs.build, "nodes": nodes.build}


def build(data: Data, parts: int = 1) -> Dataset:
    """Opens the data set and looks it over; raises one ConfigError with everything that is wrong with it.

    Its batches are cut into `parts` equal parts, by devices and micro-batches.
    """
    return KINDS[kind(data)](data, parts)


def kind(data: Data) -> str:
    """What its examples are: "images", "records", "graphs" or "nodes"."""
    return getattr(registry.get("data", data.source), "kind", "images")
