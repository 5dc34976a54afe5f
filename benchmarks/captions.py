"""Captions to tokens: kdjax beside the fast BERT tokenizer of transformers, on this machine.

    python -m benchmarks.captions [--captions=1000000] [--rounds=3] [--out=FILE]

The captions are MedPix's where the folder of `KDJAX_REFERENCE` has them, else made up, repeated until there are enough.
Both sides have one vocabulary, trained on them; they give arrays of ids and masks of one width, cut at 256 tokens, and
these are compared. The sides take turns; a rate is captions in a second, the median of rounds.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.side_by_side import processor
from kdjax.data.text import tokenizers
from kdjax.data.text.scans import scan
from kdjax.data.text.tokens import Captions

RESULTS = Path(__file__).parent / "results"
REAL = Path("data/medpix20/full_text/descriptions_train.jsonl")
LENGTH, VOCABULARY, MADE_UP = 256, 2000, 1000
CHUNK = 20_000  # captions that transformers is given at a time, since it holds all that it knows of them


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "captions.json")
    given = parser.parse_args(argv)
    measured = measure(given.captions, given.rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(measured, indent=1) + "\n")
    print(markdown(measured))


def measure(count: int, rounds: int) -> dict:
    captions, told = written()
    captions = list(islice(cycle(captions), count))
    with tempfile.TemporaryDirectory() as folder:
        ours = tokenizers.trained(captions[:MADE_UP], VOCABULARY, LENGTH)
        saved, theirs = Path(folder) / "tokenizer.json", fast(ours, Path(folder))
        saved.write_text(json.dumps(ours.keepsake()))
        option, cache = {"": {"path": str(saved)}}, f"{folder}/tokens"

        def tokens(cache: str) -> tuple[np.ndarray, np.ndarray]:
            made = Captions(tuple(captions), option, LENGTH, cache).tokens(np.arange(0)).batch(np.arange(count))
            return made["input_ids"], made["attention_mask"]

        ids, mask = tokens(cache)
        sides: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
            "transformers: captions to tokens": lambda: theirs(captions, ids.shape[1]),
            "kdjax: captions to tokens": lambda: tokens(""),
            "kdjax: kept tokens read back": lambda: tokens(cache),
        }
        taken: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(rounds):
            for name, work in sides.items():
                begin = time.perf_counter()
                made = work()
                taken[name].append(time.perf_counter() - begin)
                assert all(np.array_equal(*pair) for pair in zip(made, (ids, mask), strict=True)), name
                del made  # gigabytes
    return {
        "machine": {
            "device": processor(),
            "threads": len(os.sched_getaffinity(0)),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("numpy", "tokenizers", "transformers")},
            },
        },
        "captions": count,
        "kind": told,
        "tokens": int(mask.sum()),
        "width": ids.shape[1],
        "sides": {
            name: {"seconds": seconds, "captions_per_s": count / median(seconds)} for name, seconds in taken.items()
        },
    }


def fast(tokenizer: tokenizers.Tokenizer, folder: Path) -> Callable[[list[str], int], tuple[np.ndarray, np.ndarray]]:
    """What transformers makes of captions by the same vocabulary, in rows of a width."""
    from transformers import BertTokenizerFast

    table = folder / tokenizers.TABLE
    table.write_text("".join(f"{token}\n" for token in sorted(tokenizer.vocab, key=tokenizer.vocab.__getitem__)))
    theirs = BertTokenizerFast(str(table), do_lower_case=True)
    shape = {"padding": "max_length", "truncation": True, "return_token_type_ids": False, "return_tensors": "np"}

    def work(captions: list[str], width: int) -> tuple[np.ndarray, np.ndarray]:
        ids, mask = (np.empty((len(captions), width), np.int32) for _ in range(2))
        for i in range(0, len(captions), CHUNK):
            some = slice(i, i + CHUNK)
            part = theirs(captions[some], max_length=width, **shape)
            ids[some], mask[some] = part["input_ids"], part["attention_mask"]
        return ids, mask

    return work


def written() -> tuple[list[str], str]:
    """Captions, and what they are."""
    path = Path(os.environ.get("KDJAX_REFERENCE", ".")) / REAL
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["Description"]["Caption"] for line in lines], "MedPix 2.0, repeated"
    return [scan(np.random.default_rng(i), 32).caption for i in range(MADE_UP)], "made up, repeated"


def markdown(measured: dict) -> str:
    rate = {name: side["captions_per_s"] for name, side in measured["sides"].items()}
    lines = [
        f"{measured['captions']:,} captions ({measured['kind']}), {measured['tokens']:,} tokens, "
        f"{measured['machine']['device']}, {measured['machine']['threads']} threads\n",
        "| captions in a second | transformers | kdjax | ratio |",
        "|---|---|---|---|",
    ]
    for work in dict.fromkeys(name.split(": ")[1] for name in rate):
        theirs, mine = rate.get(f"transformers: {work}"), rate[f"kdjax: {work}"]
        beside = (f"{theirs:,.0f}", f"{mine / theirs:.2f}") if theirs else ("-", "-")
        lines.append(f"| {work} | {beside[0]} | {mine:,.0f} | {beside[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
