"""Which stages run, in which order, and what each of them refers to."""

import dataclasses
import re

from kdjax.config import ConfigError, Experiment, Gate, Stage, Term, nearest
from kdjax.distill.scope import paths

BRANCHES = ("stop", "control")  # what a gate may say besides the name of a stage


def planned(experiment: Experiment, only: str = "") -> dict[str, Stage]:
    """The stages to check and run, each distilled one followed at the end by its control; with `only`, that one and
    what it needs. Stages that stand in where a gate is not reached are among them."""
    stages = {name: experiment.stages[name] for name in needed(experiment)}
    if experiment.control:
        stages |= controls(stages)
    if not only:
        return stages
    known = {**experiment.stages, **stages}
    if only not in known:
        raise ConfigError(f"--stage={only}: no such stage; {nearest(only, known)}")
    keep = [only]
    for name in keep:
        keep += [other for other in references(known[name]) if other not in keep]
    return {name: stage for name, stage in known.items() if name in keep}


def needed(experiment: Experiment) -> list[str]:
    """The stages to run, in order: auxiliary ones only where another needed stage refers to them."""
    wanted: set[str] = set()
    for name, stage in reversed(experiment.stages.items()):
        if not stage.auxiliary or name in wanted:
            wanted |= {name, *references(stage)}
    return [name for name in experiment.stages if name in wanted]


def references(stage: Stage) -> list[str]:
    """The stages that this one starts from, learns from or is guided by."""
    start = [stage.init.removeprefix("stage:")] if stage.init.startswith("stage:") else []
    guides = [stage.curriculum.scorer] if stage.curriculum and stage.curriculum.scorer else []
    parts = [place for place in stage.parts.values() if not is_file(place)]
    return [*start, *parts, *guides] + [t.stage for t in stage.teachers.values() if t.stage]


def is_file(place: str) -> bool:
    """Whether what a part starts from is a file, or a stage of another run, and no stage of this one."""
    return bool(re.search(r"[/\\:]|\.safetensors$", place))


def stand_ins(stages: dict[str, Stage]) -> dict[str, str]:
    """The stages that run only where a gate is not reached, and whose gate that is."""
    named = {stage.gate.otherwise: name for name, stage in stages.items() if stage.gate}
    return {name: gated for name, gated in named.items() if name not in BRANCHES}


def hears(term: Term, stage: Stage) -> bool:
    """Whether a term reads a teacher, or what is made for one."""
    read = [term.teacher] if term.teacher else paths(term.reads)
    return any(path.partition(":")[0] in (*stage.teachers, "adapters") for path in read)


def without_teachers(stage: Stage) -> Stage:
    """The control of a distilled stage: same data, labels and budget, but nothing of a teacher."""
    terms = {name: term for name, term in stage.terms.items() if not hears(term, stage)}
    # A stage that hears teachers alone has nothing left; its control hears the task's own terms.
    terms = terms if any(term.weight for term in terms.values()) else {}
    title = f"{stage.title.removesuffix(', distilled')}, no teacher" if stage.title else ""
    folder = re.sub(r"(^|/)with-kd(/|$)", r"\1no-kd\2", stage.folder)
    if stage.folder and folder == stage.folder:
        folder += "_control"
    alone = stage.optim.pull in ("separate", "balanced")  # between teachers and the rest: there is the rest alone
    optim = dataclasses.replace(stage.optim, pull="sum") if alone else stage.optim
    fields = {"teachers": {}, "terms": terms, "title": title, "folder": folder, "optim": optim, "grad_norms_every": 0}
    return dataclasses.replace(stage, **fields)


def controls(stages: dict[str, Stage]) -> dict[str, Stage]:
    """The control of each distilled stage. Where that one starts from another distilled one, it starts from its
    control: nothing of a teacher reaches it."""
    alone = {f"{name}_control": without_teachers(stage) for name, stage in stages.items() if stage.teachers}
    for name, stage in alone.items():
        for taught in [other for other in references(stage) if stages.get(other) and stages[other].teachers]:
            alone[name] = standing_in(alone[name], taught, f"{taught}_control")
    return alone


def with_controls(experiment: Experiment) -> dict[str, Stage]:
    """All stages by name, and the control of each distilled one, whether it runs or not."""
    return experiment.stages | controls(experiment.stages)


def standing_in(stage: Stage, absent: str, present: str) -> Stage:
    """The stage with every reference to `absent` made one to `present`."""

    def other(name: str) -> str:
        return present if name == absent else name

    scorer = stage.curriculum and dataclasses.replace(stage.curriculum, scorer=other(stage.curriculum.scorer))
    return dataclasses.replace(
        stage,
        init=f"stage:{other(stage.init.removeprefix('stage:'))}" if stage.init.startswith("stage:") else stage.init,
        parts={part: other(name) for part, name in stage.parts.items()},
        teachers={k: dataclasses.replace(t, stage=other(t.stage)) for k, t in stage.teachers.items()},
        curriculum=scorer,
    )


def teacher_folders(folder: str) -> str:
    """A pattern of the folders in which a student in `folder` looks for its teacher; "" where it is no `layout`."""
    parts = folder.split("/")
    return "/".join([*parts[:4], "*", "no-kd", parts[6]]) if len(parts) == 7 else ""


def judged(name: str, gate: Gate, measure: str, reached: float) -> str:
    """What a gate has decided, and why, in a sentence; "" of a gate that has nothing to tell."""
    told = f"stage {name!r} reached {measure} {reached:.4f} on the validation data"
    if reached >= gate.at_least:
        if not gate.good:
            return ""
        if reached >= gate.good:
            return f"{told}, which is good (from {gate.good:g} on)"
        span = f"{gate.at_least:g} to {gate.good:g}"
        return f"{told}, which is marginal ({span}): it teaches, but more training may serve its students better"
    short = f"{told}, its gate asks for {gate.at_least:.4f}"
    if gate.otherwise == "control":
        return f"{short}: what would learn from it is trained as its control, without a teacher"
    return short if gate.otherwise == "stop" else f"{short}: {gate.otherwise!r} stands in for it from here on"


def gate_faults(name: str, gate: Gate, stages: dict[str, Stage]) -> list[str]:
    """What cannot work about the branches of a gate."""
    order = list(stages)
    if gate.otherwise in BRANCHES:
        return []
    if gate.otherwise not in stages:
        return [f"gate.otherwise: no stage {gate.otherwise!r}; {nearest(gate.otherwise, [*BRANCHES, *stages])}"]
    if order.index(gate.otherwise) != order.index(name) + 1:
        return [f"gate.otherwise: stage {gate.otherwise!r} has to come right after {name!r}, for which it stands in"]
    if stages[gate.otherwise].model != stages[name].model:
        return [f"gate.otherwise: {gate.otherwise!r} stands in for {name!r} and so has to train the same model"]
    return []
