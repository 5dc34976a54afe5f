"""Watching a CAN bus: a log, which may still be growing, is cut into windows as in training and scored as it comes.

What drove an alert is found by leaving out. Each id's node, with its edges, is taken out of the window's graph, and the
model scores the rest; the more the score falls, the more the id has driven it. That answers what a person would ask
(would there be an alert without this id?), and it works for any model: gradients end at the choice of an agent, and an
autoencoder's errors lie as much with an intruder's neighbours (the largest error names a flooding id in 39 % of alerts,
leaving out in 96 %). Each alert costs a forward pass over as many graphs as its window has ids.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64, Int

from kdjax.config import ConfigError, Experiment, Stage, nearest
from kdjax.data.can import log as can_log
from kdjax.data.can import windows
from kdjax.data.can.messages import STANDARD, Faults, Messages
from kdjax.data.can.windows import Mapping
from kdjax.data.graphs.packs import KEEPSAKE, Graphs, joined, pack
from kdjax.deploy.predict import calibrated, chosen, load
from kdjax.distill.taps import Network
from kdjax.distill.teachers import build_model
from kdjax.experiment import checks
from kdjax.train.setup import task_of

STDIN = "-"
BLOCK = 1 << 18  # bytes that are read at most before what is in them is scored
PACK, FEW = 64, 4  # windows scored together; so few that wait are scored one by one
NAMED = 3  # ids that an alert names


@dataclass(frozen=True)
class Cutting:
    """How logs become graphs: what a stage keeps of its data (`windows.keepsake`)."""

    generation: str
    window: int
    stride: int
    reading: dict[str, str]  # how ids and payloads are written, as `can_log.stream` has it
    ids: tuple[int, ...]

    @staticmethod
    def load(path: Path) -> "Cutting":
        try:
            saved = json.loads(path.read_text())
            ids, sizes = tuple(map(int, saved["ids"])), {k: int(saved[k]) for k in ("window", "stride")}
            windows.check(saved["generation"], **sizes)
            saved = windows.keepsake(
                Mapping(ids), saved["generation"], sizes["window"], sizes["stride"], **saved["reading"]
            )
            return Cutting(**{**saved, "ids": ids})
        except (ValueError, TypeError, KeyError) as error:
            expected = "generation, window, stride, reading and ids"
            raise ConfigError(f"{path}: expected {expected} as JSON ({error!r}); copy it from the run again") from error

    def __call__(self, chunks: Iterable[Messages]) -> Iterator[tuple[Graphs, Float64[np.ndarray, " g"]]]:
        """The graphs of all windows that a chunk completes, and the times of their last messages; `file` counts the
        windows."""
        mapping, rest, skip, done = Mapping(self.ids), [], 0, 0
        for chunk in chunks:
            skipped = min(skip, len(chunk))
            skip -= skipped
            messages = Messages.joined([*rest, chunk[skipped:]])
            graphs = windows.graphs(messages, self.generation, self.window, self.stride, mapping)
            if len(graphs):
                last = np.arange(len(graphs)) * self.stride + self.window - 1
                yield graphs, messages.time[last]
            done = len(graphs) * self.stride
            skip += max(0, done - len(messages))
            rest = [messages[done:]]


class Detector:
    """A model that scores windows: the higher, the likelier an attack."""

    def __init__(self, stage: Stage, variables: dict, cutting: Cutting):
        model = build_model(stage.model, stage.dtype)
        known, spec = len(cutting.ids) + 1, model.inputs["graphs"]
        if spec.num_ids and spec.num_ids != known:
            raise ConfigError(
                f"{KEEPSAKE} tells {known} ids apart, all unknown ones being one, and the model {spec.num_ids}; take "
                "the file of the run that trained the model"
            )
        network, task = Network(model), task_of(stage)
        w = cutting.window
        # A window has up to w + 1 nodes and w edges; of many, most have half as many nodes and fewer edges.
        self.buckets = {1: (w + 2, w), PACK: (PACK * w // 2 + 2, PACK * w * 3 // 4)}
        self._features = spec.features
        task.check(network.shapes(variables, self._batch(_none(spec.features), 1, 0)))
        self._run, self._whole = compiled(network, task), jax.device_put(variables)

    def warm_up(self) -> None:
        """Compiles what scoring takes."""
        for g in self.buckets:
            jax.block_until_ready(self._run(self._whole, self._batch(_none(self._features), g, 0)))

    def scores(self, graphs: Graphs) -> Float64[np.ndarray, " g"]:
        parts, first, sizes = [], 0, graphs.sizes()
        while first < len(graphs):
            g = PACK if len(graphs) - first > FEW else 1
            (nodes, edges), total = self.buckets[g], np.cumsum(sizes[first : first + g], axis=0)
            fit = int(((total[:, 0] < nodes) & (total[:, 1] <= edges)).sum())
            parts.append(self._run(self._whole, self._batch(graphs, g, fit, first))[:fit])
            first += fit
        return np.concatenate([np.asarray(scores, np.float64) for scores in parts])

    def _batch(self, graphs: Graphs, g: int, count: int, first: int = 0) -> dict[str, Any]:
        at = np.where(np.arange(g) < count, first + np.arange(g), -1)
        return {"graphs": jax.tree.map(lambda x: x[None], pack(graphs, at, *self.buckets[g]))}

    def drivers(
        self, graphs: Graphs, alerts: Int[np.ndarray, " a"], scores: Float64[np.ndarray, " a"]
    ) -> list[list[tuple[int, float]]]:
        """The ids that drove each alert and their shares, largest first; none where no id does so alone."""
        if not len(alerts):
            return []
        parts = [without_each(graphs, int(i)) for i in alerts]
        rest, shares = np.split(self.scores(joined(parts)), np.cumsum([len(part) for part in parts])[:-1]), []
        for i, score, left in zip(alerts, scores, rest, strict=True):
            names = graphs.name[slice(*graphs.first_node[i : i + 2])]
            falls = np.maximum(np.nan_to_num(score - left), 0.0)
            order = np.argsort(-falls, kind="stable")
            shares.append([(int(names[k]), float(falls[k] / falls.sum())) for k in order if falls[k] > 0])
        return shares


@cache
def compiled(network: Network, task: Any) -> Any:
    """(variables, a pack) -> the score of each of its graphs."""
    return jax.jit(lambda variables, batch: task.predict(network(variables, batch)[0], batch)["score"][0])


def _none(features: int) -> Graphs:
    """An empty graph, which becomes padding."""
    i, zero, ends = np.zeros(0, np.int32), np.zeros(1, np.int32), np.zeros(2, np.int64)
    x = np.zeros((0, features), np.float32)
    return Graphs(x, i, i.astype(np.int64), i, i, zero, zero, np.zeros(1), ends, ends)


def without_each(graphs: Graphs, i: int) -> Graphs:
    """Graph i without its first node, without its second, and so on."""
    nodes, edges = slice(*graphs.first_node[i : i + 2]), slice(*graphs.first_edge[i : i + 2])
    senders, receivers = graphs.senders[edges], graphs.receivers[edges]
    n = nodes.stop - nodes.start
    out = np.arange(n)[:, None]
    remaining = (senders[None] != out) & (receivers[None] != out)
    at = np.nonzero(np.arange(n)[None] != out)[1]  # places of the nodes that are left
    copies = np.full(n, i)
    return Graphs(
        x=graphs.x[nodes][at],
        id=graphs.id[nodes][at],
        name=graphs.name[nodes][at],
        senders=(senders[None] - (senders[None] > out))[remaining].astype(np.int32),
        receivers=(receivers[None] - (receivers[None] > out))[remaining].astype(np.int32),
        label=graphs.label[copies],
        file=graphs.file[copies],
        begin=graphs.begin[copies],
        first_node=np.arange(n + 1) * (n - 1),
        first_edge=np.concatenate([[0], np.cumsum(remaining.sum(axis=1))]),
    )


# -- a log -----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """The totals of a log."""

    windows: int = 0
    alerts: int = 0
    messages: int = 0
    known: frozenset[int] = frozenset()  # the ids that training knew
    ids: set[int] = field(default_factory=set)  # those of the log
    faults: Faults = field(default_factory=Faults)
    seconds: float = 0.0  # since the first messages arrived
    mean: float = 0.0  # seconds from a window's last message to its score
    worst: float = 0.0
    arrived: float = 0.0  # when the messages at hand did

    def skipped(self, faults: Faults) -> None:
        self.faults += faults

    def scored(self, windows: int, alerts: int) -> None:
        took = time.perf_counter() - self.arrived
        self.windows, self.alerts = self.windows + windows, self.alerts + alerts
        self.mean += (took - self.mean) * windows / self.windows
        self.worst = max(self.worst, took)

    def strange(self) -> str:
        """What to say of a log that shares no id with training; "" of any other."""
        if not self.known or not self.ids or self.ids & self.known:
            return ""
        of_log, of_training = (
            f"{', '.join(map(_hex, sorted(ids)[:NAMED]))}{', ...' if len(ids) > NAMED else ''}"
            for ids in (self.ids, self.known)
        )
        return (
            f"none of the {len(self.ids)} ids of this log ({of_log}) is among the {len(self.known)} that training knew "
            f"({of_training}): to the model they are all one unknown id. Is it the log of another vehicle, or are its "
            "ids written otherwise (--ids=hex, --ids=decimal)?"
        )

    def __str__(self) -> str:
        rate = self.messages / self.seconds if self.seconds else 0.0
        lines = [f"{self.windows} windows, {self.alerts} alerts; {self.messages} messages, {rate:,.0f} per second"]
        if self.windows:
            lines[0] += f"; scored {1e3 * self.mean:.1f} ms after they were complete, at most {1e3 * self.worst:.1f} ms"
        if strange := self.strange():
            lines.append(strange)
        if self.faults.count:
            lines.append(f"{self.faults.count} lines or rows skipped:\n  {self.faults}")
        return "\n".join(lines)


def detect(
    experiment: Experiment,
    workdir: str | Path,
    stage: str,
    weights: str,
    log: str,
    output: str = "",
    threshold: float | None = None,
    reading: dict[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> Tally:
    """Scores all windows of a log, a file or "-" for standard input, and says what scores above the threshold at once.

    The threshold is that of the weights unless another is given. `output` becomes a file of JSON lines with all
    windows. `reading` is put over how training read ids and payloads. Ctrl-C ends a log.
    """
    checks.validate(experiment)
    if jax.process_count() > 1:
        raise ConfigError("--mode=predict runs in one process; leave --coordinator out")
    name, plain = chosen(experiment, stage)
    loaded = load(plain, Path(workdir), name, weights)
    limit = calibrated(loaded.about).get("threshold") if threshold is None else threshold
    if limit is None:
        raise ConfigError(f"{loaded.path} holds no threshold; give one with --threshold")
    if output and not output.endswith(".jsonl"):
        raise ConfigError(f"--output={output}: expected a file whose name ends in .jsonl")
    if KEEPSAKE not in loaded.keepsakes:
        raise ConfigError(
            f"{loaded.path}: expected {KEEPSAKE} beside it, which says how logs become graphs, found none; copy it "
            "from the run that the weights come from"
        )
    cutting = Cutting.load(loaded.keepsakes[KEEPSAKE])
    tally = Tally(known=frozenset(cutting.ids))
    with contextlib.ExitStack() as stack:
        chunks = opened(log, {**cutting.reading, **(reading or {})}, cutting.window, tally, stack)
        detector = Detector(loaded.stage, loaded.whole, cutting)
        detector.warm_up()
        lines = stack.enter_context(open(output, "w")) if output else None
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        for graphs, ends in cutting(counted(chunks, tally)):
            if not tally.windows and (strange := tally.strange()):
                print(f"warning: {strange}", file=sys.stderr)  # now, since a log may go on for days
            records = judged(detector, graphs, ends, limit, tally.windows)
            for record in records:
                if record["alert"]:
                    say(_text(record, tally.known))
                if lines:
                    print(_json(record, tally.known), file=lines)
            for stream in filter(None, (sys.stdout, lines)):
                stream.flush()
            tally.scored(len(records), sum(record["alert"] for record in records))
    if not tally.messages and tally.faults.count:
        raise ConfigError(f"{log}: expected messages, found none that can be read:\n  {tally.faults}")
    return tally


def judged(
    detector: Detector, graphs: Graphs, ends: Float64[np.ndarray, " g"], limit: float, done: int
) -> list[dict[str, Any]]:
    """A record of each window: when it was, its score, whether that is an alert, and which ids drove it."""
    scores = detector.scores(graphs)
    alarm = ~(scores <= limit)  # what is no number is no normal traffic
    alerts = np.flatnonzero(alarm)
    drivers: list[list] = [[] for _ in scores]
    for i, driven in zip(alerts, detector.drivers(graphs, alerts, scores[alerts]), strict=True):
        drivers[i] = driven
    return [
        {
            "window": done + i,
            "begin": graphs.begin[i],
            "end": ends[i],
            "score": scores[i],
            "threshold": limit,
            "alert": bool(alarm[i]),
            "ids": drivers[i],
            "label": int(graphs.label[i]),
        }
        for i in range(len(scores))
    ]


def opened(
    log: str, reading: dict[str, str], window: int, tally: Tally, stack: contextlib.ExitStack
) -> Iterator[Messages]:
    """The messages of a log as they come."""
    options: dict[str, Any] = {**reading, "told": tally.skipped}
    if log == STDIN:
        return can_log.stream(blocks(sys.stdin.buffer, window + 2, tally), chunk=1, **options)
    path = Path(log).expanduser()
    if not path.exists() or path.is_dir():
        beside = [str(p) for p in path.parent.glob("*") if p.suffix.lower() in can_log.SUFFIXES]
        near = f"; {nearest(str(path), beside)}" if beside else ""
        actual = "a folder" if path.is_dir() else "no such file"
        raise ConfigError(
            f"{path}: expected a log (CSV, parquet or candump -L; - is standard input), found {actual}{near}"
        )
    if path.suffix.lower() == ".parquet":
        return can_log.stream_parquet(path, **options)
    file = open(path, "rb")  # noqa: SIM115 - the stack closes it
    return can_log.stream(blocks(stack.enter_context(file), window + 2, tally), name=str(path), chunk=1, **options)


def blocks(file: Any, least: int, tally: Tally) -> Iterator[bytes]:
    """Yields whole lines as they come; the first block has enough lines to show how ids are written."""
    held, lines = b"", -least
    while got := file.read1(BLOCK):
        tally.arrived = time.perf_counter()
        held += got
        lines += got.count(b"\n")
        complete, newline, tail = held.rpartition(b"\n")
        if newline and lines >= 0:
            held = tail
            yield complete + newline
        can_log.started(tail if newline else held, "the log")
    if held:
        yield held


def counted(chunks: Iterator[Messages], tally: Tally) -> Iterator[Messages]:
    began = last = 0.0
    for chunk in chunks:
        last = tally.arrived = tally.arrived if tally.arrived > last else time.perf_counter()
        began = began or last
        tally.messages += len(chunk)
        tally.ids.update(np.unique(chunk.id).tolist())
        yield chunk
        tally.seconds = time.perf_counter() - began


def _text(record: dict[str, Any], known: frozenset[int]) -> str:
    """An unknown id stands for all unknown ones of its window, which are one node."""
    named = [f"{_hex(id)}{'' if id in known or not known else ' (unknown)'} {share:.0%}" for id, share in record["ids"]]
    score = f"score {record['score']:.4g} > {record['threshold']:.4g}"
    return f"{record['begin']:.6f}  window {record['window']}  {score}  {', '.join(named[:NAMED]) or 'no single id'}"


def _json(record: dict[str, Any], known: frozenset[int]) -> str:
    ids = [{"id": _hex(id), "share": round(share, 4), "known": id in known or not known} for id, share in record["ids"]]
    score = record["score"] if math.isfinite(record["score"]) else None
    left_out = ({"ids"} if not record["alert"] else set()) | ({"label"} if record["label"] < 0 else set())
    return json.dumps({k: v for k, v in {**record, "score": score, "ids": ids}.items() if k not in left_out})


def _hex(id: int) -> str:
    """As loggers write it."""
    return f"{id:08X}" if id > STANDARD else f"{id:03X}"
