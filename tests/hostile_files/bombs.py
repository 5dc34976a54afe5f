"""Pickles and archives written by hand, that are little and say they are much."""

import struct
import zipfile
from pathlib import Path
from random import Random

# -- operations that leave one thing on the stack --------------------------------------------------------------------


def _doubling(kind: bytes) -> bytes:
    """A list of two lists of two lists ..., each there once."""
    made = b"]r" + struct.pack("<I", 900_000)
    for i in range(60):
        again = b"j" + struct.pack("<I", 900_000 + i)
        made += b"0(" + again * 2 + kind + b"r" + struct.pack("<I", 900_001 + i)
    return made


def _storage(numbers: int, key: bytes = b"0") -> bytes:
    text = lambda word: b"X" + struct.pack("<I", len(word)) + word  # noqa: E731
    told = b"\x8a\x08" + struct.pack("<q", numbers)
    return b"((" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(key) + text(b"cpu") + told + b"tQ"


def _tensor(sizes: tuple[int, ...], strides: tuple[int, ...], numbers: int) -> bytes:
    ints = lambda many: b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in many) + b"t"  # noqa: E731
    end = b"\x89" + b"ccollections\nOrderedDict\n)R"
    body = _storage(numbers)[1:] + b"K\x00" + ints(sizes) + ints(strides) + end
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + body + b"tR"


BOMBS: tuple[bytes, ...] = (
    _doubling(b"l"),
    _doubling(b"t"),
    b"}" + _doubling(b"t") + b"Ns",  # as a key
    b"N" * 3 + b"0" * 2 + b"r" + struct.pack("<I", 2**31),
    b"r" + struct.pack("<I", 2**32 - 1),
    b"]" * 100_000 + b"a" * 99_999,
    b"cbuiltins\nbytearray\n\x8a\x05" + struct.pack("<Q", 10**10)[:5] + b"\x85R",
    b"\x8b" + struct.pack("<I", 4_000_000) + b"\x7f" * 4_000_000,
    b"N" + b"0N" * 300_000,
    b"X" + struct.pack("<I", 2**31 - 1) + b"x",
    b"cos\nsystem\n(X\x01\x00\x00\x00:tR",
    b"(X\x01\x00\x00\x00:ios\nsystem\n",
    b"\x82\x01",
    b"j" + struct.pack("<I", 77),
    _tensor((10**9, 10), (0, 0), 1),
    _tensor((2**40, 2**40), (1, 1), 2**62),
    _tensor((3,), (10**12,), 5),
    _tensor((-1, 3), (1, 1), 5),
    _tensor((1,) * 100, (1,) * 100, 5),
    b"tttt",
    b"0" * 9,
    b"",
)


# -- (random, path): into a zip archive of torch.save ----------------------------------------------------------------


def pickle(random: Random, path: Path) -> None:
    """Something in the pickle beside the weights, or in the place of one of them."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in files if name.endswith("data.pkl"))
    bomb, key = random.choice(BOMBS), random.choice([b"bomb", b"state_dict", b"optimizer"])
    put = b"X" + struct.pack("<I", len(key)) + key + bomb + b"s"
    files[name] = random.choice([files[name][:-1] + put + b".", b"\x80\x02" + bomb + b".", files[name][:-1] + bomb])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def bomb(random: Random, path: Path) -> None:
    """An archive that unpacks to far more than it is."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        root = archive.namelist()[0].partition("/")[0]
        name = random.choice([f"{root}/data/{random.choice([0, 999])}", f"{root}/data.pkl", f"{root}/byteorder"])
        archive.writestr(name, bytes(random.choice([10**6, 10**8])))
