"""CAN logs in all their forms, and everything that can be wrong with a line."""

import builtins
import dataclasses
import time

import numpy as np
import pytest

from kdjax.config import ConfigError
from kdjax.data.can import fields as can_fields
from kdjax.data.can import log as can_log
from kdjax.data.can.messages import Messages
from tests.support import can_logs

EIGHT = ",".join(f"data{k}" for k in range(8))


def same(found: Messages, expected: Messages, *without: str) -> None:
    for field in dataclasses.fields(Messages):
        if field.name not in without:
            a, b = getattr(found, field.name), getattr(expected, field.name)
            np.testing.assert_array_equal(a, b, err_msg=field.name)
            assert a.dtype == b.dtype, field.name


def eight(log: Messages, header: str, byte: str = "02x", end: str = "\n") -> str:
    lines = [f"{t},{i},{','.join(b + [''] * (8 - len(b)))},{y}" for t, i, b, y in can_logs.rows(log, "04x", byte)]
    return end.join([header, *lines]) + end


def hcrl(log: Messages, padded: bool = False) -> str:
    out = []
    for t, i, b, y in can_logs.rows(log, "04x", "02x"):
        out.append(",".join([t, i, str(len(b)), *b, *([""] * (8 - len(b)) if padded else []), "RT"[y]]))
    return "\n".join(out) + "\n"


