"""The pages that the code knows best: fields.md, every field of a config, and names.md, everything that has a name.

python docs/reference.py     writes both; a test fails where they are not what this would write
"""

import inspect
from pathlib import Path
from typing import Any

from kdjax.command import lists

HERE = Path(__file__).parent
ASIDE = ("configs", "fields")  # which have a page, or a docstring, of their own

FIELDS = """# Every field

What a config may say, by the class that says it. `kdjax list fields` prints the same, and a flag sets each of them:
`--config.stages.student.optim.lr=3e-4`. How the classes go together is told in [Writing a config](config.md).
"""
NAMES = """# Everything by name

What `kdjax list KIND` prints. Wherever such a name stands, one of your own may stand too, `"package.module:symbol"`:
[Adding your own](adding.md) tells how.
"""


def pages() -> dict[str, str]:
    return {"fields.md": fields(), "names.md": names()}


def fields() -> str:
    parts, shown = [FIELDS], lists.fields()
    for kind in lists.words():
        told = lists.explained(kind)
        intro = inspect.cleandoc(kind.__doc__ or "").split(f"\n\n{next(iter(told))}:")[0]
        rows = [(f"`{name}`", f"{told[name]}<br>`{declared(shown, kind, name)}`") for name in told]
        parts.append(f"## {kind.__name__}\n\n{intro}\n\n{table(('field', 'what it says, type, default'), rows)}")
    return "\n".join(parts)


def declared(shown: dict[str, str], kind: Any, name: str) -> str:
    """Type and default, of "float = 0.001: the learning rate"."""
    return shown[f"{kind.__name__}.{name}"].partition(": ")[0]


def names() -> str:
    parts = [NAMES]
    for kind, docs in lists.KINDS.items():
        if kind not in ASIDE:
            rows = [(f"`{name}`", " ".join(doc.strip().partition("\n\n")[0].split())) for name, doc in docs().items()]
            parts.append(f"## {kind.capitalize()}\n\n{table(('name', 'what it is'), rows)}")
    recipes = [(f"`{name}`", doc.strip().partition("\n")[0]) for name, doc in lists.KINDS["configs"]().items() if doc]
    parts.append(f"## Configs\n\n{table(('name', 'what it is'), recipes)}")
    return "\n".join(parts)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    for name, text in pages().items():
        (HERE / name).write_text(text)
