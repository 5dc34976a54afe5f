"""The words of a config: every field is explained, and a wrong one ends in a sentence."""

import dataclasses
import pydoc
import sys

import pytest

from kdjax import registry
from kdjax.command import lists
from kdjax.config import ConfigError, Data, Model, Stage, Term
from tests.support.command import command, refused

ODD = {
    "a field": ("Term('kl', wieght=2.0)", "Term has no field 'wieght'; did you mean 'weight'"),
    "a field of a stage": ("Stage(tasks='segmentation')", "Stage has no field 'tasks'; did you mean 'task'?"),
    "a place": ("Term()", "Term: missing a required argument: 'loss'"),
    "a module": ("__import__('no_such_module')", "No module named 'no_such_module'"),
    "a symbol": ("exec('from kdjax.config import Stge')", "cannot import name 'Stge'"),
}


@pytest.mark.parametrize("kind", lists.words(), ids=lambda kind: kind.__name__)
def test_help_explains_every_field(kind):
    told = lists.explained(kind)
    assert list(told) == [field.name for field in dataclasses.fields(kind)]
    assert all(len(text) > 8 for text in told.values())
    page = pydoc.plain(pydoc.render_doc(kind))
    assert all(f"{name}: " in page for name in told)


def test_fields_are_listed_with_type_and_default():
    printed = command("--list=fields").out
    assert "Stage.epochs              int: passes over" in printed
    assert "Stop.patience             int = 10: epochs that did not improve" in printed


@pytest.mark.parametrize(("text", "said"), ODD.values(), ids=ODD)
def test_a_fault_in_the_file_of_a_config_is_told_with_its_line(tmp_path, text, said):
    path = tmp_path / "odd.py"
    path.write_text(f"from kdjax.config import *\n\n\ndef get_config(variant=''):\n    return {text}\n")
    refused(command(f"--config={path}"), f"{path}, line 5: {said}")


def test_options_stay_open():
    assert Model("vit", anything=3).options == Data("own:reader", anything=3).options == {"anything": 3}
    assert dataclasses.replace(Term("kl"), weight=2.0) == Term("kl", weight=2.0)
    with pytest.raises(ConfigError, match="Stage: too many positional arguments"):
        Stage("segmentation")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("files", "name", "said"),
    [
        ({}, "none_such:build", "'none_such:build': there is no module 'none_such'; expected it in the folder"),
        ({"mine/__init__": ""}, "mine.deep:build", "there is no module 'mine.deep'"),
        ({"mine": "def build(): ..."}, "mine:biuld", "'mine:biuld': the module has no 'biuld'; did you mean 'build'?"),
        ({"mine": "\nimport none_such"}, "mine:build", "cannot be imported: {0}/mine.py, line 2: No module named"),
    ],
)
def test_code_of_ones_own_that_cannot_be_had(tmp_path, monkeypatch, files, name, said):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_trusted", {name})
    for file, text in files.items():
        path = tmp_path / f"{file}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    try:
        with pytest.raises(ConfigError) as caught:
            registry.get("losses", name)
    finally:
        sys.modules.pop("mine", None)
    assert said.format(tmp_path) in str(caught.value)
