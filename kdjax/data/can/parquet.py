"""A CAN log in parquet: its columns as texts or numbers, a batch of rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from kdjax.config import ConfigError
from kdjax.data.can.fields import MARGIN, Text
from kdjax.data.can.messages import Column, Rows

ROLES = {"time": "numbers or text", "payload": "text", "whole": "whole numbers or text"}


def _column(chunks: Any, role: str) -> Column:
    """A column of a table as texts, or as numbers where its role allows them."""
    import pyarrow
    import pyarrow.compute as compute

    types, kind = pyarrow.types, chunks.type
    if types.is_dictionary(kind):
        chunks, kind = chunks.cast(kind.value_type), kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        array = pyarrow.concat_arrays(compute.fill_null(chunks, "").cast(pyarrow.large_string()).chunks)
        _, offsets, characters = array.buffers()
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1] + MARGIN
        pad = np.zeros(MARGIN, np.uint8)
        buffer = np.concatenate([pad, np.frombuffer(characters, np.uint8) if characters else pad[:0], pad])
        return Text(buffer, ends[:-1], ends[1:]).trimmed()
    if role == "time" and types.is_timestamp(kind):
        when = chunks.to_numpy().astype("datetime64[us]")
        return np.where(np.isnat(when), np.nan, when.astype(np.int64) / 1e6)
    if role == "time" and (types.is_floating(kind) or types.is_integer(kind)):
        return compute.fill_null(chunks.cast("float64"), np.nan).to_numpy()
    if role == "whole" and (types.is_integer(kind) or types.is_boolean(kind)):
        return compute.fill_null(chunks.cast("int64"), -1).to_numpy()
    raise ConfigError(f"expected {ROLES[role]}, found {kind}; convert it")


def feed(rows: Rows, places: Callable[[str, Sequence[str]], dict[str, Any]], chunk: int = 1 << 20) -> Iterator[None]:
    """Adds all rows, up to `chunk` of them at a step; `places` finds the columns by their names."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ConfigError(f"{rows.name}: parquet needs pyarrow; pip install 'kdjax[parquet]'") from None

    def unreadable(error: Exception) -> ConfigError:
        return ConfigError(f"{rows.name}: expected parquet, but it cannot be read ({error}); replace the file")

    def batches() -> Iterator[Any]:
        try:
            yield from file.iter_batches(chunk, columns=[names[k] for k in wanted], use_threads=False)
        except pyarrow.ArrowException as error:
            raise unreadable(error) from None

    try:
        file = parquet.ParquetFile(rows.name)
    except pyarrow.ArrowException as error:
        raise unreadable(error) from None
    names = file.schema_arrow.names
    at = places(rows.name, names)
    payload, label = at["payload"], at["label"]
    payloads = [payload] if isinstance(payload, int) else payload
    wanted = [at["time"], at["id"], *payloads, *([] if label is None else [label])]

    def column(place: int) -> Column:
        role = "time" if place == at["time"] else "payload" if place == payload else "whole"
        try:
            return _column(table.column(names[place]), role)
        except ConfigError as error:
            raise ConfigError(f"{rows.name}: column {names[place]!r}: {error}") from None
        except pyarrow.ArrowInvalid as error:
            raise ConfigError(
                f"{rows.name}: column {names[place]!r}: expected whole numbers of at most 63 bits ({error}); mend it"
            ) from None

    seen = 0
    for batch in batches():
        table = pyarrow.Table.from_batches([batch])
        line = np.arange(seen + 1, seen + table.num_rows + 1)
        seen += table.num_rows
        rows.add(
            line,
            column(at["time"]),
            column(at["id"]),
            [column(k) for k in payloads],
            None if label is None else column(label),
        )
        yield
    if not seen:
        raise ConfigError(f"{rows.name}: expected messages, found columns without rows")
