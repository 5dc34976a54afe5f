"""Whether distillation helped, over several seeds: each runs the whole command, and the spread stands beside the mean.

python -m benchmarks.seeds --config=configs/sam_distill.py --seeds=0,1,2
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

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
    name = Path(given.config.split(":")[0]).stem + given.config.partition(":")[2].join(("-", "")).rstrip("-")
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
    """Every model's test metrics for each seed, their mean and spread, and the paired gain over the control."""
    rows = [
        {
            "stage": row["stage"],
            "title": row["title"],
            "role": row["role"],
            "parameters": row["parameters"],
            **{
                metric: spread(
                    [
                        next(r for r in s["rows"] if r["stage"] == row["stage"])["metrics"][metric]["mean"]
                        for s in summaries
                    ]
                )
                for metric in ("dice", "iou", "hd95")
            },
        }
        for row in summaries[0]["rows"]
    ]
    dice = {row["stage"]: row["dice"]["values"] for row in rows}
    gains = {
        stage: spread([a - b for a, b in zip(dice[stage], dice[f"{stage}_control"], strict=True)])
        for stage in dice
        if f"{stage}_control" in dice
    }
    return {
        "name": summaries[0]["name"],
        "seeds": seeds,
        "test_images": summaries[0]["test_images"],
        "hardware": summaries[0]["hardware"],
        "versions": summaries[0]["versions"],
        "seconds": spread([s["seconds"] for s in summaries]),
        "rows": rows,
        "gain_over_control": gains,
    }


def spread(values: list[float]) -> dict:
    return {"mean": mean(values), "std": stdev(values) if len(values) > 1 else 0.0, "values": values}


def markdown(found: dict) -> str:
    lines = ["| model | params | Dice | IoU | HD95 |", "|---|---:|---:|---:|---:|"]
    for row in found["rows"]:
        metrics = [f"{row[m]['mean']:.{d}f} ± {row[m]['std']:.{d}f}" for m, d in (("dice", 3), ("iou", 3), ("hd95", 1))]
        lines.append(f"| {row['title']} | {row['parameters']:,} | {' | '.join(metrics)} |")
    for stage, gain in found["gain_over_control"].items():
        each = ", ".join(f"{value:+.3f}" for value in gain["values"])
        lines.append(f"\n{stage} over its control: {gain['mean']:+.3f} ± {gain['std']:.3f} Dice (each seed: {each})")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
