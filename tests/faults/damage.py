"""What may happen to a file or a folder while nobody looks."""

import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random


def deleted(path: Path, random: Random) -> None:
    path.unlink()


def emptied(path: Path, random: Random) -> None:
    path.write_bytes(b"")


def cut(path: Path, random: Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.randrange(len(content))])


def flipped(path: Path, random: Random) -> None:
    content = bytearray(path.read_bytes())
    bit = random.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def exchanged(path: Path, random: Random) -> None:
    """With another file of its kind, such as another stage's."""
    root = next(parent for parent in path.parents if (parent / "stages").is_dir())
    others = [other for other in root.rglob(path.name) if other != path and other.read_bytes() != path.read_bytes()]
    if others:
        shutil.copyfile(random.choice(sorted(others)), path)
    else:
        flipped(path, random)


WAYS: dict[str, Callable[[Path, Random], None]] = {
    way.__name__: way for way in (deleted, emptied, cut, flipped, exchanged)
}


def files(workdir: Path) -> list[Path]:
    """Of a run, all that have something in them, but for what only tells of time and is never read."""
    unread = ("timing.jsonl", "report.html", "test_results.txt")
    return [
        path.relative_to(workdir)
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.stat().st_size and path.name not in unread
    ]
