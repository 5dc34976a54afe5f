"""transformers beside a torchvision that was built for another PyTorch."""

import sys

from convert.originals.transformers_config import hide_broken_torchvision


def test_a_torchvision_that_cannot_be_imported_is_none(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")  # which tests/conftest.py hides
    hide_broken_torchvision()
    assert sys.modules["torchvision"] is None
    hide_broken_torchvision()


def test_one_that_can_be_imported_stays(tmp_path, monkeypatch):
    (tmp_path / "torchvision.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision")
    hide_broken_torchvision()
    assert sys.modules["torchvision"].__file__ == str(tmp_path / "torchvision.py")
