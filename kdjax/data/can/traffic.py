"""Generated CAN traffic: two vehicles, four kinds of attack. Everything follows from the seed; nothing is on disk.

A vehicle sends its ids periodically, with jitter. What the payloads hold follows a drive: speeds, pressures and
temperatures that change slowly, in one byte or two; counters, switches, constants, and checksums of it all. An attacker
adds messages in bursts, and each message waits for the bus to be free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from kdjax.config import ConfigError, nearest
from kdjax.data.can import windows
from kdjax.data.can.messages import STANDARD, Messages
from kdjax.data.can.windows import Mapping
from kdjax.data.graphs.packs import Graphs, joined

PERIODS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # seconds
SHARES = (0.28, 0.22, 0.16, 0.18, 0.1, 0.06)  # of the ids
FRAME = 0.00025  # seconds that a message takes on a bus of 500 kbit/s
IDS, COMMON = 34, 16  # of a vehicle, and those that both vehicles have
FUZZED = 80  # ids that a fuzzer tries besides those of the vehicle
SIGNALS = 8  # of a drive: speed, revolutions, steering, ...
SAMPLES = 100  # of a signal in a second
BYTES = ("constant", "signal", "fine", "counter", "switch", "checksum")  # fine: the lower half of a signal in two bytes
BURST, PAUSE = (0.15, 0.8), (0.25, 1.2)  # seconds


@dataclass(frozen=True)
class Sender:
    """One id of a vehicle, and what its bytes are."""

    id: int
    period: float  # seconds
    jitter: float  # standard deviation, in periods
    bytes: tuple[str, ...]
    of: tuple[int, ...]  # of each byte the signal that it follows, or its constant


class Traffic:
    """Windows of generated traffic, with the interface of `can.Can`; training is on vehicle one.

    Each test set has `test_windows` windows. `known` attacks (dos, fuzzing, spoofing, replay) are in half of the
    training windows, `unknown` ones only in test sets. `generation`, `window` and `stride` are those of `windows`.
    """

    kind: ClassVar[str] = "graphs"

    def __init__(
        self,
        seed: int = 0,
        train_windows: int = 1600,
        test_windows: int = 400,
        known: Sequence[str] = ("dos", "fuzzing"),
        unknown: Sequence[str] = ("spoofing", "replay"),
        generation: str = "B",
        window: int = 0,
        stride: int = 0,
    ):
        windows.check(generation, window, stride)
        sizes = {"train_windows": train_windows, "test_windows": test_windows}
        faults = [f"{name}: expected at least 8, found {n}" for name, n in sizes.items() if n < 8]
        attacks = {"known": known, "unknown": unknown}
        for which, names in attacks.items():
            faults += [f"{which}: no {name!r}; {nearest(name, ATTACKS)}" for name in names if name not in ATTACKS]
            faults += [] if names else [f"{which}: expected one attack or more, found none"]
        if faults:
            raise ConfigError("the CAN traffic cannot be made:\n  " + "\n  ".join(faults))
        window = window or windows.WINDOWS[generation]
        plan = [("train_01_attack_free", 0, ("",), train_windows - train_windows // 2)]
        plan += [("train_02_with_attacks", 0, tuple(known), train_windows // 2)]
        for k, (vehicle, attack) in enumerate(((0, "known"), (1, "known"), (0, "unknown"), (1, "unknown")), 1):
            name = f"test_{k:02d}_{'un' * vehicle}known_vehicle_{attack}_attack"
            plan.append((name, vehicle, tuple(attacks[attack]), test_windows))
        cars = vehicles(seed)
        self.logs: dict[str, Messages] = {}
        for k, (name, vehicle, kinds, count) in enumerate(plan):
            for j, attack in enumerate(kinds):
                mine = count // len(kinds) + (j < count % len(kinds))
                messages = window + 1 + (mine - 1) * (stride or window)
                rng = np.random.default_rng([seed, k, j])
                self.logs[f"{name}/{attack or 'attack_free'}"] = drive(rng, cars[vehicle], attack, messages)
        self.files = tuple(self.logs)
        self.mapping = Mapping.build([log for name, log in self.logs.items() if name.startswith("train")], generation)
        self.num_ids = self.mapping.num_ids if self.mapping.ids else 0
        self.keepsake = windows.keepsake(self.mapping, generation, window, stride)
        sets: dict[str, list[Graphs]] = {}
        for k, (name, log) in enumerate(self.logs.items()):
            part = windows.graphs(log, generation, window, stride, self.mapping, file=k)
            sets.setdefault(name.split("/")[0], []).append(part)
        self.train = joined([part for name, parts in sets.items() if name.startswith("train") for part in parts])
        self.test = {name: joined(parts) for name, parts in sets.items() if name.startswith("test")}
        self.notes: tuple[str, ...] = ()


def vehicles(seed: int) -> tuple[tuple[Sender, ...], tuple[Sender, ...]]:
    """Two of them; of the ids that they share, every other one means the same in both."""
    rng = np.random.default_rng([seed, 100])
    ids = rng.choice(np.arange(1, STANDARD + 1), 2 * IDS - COMMON, replace=False)
    both = [_sender(rng, int(i)) for i in ids[:COMMON]]
    first = [_sender(rng, int(i)) for i in ids[COMMON:IDS]]
    second = [_sender(rng, int(i)) for i in ids[IDS:]]
    other = [s if k % 2 else replace(_sender(rng, s.id), period=s.period) for k, s in enumerate(both)]
    return (*both, *first), (*other, *second)


def _sender(rng: np.random.Generator, id: int) -> Sender:
    length = int(rng.choice([8, 8, 8, 8, 6, 5, 4, 2]))
    held: list[str] = []
    while len(held) < length:
        what = str(rng.choice(["constant", "signal", "wide", "counter", "switch"], p=[0.3, 0.25, 0.2, 0.1, 0.15]))
        held += ["signal", "fine"] if what == "wide" else [what]
    held = held[:length]
    if length > 4 and rng.random() < 0.4:
        held[-1] = "checksum"
    sources = [
        int(rng.integers(256)) if what in ("constant", "switch") else int(rng.integers(SIGNALS)) for what in held
    ]
    for k in range(1, length):
        sources[k] = sources[k - 1] if held[k] == "fine" else sources[k]
    return Sender(id, float(rng.choice(PERIODS, p=SHARES)), rng.uniform(0.01, 0.08), tuple(held), tuple(sources))


def drive(rng: np.random.Generator, vehicle: Sequence[Sender], attack: str, n: int) -> Messages:
    """The first n messages of a drive; an `attack` comes in bursts, "" is none."""
    seconds = 1.05 * n / sum(1 / sender.period for sender in vehicle) + 1
    signals = _signals(rng, seconds)
    normal = Messages.joined([_sent(rng, sender, signals, seconds) for sender in vehicle])
    normal = normal[np.argsort(normal.time, kind="stable")]
    parts = [normal]
    if attack:
        at = rng.uniform(0.1, 0.5)
        while at < seconds:
            length = rng.uniform(*BURST)
            added = ATTACKS[attack](rng, vehicle, normal, at, length)
            parts.append(replace(added, label=np.ones(len(added), np.int8)))
            at += length + rng.uniform(*PAUSE)
    messages = Messages.joined(parts)
    messages = messages[np.argsort(messages.time, kind="stable")][:n]
    slot = FRAME * np.arange(n)
    return replace(messages, time=np.maximum.accumulate(messages.time - slot) + slot, line=np.arange(1, n + 1))


def _signals(rng: np.random.Generator, seconds: float) -> Float64[np.ndarray, "s t"]:
    """In [0, 1], changing within seconds to minutes."""
    t = np.arange(int(seconds * SAMPLES) + 1)[None, None, :] / SAMPLES
    period = np.exp(rng.uniform(np.log(1.5), np.log(60), (SIGNALS, 4, 1)))
    size, phase = rng.uniform(0.1, 1, (SIGNALS, 4, 1)), rng.uniform(0, 2 * np.pi, (SIGNALS, 4, 1))
    wave = (size * np.sin(2 * np.pi * t / period + phase)).sum(axis=1) / size.sum(axis=1)
    return np.clip(0.5 + 0.5 * wave, 0, 1)


def _sent(rng: np.random.Generator, sender: Sender, signals: Float64[np.ndarray, "s t"], seconds: float) -> Messages:
    n = int(seconds / sender.period)
    count = np.arange(n)
    time = (count + rng.random() + sender.jitter * rng.standard_normal(n)) * sender.period
    return _messages(sender.id, np.abs(time), _payload(sender, signals, np.abs(time), count + int(rng.integers(256))))


def _payload(
    sender: Sender, signals: Float64[np.ndarray, "s t"], time: Float64[np.ndarray, " n"], count: Int64[np.ndarray, " n"]
) -> UInt8[np.ndarray, "n b"]:
    at = np.minimum((time * SAMPLES).astype(np.int64), signals.shape[1] - 1)
    data = np.zeros((len(time), len(sender.bytes)), np.uint8)
    for k, (what, source) in enumerate(zip(sender.bytes, sender.of, strict=True)):
        if what in ("signal", "fine"):
            wide = (signals[source][at] * 65535).astype(np.uint16)
            data[:, k] = wide >> 8 if what == "signal" else wide & 255
        elif what == "counter":
            data[:, k] = count % (16 if source % 2 else 256)
        elif what == "switch":
            data[:, k] = np.where(signals[source % SIGNALS][at] > 0.6, source, source & 15)
        else:
            data[:, k] = source if what == "constant" else 0
    for k in np.flatnonzero(np.array(sender.bytes) == "checksum"):
        data[:, k] = np.bitwise_xor.reduce(data[:, :k], axis=1) ^ (sender.id & 255)
    return data


def _messages(
    id: int | Int64[np.ndarray, " n"], time: Float64[np.ndarray, " n"], data: UInt8[np.ndarray, "n b"]
) -> Messages:
    n, length = data.shape
    return Messages(
        time=time,
        id=np.broadcast_to(np.asarray(id, np.int64), n),
        data=np.pad(data, ((0, 0), (0, 8 - length))),
        length=np.full(n, length, np.uint8),
        label=np.zeros(n, np.int8),
        line=np.zeros(n, np.int64),
    )


# -- attacks: the messages of one burst ------------------------------------------------------------------------------


def _dos(rng: np.random.Generator, vehicle: Sequence[Sender], normal: Messages, at: float, length: float) -> Messages:
    """The id that always wins the bus, again and again."""
    time = np.arange(at, at + length, np.exp(rng.uniform(np.log(0.0005), np.log(0.01))))
    return _messages(0, time, np.zeros((len(time), 8), np.uint8))


def _fuzzing(
    rng: np.random.Generator, vehicle: Sequence[Sender], normal: Messages, at: float, length: float
) -> Messages:
    """Random payloads under the vehicle's ids and under others."""
    time = np.sort(rng.uniform(at, at + length, int(length / np.exp(rng.uniform(np.log(0.003), np.log(0.05)))) + 1))
    others = np.random.default_rng(FUZZED).choice(STANDARD, FUZZED, replace=False)  # every fuzzer's list
    own = np.array([sender.id for sender in vehicle])
    ids = np.where(rng.random(len(time)) < 0.5, rng.choice(others, len(time)), rng.choice(own, len(time)))
    return _messages(ids, time, rng.integers(0, 256, (len(time), 8)).astype(np.uint8))


