"""Finished runs, read from their working directories and grouped by what they differ in."""

import os
from dataclasses import replace
from pathlib import Path

from kdjax.config import ConfigError, Experiment, Log, Mesh
from kdjax.experiment.outcome import REPORT, SUMMARY
from kdjax.experiment.saved import differences, from_json, to_json
from kdjax.experiment.workdir import CONFIG, config_of
from kdjax.report.comparison import Folded, fold
from kdjax.train import kept

DIFFERENCES = 6  # of two configs that are told


def compare(folders: list[Path]) -> tuple[dict[str, Folded], dict[str, list[str]]]:
    """Runs by name, those folded into one that differ in their seed alone; and how the others differ from the first, by
    a heading for each."""
    finished = [folder for folder in folders if (folder / SUMMARY).is_file()]
    left_out = [f"{folder} holds no finished run" for folder in folders if folder not in finished]
    if not finished:
        raise ConfigError(
            f"expected working directories of finished runs, found {', '.join(map(str, folders)) or 'none'}"
        )
    groups: dict[str, list[Path]] = {}
    configs = {folder: from_json(config_of(folder) or "", folder / CONFIG) for folder in finished}
    for folder in finished:
        groups.setdefault(to_json(but_seed(configs[folder])), []).append(folder)
    named = {name_of(members, finished): members for members in groups.values()}
    runs = {
        name: fold([kept.read_json(folder / SUMMARY, REPORT) for folder in members]) for name, members in named.items()
    }
    first, *others = named
    of_first = but_seed(configs[named[first][0]])
    differing = {}
    for name in others:
        lines = differences(of_first, but_seed(configs[named[name][0]]))
        more = [f"and {len(lines) - DIFFERENCES} more"] if len(lines) > DIFFERENCES else []
        differing[f"{name} against {first}"] = [*lines[:DIFFERENCES], *more]
    return runs, differing | ({"left out": left_out} if left_out else {})


def but_seed(experiment: Experiment) -> Experiment:
    """What makes runs the same experiment."""
    return replace(experiment, seed=0, mesh=Mesh(), log=Log(), quick_compile=False)


def name_of(members: list[Path], folders: list[Path]) -> str:
    """What the folders' names have in common, where that is no other folder's name."""
    common = os.path.commonprefix([str(folder) for folder in members]).rstrip("-_./ ")  # noqa: RUF071 - of names
    shared = any(str(folder).startswith(common) for folder in folders if folder not in members)
    return common if common and not shared else str(members[0])
