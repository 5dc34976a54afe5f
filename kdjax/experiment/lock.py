"""One command at a time is at work in a working directory."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kdjax.config import ConfigError

LOCK = ".lock"
_held: set[Path] = set()  # by this process, to which its own locks are no obstacle


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Refused while another holds it, who is told of. However a process ends, what it held is free."""
    fresh = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / LOCK
    if path in _held:
        raise _refusal(folder, "this very process")
    file = _locked(path, folder)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):  # folders made for nothing
            for empty in fresh:
                empty.rmdir()


def _locked(path: Path, folder: Path) -> IO[str]:
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - whoever holds the lock closes it
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read()
            file.close()
            raise _refusal(folder, holder or "a process that has just begun") from None
        except OSError:
            return file  # a file system without locks
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            break
        file.close()  # whoever held it has just removed it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()
    return file


def _refusal(folder: Path, holder: str) -> ConfigError:
    return ConfigError(
        f"{folder}: expected to be alone in this working directory, found another command at work: {holder}; wait "
        "until it ends, end it, or choose another --workdir"
    )
