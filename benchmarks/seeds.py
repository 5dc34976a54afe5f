"""Whether distillation helped, over several seeds: each runs the whole command, and the spread stands beside the mean.

python -m benchmarks.seeds --config=configs/sam_distill.py --seeds=0,1,2
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from kdjax.report import comparison, tables

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/sam_distill.py")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--workdir", default="runs/seeds", help="a folder for each seed is made in it; finished ones stay"
    )
    given, more = parser.parse_known_args()
    seeds = [int(seed) for seed in given.seeds.split(",")]
    file, _, variant = given.config.partition(":")
    name = "-".join(filter(None, [Path(file).stem, variant.partition("=")[0]]))
    summaries = []
    for seed in seeds:
        folder = Path(given.workdir) / name / str(seed)
        command = [sys.executable, "-m", "kdjax.launch", f"--config={given.config}", f"--workdir={folder}"]
        subprocess.run([*command, f"--config.seed={seed}", *more], check=True)
        summaries.append(json.loads((folder / "summary.json").read_text()))
    found = comparison.fold(summaries)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"seeds_{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


def markdown(found: dict) -> str:
    lines = []
    groups = list(dict.fromkeys(key.partition(" of ")[2] for row in found["rows"] for key in row if " of " in key))
    for group in ["", *groups]:
        measures = [f"{m} of {group}" if group else m for m in found["measures"]]
        heads = " | ".join(tables.heading(m) for m in found["measures"])
        lines += [
            f"\n{group}\n" * bool(group) + f"| model | params | {heads} |",
            f"|---|---:|{'---:|' * len(measures)}",
        ]
        for row in found["rows"]:
            told = " | ".join(tables.mean_std(m.partition(" of ")[0], row[m]) for m in measures)
            size = f"{row['parameters']:,}" if row["parameters"] else tables.MISSING
            lines.append(f"| {row['title']} | {size} | {told} |")
    for stage, gain in found["gain_over_control"].items():
        each = ", ".join(f"{value:+.3f}" for value in gain["values"])
        what = tables.heading(found["measures"][0])
        over = tables.mean_std(found["measures"][0], gain, signed=True)
        lines.append(f"\n{stage} over its control: {over} {what} (each seed: {each})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