def _spoofing(
    rng: np.random.Generator, vehicle: Sequence[Sender], normal: Messages, at: float, length: float
) -> Messages:
    """A frequent id with values that the attacker wants to be believed, sent more often than the true ones."""
    targets = [sender for sender in vehicle if sender.period <= 0.05 and "signal" in sender.bytes]
    sender = targets[rng.integers(len(targets))]
    time = np.arange(at, at + length, sender.period / rng.uniform(2, 5))
    wanted = np.repeat(rng.choice([0.0, 0.02, 0.98, 1.0], (SIGNALS, 1)), 2, axis=1)
    return _messages(sender.id, time, _payload(sender, wanted, time, np.arange(len(time))))


def _replay(
    rng: np.random.Generator, vehicle: Sequence[Sender], normal: Messages, at: float, length: float
) -> Messages:
    """A stretch of some other time, of all ids or of some, sent again as it was."""
    begin = rng.uniform(0, max(normal.time[-1] - length, 0))
    first, last = np.searchsorted(normal.time, [begin, begin + length])
    messages = normal[first:last]
    ids = np.array([sender.id for sender in vehicle])
    chosen = rng.choice(ids, int(len(ids) * rng.uniform(0.25, 1)), replace=False)
    messages = messages[np.isin(messages.id, chosen)]
    return replace(messages, time=messages.time - begin + at)


ATTACKS: dict[str, Callable[..., Messages]] = {
    "dos": _dos,
    "fuzzing": _fuzzing,
    "spoofing": _spoofing,
    "replay": _replay,
}