FORMS = {
    "can-train-and-test": can_logs.plain,
    "no newline at the end": lambda log: can_logs.plain(log)[:-1],
    "lower case, CRLF": lambda log: can_logs.plain(log).lower().replace("\n", "\r\n"),
    "byte order mark": lambda log: b"\xef\xbb\xbf" + can_logs.plain(log).encode(),
    "other order, other names, more columns": lambda log: (
        "Label;CAN ID;dlc;Payload;note;Time\n"
        + "".join(f"{y};0x{i};{len(b)};{''.join(b)};;{t}\n" for t, i, b, y in can_logs.rows(log))
    ),
    "quotes and blanks": lambda log: (
        '"timestamp", "id", "data", "flag"\n'
        + "".join(f'"{t}", "{i}" ,"{"".join(b)}",\t{"RT"[y]}\n' for t, i, b, y in can_logs.rows(log))
    ),
    "words for labels": lambda log: (
        "time,id,data,attack\n"
        + "".join(f"{t},{i},{''.join(b)},{('Normal', 'ATTACK')[y]}\n" for t, i, b, y in can_logs.rows(log))
    ),
    "eight columns, hex": lambda log: eight(log, f"timestamp,id,{EIGHT},label"),
    "eight columns, decimal": lambda log: eight(log, f"timestamp,id,{EIGHT},label".replace("data", "d"), "d"),
    "eight columns counted from 1, CRLF": lambda log: eight(
        log, "Timestamp,ID," + ",".join(f"Byte_{k}" for k in range(1, 9)) + ",Attack", end="\r\n"
    ),
    "HCRL without header": hcrl,
    "HCRL, padded": lambda log: hcrl(log, padded=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [can_log.BLOCK, 97])
def test_messages_come_back_from_every_form(form, block, tmp_path, monkeypatch):
    """Blocks of 97 bytes cut every line somewhere."""
    monkeypatch.setattr(can_log, "BLOCK", block)
    log = can_logs.messages(n=120)
    path = can_logs.write(tmp_path / "log.csv", FORMS[form](log))
    found = can_log.read(path)
    first = 1 if form.startswith("HCRL") else 2
    same(found.messages, dataclasses.replace(log, line=np.arange(first, first + len(log))))
    assert found.faults.count == 0
    assert found.ids == "hex"
    assert found.notes == ("ids were read as hex numbers, as they look; if that is wrong, say ids='hex' or 'decimal'",)


@pytest.mark.parametrize("form", ["can-train-and-test", "HCRL without header", "eight columns, decimal"])
@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_a_stream_gives_the_same_messages(form, chunk):
    log = can_logs.messages(n=60)
    text = FORMS[form](log)
    payload = "decimal" if "decimal" in form else "auto"
    lines = text.splitlines(keepends=chunk == 7)
    parts = list(can_log.stream(iter(lines), ids="hex", payload=payload, chunk=chunk))
    same(Messages.joined(parts), log, "line")
    assert max(map(len, parts)) <= chunk


def test_a_stream_waits_for_no_more_than_a_chunk():
    log = can_logs.messages(n=50)
    asked = []

    def growing():
        for line in can_logs.plain(log).splitlines():
            asked.append(line)
            yield line

    stream = can_log.stream(growing(), ids="hex", chunk=10)
    assert len(next(stream)) == 9  # and the header
    assert len(asked) == 10


def test_a_stream_tells_of_bad_lines_as_they_come():
    lines = can_logs.plain(can_logs.messages(n=30)).splitlines()
    lines[5] = "yesterday,1A0,00,0"
    lines[25] = "7,1A0,0,0"
    told = []
    found = Messages.joined(list(can_log.stream(lines, chunk=10, told=told.append)))
    assert len(found) == 28
    assert [fault.first for fault in told] == [
        ("standard input, line 6: expected a time in seconds, found 'yesterday'",),
        ("standard input, line 26: expected a payload of whole bytes (an even number of hex digits), found '0'",),
    ]
    with pytest.raises(ConfigError, match="standard input, line 6"):
        list(can_log.stream(lines, strict=True))
    for nothing, what in ([], "an empty file"), (lines[:1], "a header alone"):
        with pytest.raises(ConfigError, match=f"standard input: expected a header and messages below it, found {what}"):
            list(can_log.stream(nothing))


def test_parquet_and_csv_agree(tmp_path):
    log = can_logs.messages(n=100)
    found = can_log.read(can_logs.parquet(tmp_path / "log.parquet", log))
    same(found.messages, dataclasses.replace(log, line=np.arange(1, 101)))
    assert (found.ids, found.notes) == ("number", ())


@pytest.mark.parametrize(
    "columns",
    [
        {"id": None, "arbitration_id": [f"{i:03x}" for i in can_logs.messages(n=50).id]},
        {"label": None, "attack": can_logs.messages(n=50).label == 1},
        {"label": None, "attack": ["RT"[y] for y in can_logs.messages(n=50).label]},
        {"timestamp": [f"{t:.6f}" for t in can_logs.messages(n=50).time]},
        {"timestamp": np.round(can_logs.messages(n=50).time * 1e6).astype("datetime64[us]")},
        {
            "data_field": None,
            **{
                f"data{k}": [int(d[k]) if k < n else None for d, n in zip(log.data, log.length, strict=True)]
                for log in [can_logs.messages(n=50)]
                for k in range(8)
            },
        },
    ],
    ids=["hex ids", "bool", "words", "text times", "timestamps", "eight columns"],
)
def test_columns_of_parquet_may_be_of_other_types(columns, tmp_path):
    log = can_logs.messages(n=50)
    same(can_log.read(can_logs.parquet(tmp_path / "log.parquet", log, **columns)).messages, log, "line")


def test_a_log_need_not_be_labelled(tmp_path):
    log = can_logs.messages(n=20, labelled=False)
    text = "\n".join(",".join(line.split(",")[:3]) for line in can_logs.plain(log).splitlines())
    same(can_log.read(can_logs.write(tmp_path / "log.csv", text)).messages, log)
    same(can_log.read(can_logs.parquet(tmp_path / "log.parquet", log, label=None)).messages, log, "line")


BAD = {  # the line, and why it is bad
    "1.5,1A0,0G,0": "expected a payload of hex digits, found '0G'",
    "1.5,1A0,012,0": "expected a payload of whole bytes (an even number of hex digits), found '012'",
    "1.5,1A0,000102030405060708,0": "expected a payload of at most 8 bytes, found '000102030405060708'",
    "1.5,1A0,00": "expected 4 fields, found 3",
    "1.5": "expected 4 fields, found 1",
    "1.5,1A0,00,0,9": "expected 4 fields, found 5",
    "1.5,xyz,00,0": "expected an id, found 'xyz'",
    "1.5,,00,0": "expected an id, found ''",
    "1.5,0x,00,0": "expected an id, found '0x'",
    "1.5,3FFFFFFF,00,0": "expected an id of at most 29 bits as a hex number, found 3FFFFFFF",
    "noon,1A0,00,0": "expected a time in seconds, found 'noon'",
    ",1A0,00,0": "expected a time in seconds, found ''",
    "1.5.2,1A0,00,0": "expected a time in seconds, found '1.5.2'",
    "nan,1A0,00,0": "expected a time in seconds, found 'nan'",
    "1_000,1A0,00,0": "expected a time in seconds, found '1_000'",
    "1.5,1A0,00,2": "expected a label (0 or 1, R or T, normal or attack), found '2'",
    "1.5,1A0,00,": "expected a label (0 or 1, R or T, normal or attack), found ''",
    "1.5,1A0,00,perhaps a little attack, or then again none": "expected 4 fields, found 5",
    f"1.5,1A0,00,{'perhaps ' * 9}": "expected a label (0 or 1, R or T, normal or attack), found "
    "'perhaps perhaps perhaps perhaps perha...'",
    "\x00\xff": "expected 4 fields, found 1",
    "\u0661,1A0,00,\u0660": "expected a label",  # digits, but of another script; Python takes the time
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_skipped_counted_and_told(line, tmp_path):
    log = can_logs.messages(n=200)
    lines = can_logs.plain(log).splitlines()
    lines.insert(7, line)
    path = can_logs.write(tmp_path / "log.csv", "\n".join(lines))
    found = can_log.read(path)
    same(found.messages, log, "line")
    assert found.messages.line.tolist() == [*range(2, 8), *range(9, 203)]
    assert found.faults.count == 1
    (told,) = found.faults.first
    assert told.startswith(f"{path}, line 8: {BAD[line]}")
    assert any(note.startswith(f"{path}: 1 lines skipped:\n  {told}") for note in found.notes)
    with pytest.raises(ConfigError, match=r"log\.csv, line 8: .*; mend it, or leave strict out"):
        can_log.read(path, strict=True)


def test_the_first_few_of_many_bad_lines_are_told(tmp_path):
    lines = can_logs.plain(can_logs.messages(n=300)).splitlines()
    for at in range(50, 250, 2):
        lines[at] = lines[at].replace(",", ",~", 1)
    found = can_log.read(can_logs.write(tmp_path / "log.csv", "\n".join(lines)))
    assert (found.faults.count, len(found.messages)) == (100, 200)
    assert [text.split(": ")[0].split("line ")[1] for text in found.faults.first] == ["51", "53", "55", "57", "59"]
    assert "and 95 more" in str(found.faults)


def test_blank_lines_are_no_messages(tmp_path):
    log = can_logs.messages(n=10)
    lines = can_logs.plain(log).splitlines()
    text = "\n\n" + lines[0] + "\n\n" + "\n  \n".join(lines[1:]) + "\n\n\n"
    found = can_log.read(can_logs.write(tmp_path / "log.csv", text))
    same(found.messages, log, "line")
    assert found.messages.line.tolist() == list(range(5, 25, 2))
    assert found.faults.count == 0


HCRL_BAD = {
    "1.5,01a0,2,00,R": "expected 6 fields, found 5",
    "1.5,01a0,9,00,R": "expected 12 fields, found 5",
    "1.5,01a0,2,00,zz,R": "expected byte 2 of the payload as a number from 0 to 255, found 'zz'",
    "1.5,01a0,2,00,1ff,R": "expected bytes from 0 to 255 as hex numbers",
    "1.5,01a0,2,,01,R": "expected nothing after the payload's end (1 bytes or less), found '01'",
    "1.5,01a0,1,00,Q": "expected a label",
}


@pytest.mark.parametrize("line", HCRL_BAD)
def test_bad_lines_of_the_form_without_header(line, tmp_path):
    log = can_logs.messages(n=40)
    lines = hcrl(log).splitlines()
    lines.insert(3, line)
    path = can_logs.write(tmp_path / "log.csv", "\n".join(lines))
    found = can_log.read(path)
    same(found.messages, log, "line")
    assert found.faults.first[0].startswith(f"{path}, line 4: {HCRL_BAD[line]}")


def test_bad_rows_of_parquet(tmp_path):
    log = can_logs.messages(n=40)
    time, ids, labels = log.time.copy(), log.id.tolist(), log.label.tolist()
    time[3], ids[5], labels[7] = np.nan, None, 4
    path = can_logs.parquet(tmp_path / "log.parquet", log, timestamp=time, id=ids, label=labels)
    found = can_log.read(path)
    same(found.messages, log[np.delete(np.arange(40), [3, 5, 7])], "line")
    assert [text.removeprefix(f"{path}, row ").split(":")[0] for text in found.faults.first] == ["4", "6", "8"]


REFUSED = {
    "": "an empty file",
    "\n \n": "an empty file",
    "timestamp,id,data,label\n": "a header alone",
    "timestamp,id,data,label": "a header alone",
    "timestamp,id,label\n1,2,3\n": "no payload column: expected one of data_field, data, payload, or eight such as",
    "id,data\n1,2\n": "no time column: expected one of timestamp, time",
    "when,what\n1,2\n": "found the columns when, what",
    "1,2,3,4\n": None,  # HCRL's form asks for another number of fields: no line can be read
    "1.5,2A,30,4\n": "line 1: expected a header with names of columns, or HCRL's form",
    "time,id,data,label\n1,2,3,4\n": "expected messages, found none that can be read",
}


@pytest.mark.parametrize("text", REFUSED)
def test_logs_that_are_refused(text, tmp_path):
    path = can_logs.write(tmp_path / "log.csv", text)
    with pytest.raises(ConfigError) as error:
        can_log.read(path)
    assert str(path) in str(error.value)
    assert (REFUSED[text] or "expected 7 fields, found 4") in str(error.value)


def test_all_missing_columns_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError) as error:
        can_log.read(can_logs.write(tmp_path / "log.csv", "attack\n0\n"))
    assert [what in str(error.value) for what in ("no time", "no id", "no payload")] == [True] * 3


def test_parquet_that_is_refused(tmp_path):
    log = can_logs.messages(n=10)
    with pytest.raises(ConfigError, match="cannot be read"):
        can_log.read(can_logs.write(tmp_path / "a.parquet", "no parquet at all"))
    with pytest.raises(ConfigError, match="no id column"):
        can_log.read(can_logs.parquet(tmp_path / "b.parquet", log, id=None))
    with pytest.raises(ConfigError, match="column 'id': expected whole numbers or text, found double"):
        can_log.read(can_logs.parquet(tmp_path / "c.parquet", log, id=log.id + 0.5))
    with pytest.raises(ConfigError, match="column 'data_field': expected text, found int64"):
        can_log.read(can_logs.parquet(tmp_path / "d.parquet", log, data_field=log.id))
    with pytest.raises(ConfigError, match="columns without rows"):
        can_log.read(can_logs.parquet(tmp_path / "e.parquet", log[:0]))
    with pytest.raises(ConfigError, match="no such file"):
        can_log.read(tmp_path / "f.parquet")


def test_ids_beyond_63_bits_are_refused(tmp_path):
    ids = np.full(300, 2**63, np.uint64)
    path = can_logs.parquet(tmp_path / "x.parquet", can_logs.messages(), id=ids)
    with pytest.raises(ConfigError, match=r"x.parquet: column 'id': expected whole numbers of at most 63 bits"):
        can_log.read(path)


def test_a_file_without_lines_is_refused_before_it_is_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(can_log, "BLOCK", 1000)
    path = can_logs.write(tmp_path / "x.csv", b"7" * 50_000)
    with pytest.raises(ConfigError, match=r"x.csv: expected lines, found 2,000 bytes without an end of line"):
        can_log.read(path)


def test_without_pyarrow_parquet_names_the_extra(tmp_path, monkeypatch):
    path = can_logs.parquet(tmp_path / "log.parquet", can_logs.messages(n=10))
    csv = can_logs.write(tmp_path / "log.csv", can_logs.plain(can_logs.messages(n=10)))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert len(can_log.read(csv).messages) == 10
    with pytest.raises(ConfigError, match=r"pip install 'kdjax\[parquet\]'"):
        can_log.read(path)


def test_time_running_backwards_is_told_and_the_order_stays(tmp_path):
    log = can_logs.messages(n=30)
    order = np.r_[0:10, 8:20, 18:30]
    path = can_logs.write(tmp_path / "log.csv", can_logs.plain(log[order]))
    found = can_log.read(path)
    same(found.messages, log[order], "line")
    assert found.notes[1] == (f"{path}: time runs backwards 2 times, first at line 12; the order of the file stays")


# -- hex or decimal --------------------------------------------------------------------------------------------------


def ids(tmp_path, *found: str, name: str = "log.csv", **options) -> can_log.Log:
    text = "time,id,data,attack\n" + "".join(f"{k},{i},00,0\n" for k, i in enumerate(found))
    return can_log.read(can_logs.write(tmp_path / name, text), **options)


@pytest.mark.parametrize(
    ("written", "base", "read"),
    [
        (["316", "18f", "43f"], "hex", [0x316, 0x18F, 0x43F]),
        (["316", "0x43"], "hex", [0x316, 0x43]),
        (["0316", "0130"], "hex", [0x316, 0x130]),
        (["790", "1680", "2"], "decimal", [790, 1680, 2]),
        (["7", "0", "3"], "hex", [7, 0, 3]),  # either way
        (["18FEF100", "12345678"], "hex", [0x18FEF100, 0x12345678]),
    ],
)
def test_how_ids_are_written_shows_in_their_digits(written, base, read, tmp_path):
    found = ids(tmp_path, *written)
    assert (found.ids, found.messages.id.tolist()) == (base, read)
    assert base in found.notes[0]


def test_ids_that_could_be_either_are_not_guessed(tmp_path):
    for written in (["316", "130"], ["12345678"], ["316"] * 500 + ["31a"]):
        with pytest.raises(ConfigError, match="its ids may be hex or decimal numbers, nothing tells; say ids='hex'"):
            ids(tmp_path, *written)
    assert ids(tmp_path, "316", ids="hex").messages.id.tolist() == [0x316]
    assert ids(tmp_path, "316", "00130", ids="decimal").messages.id.tolist() == [316, 130]


def test_a_log_that_is_watched_names_the_flags_of_the_command():
    lines = ["time,id,data", *(f"{i},316,00" for i in range(5))]
    with pytest.raises(ConfigError, match="nothing tells; say --ids=hex or --ids=decimal"):
        next(can_log.stream(lines))


def test_a_letter_among_decimal_ids_is_a_bad_line(tmp_path):
    found = ids(tmp_path, "316", "31a", "1680", ids="decimal")
    assert found.messages.id.tolist() == [316, 1680]
    assert "line 3: expected an id of at most 29 bits as a decimal number, found 31A" in found.faults.first[0]


def test_logs_read_together_agree_on_their_ids(tmp_path):
    for name, written in {"a.csv": ["316"], "b.csv": ["18f"], "c.csv": ["1680"]}.items():
        can_logs.write(tmp_path / name, "time,id,data\n" + "".join(f"0,{i},00\n" for i in written))
    a, b, c = (tmp_path / f"{name}.csv" for name in "abc")
    assert [log.messages.id[0] for log in can_log.read_all([a, b])] == [0x316, 0x18F]
    assert [log.messages.id[0] for log in can_log.read_all([a, c])] == [316, 1680]
    with pytest.raises(ConfigError, match=r"the ids of .*b\.csv look hex, those of .*c\.csv decimal"):
        can_log.read_all([a, b, c])


def test_bytes_that_could_be_either_are_not_guessed(tmp_path):
    log = can_logs.messages(n=30)
    log = dataclasses.replace(log, data=np.where(log.data > 0, 10 + log.data % 80, 0).astype(np.uint8))
    path = can_logs.write(tmp_path / "log.csv", eight(log, f"time,id,{EIGHT},attack", "d"))
    with pytest.raises(ConfigError, match="its bytes may be hex or decimal numbers, nothing tells; say payload="):
        can_log.read(path)
    same(can_log.read(path, payload="decimal").messages, log, "line")
    assert can_log.read(path, payload="hex").messages.data.max() == 0x89
    with pytest.raises(ConfigError) as error:
        can_log.read(path, payload="octal", ids="dec")
    assert "payload: no 'octal'" in str(error.value)
    assert "ids: no 'dec'; did you mean 'decimal'" in str(error.value)


# -- fields ----------------------------------------------------------------------------------------------------------


def text_of(*fields: str) -> can_fields.Text:
    joined = "".join(fields).encode()
    ends = np.cumsum([len(f.encode()) for f in fields]) + can_fields.MARGIN
    pad = bytes(can_fields.MARGIN)
    return can_fields.Text(np.frombuffer(pad + joined + pad, np.uint8), np.r_[can_fields.MARGIN, ends[:-1]], ends)


def test_times_are_pythons_floats():
    rng = np.random.default_rng(0)
    written = [f"{10 ** rng.uniform(-3, 10):.{rng.integers(0, 10)}f}" for _ in range(2000)]
    written += ["0", ".5", "5.", "1e3", "-2.5", "+1", "9007199254740993", "1234567890123456789012345.5", "0.1", "-0"]
    written += ["1.7976931348623157e308", "123456789.123456789", "9" * 19, "1" * 18]
    found, good = can_fields.times(text_of(*written))
    assert good.all()
    np.testing.assert_array_equal(found, [float(w) for w in written])
    bad = ["", ".", "1.2.3", "1e", "inf", "1e999", "--1", "1 2", "0x10", "1,5"]
    assert not can_fields.times(text_of(*bad))[1].any()


def test_digits_are_pythons_integers():
    rng = np.random.default_rng(0)
    numbers = [int(v) for v in 2 ** rng.uniform(0, 36, 500)]
    for form in ("x", "X", "09x", "#x"):
        found = can_fields.digits(text_of(*(format(n, form) for n in numbers)), widest=10)
        assert found.good.all()
        assert found.packed.tolist() == numbers
    decimal = can_fields.digits(text_of(*map(str, numbers)), widest=12)
    assert not decimal.letters.any()
    np.testing.assert_array_equal(can_fields.decimal(decimal.packed), numbers)
    bad = can_fields.digits(text_of("", "g", "1 2", "-1", "1.0", "12345678901", "0x"), widest=10)
    assert not bad.good.any()


def test_a_million_lines_take_no_loop(tmp_path):
    """Far below what a loop over lines could do, with room for a busy machine."""
    text = can_logs.plain(can_logs.messages(n=20_000))
    header, _, body = text.partition("\n")
    path = can_logs.write(tmp_path / "log.csv", header + "\n" + body * 5)
    begin = time.process_time()
    found = can_log.read(path)
    took = time.process_time() - begin
    assert len(found.messages) == 100_000
    assert found.notes[1].endswith("first at line 20002; the order of the file stays")
    assert took < 0.8


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_candump_writes_logs_without_a_header(tmp_path, end):
    log = can_logs.messages(labelled=False)
    path = can_logs.write(tmp_path / "drive.log", can_logs.candump(log).replace("\n", end))
    found = can_log.read(path)
    same(found.messages, log, "line")
    assert (found.messages.line[0], found.ids) == (1, "hex")
    parts = list(can_log.stream(can_logs.candump(log).splitlines(), chunk=7))
    same(Messages.joined(parts), log, "line")
    assert can_log.is_log(path)
    assert not can_log.is_log(can_logs.write(tmp_path / "run.log", "step 1\n"))


def test_what_candump_writes_beside_data_frames_is_told(tmp_path):
    lines = ["044#2A366C2BBA", "1A0##1AABBCC", "1A0#R", "12345678#00", "zz#00", "1A0#"]
    text = "".join(f"(1436509052.249713) vcan0 {line}\n" for line in lines)
    found = can_log.read(can_logs.write(tmp_path / "drive.log", text))
    assert found.messages.id.tolist() == [0x44, 0x12345678, 0x1A0]
    assert found.messages.length.tolist() == [5, 1, 0]
    assert found.messages.data[0].tolist() == [0x2A, 0x36, 0x6C, 0x2B, 0xBA, 0, 0, 0]
    assert found.messages.time[0] == 1436509052.249713
    assert [fault.partition(": ")[2] for fault in found.faults.first] == [
        "expected 4 fields, found 5",
        "expected a payload of hex digits, found 'R'",
        "expected an id, found 'zz'",
    ]
