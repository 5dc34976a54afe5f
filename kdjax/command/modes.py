"""What the command line does in each mode: asks the package, and prints what came of it.

What a mode needs is imported when it runs, so that lists and mistyped flags are answered in no time.
"""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdjax.command import flags
from kdjax.config import ConfigError, Experiment

WIDE = 110  # columns of prose
OF_TASK = {"detection": ("threshold",), "classification": ("gradcam", "of")}  # flags of `predict` that only these know


def train(experiment: Experiment, workdir: Path) -> int:
    from kdjax.experiment import run as running
    from kdjax.report import tables, verdict

    summary = running.run(experiment, workdir, flags.STAGE.value)
    if first_process():
        headline = textwrap.fill(verdict.verdict(summary)[0], WIDE)
        print(f"\n{tables.text(summary)}\n\n{headline}\n\nreport: {workdir / 'report.html'}")
    return 0


def look(experiment: Experiment, workdir: Path) -> int:
    from kdjax.experiment import look as looking

    print(f"the data as the student will see them: {looking.look(experiment, workdir, flags.STAGE.value)}")
    return 0


def evaluate(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import evaluate as evaluating
    from kdjax.experiment.run import command
    from kdjax.report import tables

    asked = evaluating.Asked(
        place=flags.DATA.value,
        views=tuple(dict.fromkeys(flags.TTA.value)),
        others=tuple(flags.ENSEMBLE.value),
        outside=flags.OUTSIDE.value,
        output=flags.OUTPUT.value,
        command=command(),
    )
    evaluated = evaluating.evaluate(experiment, workdir, flags.STAGE.value, flags.WEIGHTS.value, asked)
    summary = evaluated.summary
    if first_process():
        print("".join(f"warning  {textwrap.fill(text, WIDE)}\n\n" for text in summary["warnings"]), end="")
        print(f"{tables.text(summary)}\n\n{tables.results(summary)}\n{evaluating.write_results(summary, workdir)}")
        if evaluated.evaluation:
            print(evaluating.write(evaluated.evaluation, asked.folder(workdir)))
    return 0


def predict(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import predict as predicting

    kind, prefix = predicting.kind_of(experiment, flags.STAGE.value), "--mode=predict of a model of"
    only = {
        "log": flags.LOG.value,
        "threshold": flags.THRESHOLD.value,
        "ids": flags.IDS.value,
        "payload": flags.PAYLOAD.value,
        "gradcam": flags.GRADCAM.value,
        "of": flags.OF.value,
        "captions": flags.CAPTIONS.value,
    }
    given = [name for name, value in only.items() if value not in ("", None)]
    if kind == "nodes":
        raise ConfigError(f"{prefix} one graph's nodes has nothing new to read; --mode=eval scores it")
    if kind == "graphs":
        if strange := [name for name in given if name in (*OF_TASK["classification"], "captions")]:
            raise ConfigError(f"{prefix} graphs knows no --{', --'.join(strange)}; they are for images")
        if flags.IMAGES.value or not flags.LOG.value:
            extra = " and no --images" if flags.IMAGES.value else ""
            raise ConfigError(f"{prefix} graphs needs --log=FILE, a CAN log, or --log=- for standard input{extra}")
        return detect(experiment, workdir)
    task = predicting.task_name(experiment, flags.STAGE.value)
    if kind == "records":
        if strange := [name for name in given if name != "captions"]:
            flag = "--images=FOLDER, --captions=FILE or both"
            raise ConfigError(f"{prefix} records, of {task}, knows no --{', --'.join(strange)}; give it {flag}")
        return answer(experiment, workdir)
    if strange := [name for name in given if name not in OF_TASK.get(task, ())]:
        raise ConfigError(f"{prefix} images, of {task}, knows no --{', --'.join(strange)}; give it --images=FOLDER")
    if not flags.IMAGES.value:
        raise ConfigError("--mode=predict needs --images=FOLDER, and --output=FOLDER for what it writes")
    output = Path(flags.OUTPUT.value or workdir / "predictions")
    asked = experiment, workdir, flags.STAGE.value, flags.WEIGHTS.value, Path(flags.IMAGES.value), output
    if task not in OF_TASK:
        print(f"masks and overlays of {predicting.predict(*asked)} images: {output}")
        return 0
    return (score if task == "detection" else classify)(asked)


def classify(asked: Any) -> int:
    from kdjax.deploy import classify as classifying

    if flags.OF.value and not flags.GRADCAM.value:
        raise ConfigError("--of says which class --gradcam explains; give --gradcam with it")
    done, output = classifying.classify(*asked, layer=flags.GRADCAM.value, of=flags.OF.value), asked[-1]
    print(
        f"classes of {done['images']} images: {output / classifying.TABLE}, and to look at {output / classifying.PAGE}"
    )
    if done["layer"]:
        print(f"what speaks for {flags.OF.value or 'them'}, Grad-CAM++ at {done['layer']}: NAME_cam.jpg beside it")
    return 0


def answer(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import answer as answering

    output = Path(flags.OUTPUT.value or workdir / "predictions")
    given = flags.IMAGES.value, flags.CAPTIONS.value, output
    done = answering.answer(experiment, workdir, flags.STAGE.value, flags.WEIGHTS.value, *given)
    print("".join(f"note  {note}\n" for note in done["notes"]), end="")
    table, page = output / answering.TABLE, output / answering.PAGE
    print(f"labels of {done['records']} records: {table}, and to look at {page}")
    return 0


def score(asked: Any) -> int:
    from kdjax.deploy import score as scoring

    output = asked[-1]
    scored = scoring.score(*asked, threshold=flags.THRESHOLD.value)
    if scored["warning"]:
        print(f"warning  {textwrap.fill(scored['warning'], WIDE)}\n")
    told = f"{scored['found']} of {scored['images']} images are taken for {scored['kind']!r}"
    print(f"{told} (logit above {scored['threshold']:.4g}): {output / scoring.TABLE}, heat-maps beside it")
    return 0


def detect(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import watch as detecting

    options = {"output": flags.OUTPUT.value, "threshold": flags.THRESHOLD.value}
    options["reading"] = {k: v for k, v in (("ids", flags.IDS.value), ("payload", flags.PAYLOAD.value)) if v}
    print(detecting.detect(experiment, workdir, flags.STAGE.value, flags.WEIGHTS.value, flags.LOG.value, **options))
    return 0


def export(experiment: Experiment, workdir: Path) -> int:
    from kdjax.deploy import export as exporting

    exported = exporting.export(experiment, workdir, flags.STAGE.value, flags.WEIGHTS.value, flags.OUTPUT.value)
    for name, file in exported["files"].items():
        print(f"{name:25} {file['bytes']:>13,} bytes  the same as {exported['weights']}: {file['compared']}")
    print(f"{exported['folder']}, told of in {exporting.SIGNATURE}")
    return 0


def report(experiment: Experiment, workdir: Path) -> int:
    from kdjax.experiment import lock, outcome
    from kdjax.experiment.opening import open_run
    from kdjax.report import tables

    if not (workdir / "config.json").exists():
        raise ConfigError(f"{workdir} holds no run to report; train it first, or name another --workdir")
    with lock.held(workdir):
        opened = open_run(experiment, workdir)
        summary = outcome.summarise(opened)
        outcome.report(opened, summary)
    print(f"{tables.text(summary)}\n\nreport: {workdir / 'report.html'}")
    return 0


def metrics(words: list[str]) -> int:
    from kdjax.deploy import mask_folders

    if not (flags.PREDICTED.value and flags.TRUTH.value):
        raise ConfigError("--mode=metrics needs --predicted=FOLDER and --truth=FOLDER")
    output = flags.OUTPUT.value or "metrics.csv"
    summary = mask_folders.compare_folders(
        flags.PREDICTED.value, flags.TRUTH.value, output, flags.NUM_CLASSES.value, flags.EMPTY.value
    )
    for name, value in summary["metrics"].items():
        print(f"{name:15} {value['mean']:.4f} ± {value['std']:.4f}  (n = {value['n']})")
    print(f"per image: {output}")
    return 0


def compare(words: list[str]) -> int:
    from kdjax.experiment import compared
    from kdjax.report import comparison

    runs, differing = compared.compare([Path(word) for word in words])
    page = Path(flags.OUTPUT.value or "compare.html")
    page.write_text(comparison.html(runs, differing), encoding="utf-8")
    print(f"{comparison.text(runs, differing)}\n\nalso in {page}")
    return 0


def first_process() -> bool:
    import jax

    return jax.process_index() == 0


OF_RUNS: dict[str, Callable[[Experiment, Path], int]] = {
    "train": train,
    "look": look,
    "eval": evaluate,
    "predict": predict,
    "export": export,
    "report": report,
}
WITHOUT: dict[str, Callable[[list[str]], int]] = {  # of no run, or of several: given the words of the command
    "metrics": metrics,
    "compare": compare,
}
