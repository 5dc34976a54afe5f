"""What a person installs: the wheel in an empty environment, used far from the clone; and an editable install, used
from beside it."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.support.command import tiny

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def ran(*words, cwd) -> str:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    ended = subprocess.run(list(map(str, words)), cwd=cwd, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def environment(folder: pathlib.Path) -> pathlib.Path:
    """The programs of an empty virtual environment."""
    ran(sys.executable, "-m", "venv", folder, cwd=folder.parent)
    return folder / "bin"


def test_the_wheel_trains_far_from_the_clone(tmp_path):
    ran(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    programs, here = environment(tmp_path / "venv"), tmp_path / "elsewhere"
    ran(programs / "pip", "install", "--quiet", wheel, cwd=tmp_path)
    here.mkdir()
    assert "sam_distill:smoke" in ran(programs / "kdjax", "list", "configs", cwd=here).split()
    own = tiny(here)
    own.write_text(own.read_text().replace('"binary_kl"', '"mine:loss"'))
    (here / "mine.py").write_text("from kdjax.losses.logits import binary_kl as loss\n")
    for config in ("sam_distill:smoke", own.name):
        printed = ran(programs / "kdjax", "train", config, "--workdir=run", cwd=here)
        assert printed.endswith("report: run/report.html\n")
        assert (here / "run" / "report.html").stat().st_size > 10_000
        (here / "run").rename(here / config.replace(":", "_").replace(".py", ""))
    ran(programs / "python", "-m", "kdjax.launch", "--mode=eval", "--workdir=tiny", cwd=here)
    assert "segformer" in ran(programs / "kdjax", "convert", "--list", cwd=here)


def test_beside_the_clone_python_finds_the_package_and_not_its_folder(tmp_path):
    programs = environment(tmp_path / "venv")
    ran(programs / "pip", "install", "--quiet", "--no-deps", "--editable", ROOT, cwd=tmp_path)
    (tmp_path / "kdjax").symlink_to(ROOT)  # a clone goes by this name
    found = ran(programs / "python", "-c", "import kdjax; print(kdjax.build.__module__, kdjax.__file__)", cwd=tmp_path)
    assert found.split() == ["kdjax", str(ROOT / "kdjax" / "__init__.py")]
