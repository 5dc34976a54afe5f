"""Whether distillation helped, over several seeds: each runs the whole command, and the spread stands beside the mean.

python -m benchmarks.seeds --config=configs/sam_distill.py --seeds=0,1,2
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from kdjax.report import tables

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
    found = aggregate(summaries, seeds)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"seeds_{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


def aggregate(summaries: list[dict], seeds: list[int]) -> dict:
    """Every model's test metrics for each seed, their mean and spread, of each test set too where there are several,
    and the paired gain over the control in the first measure of the table."""
    shown = tables.shown(summaries[0])
    columns = [
        [next(row for row in s["rows"] if _key(row) == _key(first)) for s in summaries]
        for first in summaries[0]["rows"]
    ]
    rows = []
    for of_seeds in columns:
        first = of_seeds[0]
        groups = first["per_class"] if summaries[0].get("group") else {}
        rows.append(
            {
                **{k: first.get(k) for k in ("stage", "title", "role", "parameters")},
                **{metric: spread([row["metrics"][metric]["mean"] for row in of_seeds]) for metric in shown},
                **{
                    f"{metric} of {group}": spread([row["per_class"][group][metric]["mean"] for row in of_seeds])
                    for group in groups
                    for metric in shown
                },
            }
        )
    values = {row["stage"]: row[shown[0]]["values"] for row in rows if row["role"] != "baseline"}
    gains = {
        stage: spread([a - b for a, b in zip(values[stage], values[f"{stage}_control"], strict=True)])
        for stage in values
        if f"{stage}_control" in values
    }
    return {
        "name": summaries[0]["name"],
        "seeds": seeds,
        "measures": shown,
        "test_images": summaries[0]["test_images"],
        "hardware": summaries[0]["hardware"],
        "versions": summaries[0]["versions"],
        "seconds": spread([s["seconds"] for s in summaries]),
        "rows": rows,
        "gain_over_control": gains,
    }


def _key(row: dict) -> tuple:
    return row["stage"], row["title"]


def spread(values: list[float]) -> dict:
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "values": values}


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
        lines.append(f"\n{stage} over its control: {gain['mean']:+.3f} ± {gain['std']:.3f} {what} (each seed: {each})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
