"""README and docs do what they say: their Python runs, their commands are understood, their links lead somewhere, and
what the code knows best stands there as the code has it."""

import contextlib
import importlib.util
import io
import json
import re
import runpy
import sys
import tomllib
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from convert.__main__ import arguments
from kdjax import registry
from kdjax.command import configs, flags
from kdjax.command.configs import load
from kdjax.config import Data, Experiment
from kdjax.data import pipeline
from kdjax.experiment import checks
from kdjax.experiment.opening import open_run
from tests.support import pages
from tests.support.command import command, parsed
from tests.support.pages import LANGUAGES, PAGES, ROOT, blocks

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
OTHERS = {"candump"}  # programs that are not ours
by_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return pages.sandbox(tmp_path_factory.mktemp("pages"))


@pytest.fixture
def here(place, monkeypatch):
    """The folder with all that pages name; what they import from it is forgotten again."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(registry, "_trusted", {"tests"})
    before = set(sys.modules)
    yield place
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(place)):
            sys.modules.pop(name)


def write_files(page: Path, folder: Path) -> list[Path]:
    """The files that a page shows."""
    written = []
    for block in blocks(page):
        if block.file:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            written.append(path)
    return written


@by_page
def test_every_block_says_what_it_is(page):
    assert [b for b in blocks(page) if b.language not in LANGUAGES] == []


@by_page
def test_python_runs(page, here):
    """Block after block, as one program; a block that is a file is written first, and a config in it is sound."""
    for path in write_files(page, here):
        experiment = load(str(path)) if "get_config" in path.read_text() else None
        if experiment:
            checks.validate(experiment)
    names: dict = {"__name__": "page"}
    if page.name == "weights.md":
        names |= exported(here)
    for block in blocks(page):
        if block.language == "python" and not block.file:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)  # so short a program may leave its file open
                exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    for value in list(names.values()):
        if isinstance(value, Data):
            pipeline.build(value)
        if isinstance(value, Experiment):
            checks.validate(value)


def exported(folder: Path) -> dict:
    """A StableHLO file as an export leaves it, and images for it."""
    import jax
    from jax import export

    batch = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")
    program = export.export(jax.jit(lambda images: {"logits": images[..., :1]}))(batch)
    (folder / "model.stablehlo").write_bytes(program.serialize())
    return {"images": jax.numpy.zeros(batch.shape)}


@by_page
def test_commands_are_understood(page, here):
    """By the parsers that they would meet, whatever they would then do."""
    write_files(page, here)
    for words in pages.commands(page):
        understood(words)


def understood(words: list[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # an environment variable
        words = words[1:]
    match words:
        case ["kdjax", "convert", *rest] | ["python", "-m", "convert", *rest]:
            arguments().parse_args(rest)
        case ["kdjax", *rest] | ["python", "-m", "kdjax.launch", *rest]:
            of_kdjax(rest)
        case ["python", "-m", "pip", "install", *_, what]:
            assert set(re.findall(r"\[(\w+)\]", what)) <= EXTRAS.keys(), words
        case ["python", "-m", "pytest", *_]:
            pass
        case ["python", "-m", module, *rest]:
            spec = importlib.util.find_spec(module)
            assert spec, words
            assert spec.origin, words
            known = re.findall(r'"--(\w+)"', Path(spec.origin).read_text())
            assert {word[2:].partition("=")[0] for word in rest} <= set(known), words
        case ["mkdocs", *_]:
            assert (ROOT / "mkdocs.yml").is_file()
        case [program, *rest] if program not in OTHERS:
            assert any((ROOT / word).is_file() for word in words), words
            if of_config := [
                word for word in rest if word.startswith("--config")
            ]:  # of the ways to start it, in launch/
                of_kdjax(of_config)


def of_kdjax(rest: list[str]) -> None:
    spelt = flags.spelt_out(["kdjax", *rest])
    experiment = parsed(*spelt[1:])
    mode = flags.value_of("mode", spelt) or "train"
    if flags.value_of("list", spelt) or mode in ("metrics", "compare"):
        return
    assert experiment.stages, f"{rest}: neither a config nor a working directory"
    checks.validate(experiment)


@pytest.mark.parametrize("mark", ["kdjax list fields", "kdjax list configs"])
def test_lists_that_pages_name_are_there(mark):
    assert any(mark in page.read_text() for page in PAGES)
    assert command(*mark.split()[1:]).code == 0


# -- what the pages leave out, and where they lead -------------------------------------------------------------------


def test_the_readme_is_short_and_begins_with_its_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    first = blocks(ROOT / "README.md")[0].text.splitlines()
    assert first[0] == "python -m pip install -e . && python -m kdjax.launch --config=configs/sam_distill.py"
    assert first[1:] == ['python -m pip install -e ".[test]" && python -m pytest']
    at = {mark: next(i for i, line in enumerate(lines) if line.startswith(mark)) for mark in ("## Your own data", "| ")}
    assert at["## Your own data"] < at["| "], "one's own data come before any table"


@by_page
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, heading = target.partition("#")
        assert (page.parent / file).exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", (page.parent / file).read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles], target


def test_the_reference_is_what_the_code_says():
    written = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()
    for name, text in written.items():
        assert (ROOT / "docs" / name).read_text() == text, f"run `python docs/reference.py`: docs/{name} is out of date"


def test_every_loss_and_reader_is_told_of():
    told = {row for page in PAGES for row in re.findall(r"^\| (.*?) \|", page.read_text(), re.MULTILINE)}
    methods = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "methods.md").read_text(), re.MULTILINE)
    assert sorted(set(methods)) == registry.names("losses")
    assert {f"`{name}`" for kind in registry.TABLES for name in registry.names(kind)} <= told


def test_every_recipe_has_a_command():
    named = {flags.value_of("config", flags.spelt_out(w)).partition(":")[0] for w in kdjax_commands()}
    assert {Path(name).stem for name in named} >= set(configs.recipes())


def kdjax_commands() -> list[list[str]]:
    every = [words for page in PAGES for words in pages.commands(page)]
    return [words for words in every if words[0] == "kdjax" and words[1] not in ("convert", "list", "compare")]


def test_the_site_names_every_page():
    import yaml

    named = {page for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for page in entry.values()}
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_drawing_is_one():
    ElementTree.parse(ROOT / "docs" / "stages.svg")


# -- whole runs ------------------------------------------------------------------------------------------------------


UNTRAINED = set(pages.RUNS) - {"runs/sam_distill", "runs/seed_1", "runs/sam_distill-folder"}


@pytest.fixture(scope="module")
def trained(place):
    """The runs that pages go on with: one's own folder with few steps, and two seeds of the smallest config."""
    with contextlib.chdir(place):
        write_files(ROOT / "docs" / "config.md", place)
        small = [f"--config.stages.sam.data.options.{name}=16" for name in ("train", "val", "test")]
        small += [f"--config.stages.{name}.epochs=2" for name in ("sam", "teacher", "student")]
        small += ["--config.stages.teacher.gate.at_least=0", "--config.quick_compile=true", "--noconfig.control"]
        runs = [
            ("train", "sam_distill:folder=scans", "--classes=cyst,tumour", *small),
            ("train", "smallest.py", "--workdir=runs/sam_distill", "--config.quick_compile=true"),
            ("train", "smallest.py", "--workdir=runs/seed_1", "--config.quick_compile=true", "--config.seed=1"),
        ]
        for words in runs:
            flagged = flags.spelt_out(["kdjax", *words])
            workdir = Path(flags.value_of("workdir", flagged) or "runs/sam_distill-folder")
            (workdir / "config.json").unlink()  # of the sandbox
            ended = command(*words, "--config.mesh.data=1")  # not the eight devices of the tests
            assert ended.code == 0, ended.error
    return place


