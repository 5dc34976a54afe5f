"""Layers beside those of the originals are looked at where there is time; whole models beside theirs, in every run
(tests/convert/test_families.py)."""

from pathlib import Path

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.long)
