"""timm, imported without torchvision: its models need none of that, and beside a CPU's PyTorch PyPI's cannot be
imported (tests/conftest.py hides it)."""

import sys
from unittest.mock import MagicMock

ROOT = "torchvision"
READ = (f"{ROOT}.{name}" for name in ("transforms", "transforms.functional", "datasets", "ops", "ops.misc"))
STAND_INS = {name: MagicMock() for name in (ROOT, *READ)}  # for what timm's data and tools import, beside its models

_before = {name: sys.modules[name] for name in STAND_INS if name in sys.modules}
sys.modules.update(STAND_INS)
try:
    import timm
finally:
    for name in STAND_INS:
        del sys.modules[name]
    sys.modules.update(_before)

__all__ = ["timm"]
