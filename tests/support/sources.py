"""Data sets of images, opened as a run opens them."""

import pytest

from kdjax.config import ConfigError, Data
from kdjax.data import pipeline


def build(source, **options):
    return pipeline.build(Data(source, image_size=16, **options))


def faults(source, **options) -> str:
    """What is wrong with them."""
    with pytest.raises(ConfigError) as error:
        build(source, **options)
    return str(error.value)