@pytest.mark.long
@pytest.mark.timeout(900)
@by_page
def test_what_is_done_with_a_run_is_done(page, trained, monkeypatch):
    monkeypatch.chdir(trained)
    write_files(page, trained)
    done = ("look", "eval", "predict", "metrics", "export", "report", "compare")
    for words in pages.commands(page):
        if words[0] == "kdjax" and words[1] in done and not {*UNTRAINED, "mine/config.py"} & set(words):
            ended = command(*words[1:])
            assert ended.code == 0, (words, ended.error)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("page", "line"),
    [("adding.md", "kdjax train mine/config.py"), ("config.md", "kdjax train smallest.py")],
)
def test_configs_of_the_pages_train(page, line, here):
    """And what the page does with them next."""
    write_files(ROOT / "docs" / page, here)
    lines = [" ".join(words) for words in pages.commands(ROOT / "docs" / page)]
    (first, *_) = [i for i, text in enumerate(lines) if text.startswith(line)]
    for words in [lines[first].split(), *(text.split() for text in lines[first + 1 :] if "kdjax eval" in text)]:
        ended = command(*words[1:], "--config.mesh.data=1", "--config.quick_compile=true")
        assert ended.code == 0, ended.error


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_config_of_the_readme_can_be_trained(here):
    """Its models are built, and its terms read what is there."""
    (path,) = write_files(ROOT / "README.md", here)
    assert list(open_run(load(str(path)), here / "opened").learners) == ["teacher", "student", "student_control"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its code cells, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    cells = json.loads((ROOT / "docs" / "first_run.ipynb").read_text())["cells"]
    names: dict = {"__name__": "__main__"}
    with contextlib.redirect_stdout(io.StringIO()):
        for i, cell in enumerate(cell for cell in cells if cell["cell_type"] == "code"):
            exec(compile("".join(cell["source"]), f"cell {i}", "exec"), names)
    assert set(names["outputs"]) >= {"logits"}
    assert Path("runs/first/report.html").is_file()
