"""What the environment asks for that is not there ends in a sentence."""

import os

import pytest

from kdjax.report import terminal
from tests.support import subprocesses as sub
from tests.support.command import tiny

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"JAX_PLATFORMS": "cuda"}, "error: JAX_PLATFORMS=cuda: expected a device of that kind, found none"),
        ({"JAX_ENABLE_X64": "1"}, "error: JAX_ENABLE_X64: expected it off, since kdjax computes in 32 bits"),
        ({"PYTHONOPTIMIZE": "1"}, "error: expected Python with its asserts, found python -O"),
    ],
)
def test_what_is_not_there(variables, said, tmp_path):
    process = sub.start([*sub.LAUNCH, f"--config={tiny(tmp_path)}"], {**sub.environment(tmp_path), **variables})
    output = sub.finish(process, expected=2)
    assert said in output
    assert "Traceback" not in output


@pytest.mark.long
def test_a_run_under_an_ascii_locale(tmp_path):
    """Its name and what is printed have other characters."""
    text = tiny(tmp_path).read_text().replace('name="tiny"', 'name="größe ±"')
    path = tmp_path / "named.py"
    path.write_text(text, encoding="utf-8")
    flags = (f"--config={path}", f"--workdir={tmp_path / 'runs'}", "--config.quick_compile=true")
    environment = {**sub.environment(tmp_path / "cache"), **ASCII}
    for words in ([], ["--mode=report"], ["--mode=eval"]):
        output = sub.finish(sub.start([*sub.LAUNCH, *flags, *words], environment, encoding="utf-8", errors="replace"))
        assert "Traceback" not in output
    assert "größe ±" in (tmp_path / "runs" / "report.html").read_text(encoding="utf-8")


def test_control_characters_are_shown_not_obeyed():
    assert terminal.printable("a\x1b[31mb\rc\x07\nd ± größe\u202e \udcff") == (
        "a\\x1b[31mb\\rc\\x07\nd ± größe\\u202e \\udcff"
    )
    assert terminal.printable(os.fsdecode(b"\xff")) == "\\udcff"
