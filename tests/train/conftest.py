import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def _quick_compiler():
    """These tests compile much and compute little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
