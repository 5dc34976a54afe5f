"""The processes of one run end together: where one is gone, the others say so and end, instead of waiting for it."""

import ctypes
import os
import signal
import socket
import sys
import threading
from typing import Any

import numpy as np

from kdjax.config import ConfigError

GRACE = 3.0  # seconds in which a process may still say itself why it ends
SOON = 0.5  # ... where another has gone: a little later the libraries that talk to it would abort the process
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
DONE = b"."
CODE = 2


def refuse(address: str, processes: int | None, process: int | None) -> None:
    """Raises where a process cannot join as it is asked to."""
    if processes is None or process is None:
        raise ConfigError("--coordinator=HOST:PORT needs --processes=N and --process=I (0 on that host)")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator={address}: expected HOST:PORT, such as node1:1234, or auto on a cluster")
    if process >= processes:
        raise ConfigError(f"--process={process}: expected 0 to {processes - 1}, of --processes={processes}")


class Together:
    """While entered, each process holds a connection to the first one, which breaks when either of them ends."""

    def __init__(self) -> None:
        self._lost, self._left = threading.Event(), False
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "Together":
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() == 1:
            return self
        server = socket.create_server(("", 0)) if jax.process_index() == 0 else None
        mine = f"{socket.gethostname()}:{server.getsockname()[1]}" if server else ""
        place = bytes(multihost_utils.broadcast_one_to_all(np.frombuffer(mine.encode().ljust(256, b"\0"), np.uint8)))
        host, _, port = place.rstrip(b"\0").decode().rpartition(":")
        if server:
            self._sockets = [server.accept()[0] for _ in range(jax.process_count() - 1)]
            server.close()
        else:
            self._sockets = [socket.create_connection((host, int(port)))]
        for one in self._sockets:
            threading.Thread(target=self._watch, args=(one,), daemon=True).start()
        # JAX's library aborts a process as soon as it sees that the first one is gone, and takes no callback for it.
        self._on_abort = HANDLER(self._aborted)
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, HANDLER)
        libc.signal(signal.SIGABRT, self._on_abort)
        return self

    def _aborted(self, _: int) -> None:
        """In the thread that aborts: in words where the reason is that another process is gone."""
        if self._lost.wait(1.0):
            self._end()
        os._exit(128 + signal.SIGABRT)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        from kdjax.train.signals import Stopped

        if self._sockets and isinstance(error, Exception) and self._lost.wait(GRACE / 2):
            self._end()  # what the error says is that the other one is gone
        self._left = True
        orderly = error is None or isinstance(error, Stopped)
        for one in self._sockets:
            if orderly:
                one.sendall(DONE)
            one.close()
        if self._sockets and not orderly:  # the others will not come to where all say good-bye
            timer = threading.Timer(2 * GRACE, os._exit, (CODE,))
            timer.daemon = True
            timer.start()

    def _watch(self, one: socket.socket) -> None:
        try:
            got = one.recv(1)
        except OSError:
            got = b""
        if got != DONE and not self._left:
            self._lost.set()
            threading.Event().wait(SOON)
            if not self._left:
                self._end()

    def _end(self) -> None:
        print(
            "\nerror: another process of this run has ended, and so this one ends too; what was saved is whole: run "
            "the same commands again to go on",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(CODE)
