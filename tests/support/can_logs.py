"""Made-up CAN logs, and the forms in which they may lie on disk."""

from pathlib import Path

import numpy as np

from kdjax.data.can.messages import Messages


def messages(seed: int = 0, n: int = 300, ids: int = 12, labelled: bool = True) -> Messages:
    """Few ids, so that pairs repeat; payloads of any length, zeros after their end; times with microseconds."""
    rng = np.random.default_rng(seed)
    known = rng.choice(0x800, ids, replace=False)
    known[0] = 0x1A0  # hex by its letter
    length = rng.integers(0, 9, n).astype(np.uint8)
    data = rng.integers(0, 256, (n, 8)).astype(np.uint8)
    data[np.arange(8)[None, :] >= length[:, None]] = 0
    return Messages(
        time=1_513_921_661 + np.cumsum(rng.integers(1, 900, n)) / 1e6,
        id=rng.choice(known, n).astype(np.int64),
        data=data,
        length=length,
        label=(rng.random(n) < 0.02).astype(np.int8) if labelled else np.full(n, -1, np.int8),
        line=np.arange(2, n + 2),
    )


def rows(log: Messages, id: str = "03X", byte: str = "02X") -> list[tuple[str, str, list[str], int]]:
    """(time, id, bytes, label) of each message as they are written."""
    return [
        (f"{t:.6f}", format(int(i), id), [format(int(b), byte) for b in data[:length]], int(label))
        for t, i, data, length, label in zip(log.time, log.id, log.data, log.length, log.label, strict=True)
    ]


def plain(log: Messages, header: str = "timestamp,arbitration_id,data_field,attack", id: str = "03X") -> str:
    """The form of can-train-and-test."""
    return "\n".join([header, *(f"{t},{i},{''.join(b)},{y}" for t, i, b, y in rows(log, id))]) + "\n"


def candump(log: Messages) -> str:
    """As `candump -L` writes messages, which says nothing of attacks."""
    return "".join(f"({t}) vcan0 {i}#{''.join(b)}\n" for t, i, b, _ in rows(log))


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def parquet(path: Path, log: Messages, **columns) -> Path:
    """As the reference has it: ids as numbers, payloads as hex."""
    import pyarrow
    from pyarrow.parquet import write_table

    table = {
        "timestamp": log.time,
        "id": log.id.astype(np.uint32),
        "data_field": ["".join(b) for _, _, b, _ in rows(log)],
        "label": log.label.astype(np.uint8),
        "source_file": ["x.csv"] * len(log),
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.table({k: v for k, v in table.items() if v is not None}), path)
    return path
