"""How the processes of a run meet, and one end for all of them.

Before JAX starts, every process reports to a roll call that process 0 holds at the port after
JAX's, so that one which is missing is named (JAX itself would abort without saying who). The
connections stay open: a process that fails says so with its exit code, one that is killed falls
silent, and in both cases the others end too, at once, instead of waiting in a collective for ever.
"""

import contextlib
import json
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ctssl_jax.errors import ConfigError, DeviceError, UserError
from ctssl_jax.hosts.cluster import Cluster

LINE_LIMIT = 4096  # bytes of a message
RETRY_S = 0.2


class Relay(threading.Thread):
    """Process 0's end of all connections: holds the roll call, then passes on who has ended."""

    def __init__(self, cluster: Cluster, timeout: float):
        super().__init__(name="roll call", daemon=True)
        self._cluster, self._timeout = cluster, timeout
        self._deadline = time.monotonic() + timeout
        family = socket.AF_INET6 if ":" in cluster.host else socket.AF_INET
        self._listener = socket.create_server(
            (cluster.host if cluster.local else "", cluster.port + 1), family=family, backlog=4096
        )
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._received: dict[socket.socket, bytes] = {}
        self._present: dict[int, socket.socket] = {}
        self._leaving: set[int] = set()
        self._complete = self._over = False

    def run(self) -> None:
        """Until all have left."""
        while not self._complete or self._present:
            left = None if self._complete else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                self._tell_missing()
                break
            for key, _ in self._selector.select(left):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    self._received[connection] = b""
                    self._selector.register(connection, selectors.EVENT_READ)
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
        for connection in (self._listener, *self._received):
            connection.close()
        self._selector.close()

    def _tell_missing(self) -> None:
        everyone = range(self._cluster.processes)
        missing = [number for number in everyone if number not in self._present]
        self._tell_all({"missing": missing, "timeout": self._timeout})

    def _read(self, connection: socket.socket) -> None:
        try:
            chunk = connection.recv(LINE_LIMIT)
        except OSError:
            chunk = b""
        *lines, rest = (self._received[connection] + chunk).split(b"\n")
        self._received[connection] = rest
        for line in lines:
            self._heard(connection, _parse(line))
        if not chunk or len(rest) > LINE_LIMIT:
            self._gone(connection)

    def _heard(self, connection: socket.socket, message: dict[str, Any]) -> None:
        number = self._number(connection)
        if number is None and "processes" in message:
            self._register(connection, message)
        elif number is not None and "leaving" in message:
            self._leaving.add(number)
        elif number is not None and "ended" in message:
            self._tell_end(number, message["ended"])

    def _register(self, connection: socket.socket, message: dict[str, Any]) -> None:
        number, everyone = message.get("process"), self._cluster.processes
        if message["processes"] != everyone or self._complete:
            _send(connection, {"refused": everyone})
        elif number in self._present:
            _send(connection, {"taken": number})
        elif isinstance(number, int) and 0 <= number < everyone:
            self._present[number] = connection
            if len(self._present) == everyone:
                self._complete = True
                self._tell_all({"all_here": True})

    def _gone(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._received[connection]
        connection.close()
        number = self._number(connection)
        if number is None:
            return
        del self._present[number]
        if self._complete and number not in self._leaving:
            self._tell_end(number, None)

    def _tell_end(self, number: int, code: int | None) -> None:
        if not self._over:  # the others' ends follow from the first
            self._over = True
            self._tell_all({"ended": code, "process": number})

    def _number(self, connection: socket.socket) -> int | None:
        return next((n for n, other in self._present.items() if other is connection), None)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for number, connection in self._present.items():
            if number != message.get("process"):
                _send(connection, message)


class Lifeline:
    """This process's connection to the others; `join` makes it."""

    def __init__(self, cluster: Cluster, timeout: float):
        self.cluster = cluster
        self._connection = _connect(cluster, timeout)
        self._stream = self._connection.makefile("rb")
        self._leaving = False
        _send(self._connection, {"process": cluster.process, "processes": cluster.processes})
        answer = _parse(self._stream.readline(LINE_LIMIT))
        if "all_here" not in answer:
            self._close()
            raise _absent(cluster, answer)

    def guard(self, on_loss: Callable[[int], None]) -> None:
        """From now on calls `on_loss(exit code)`, in a thread, when another process is gone."""
        thread = threading.Thread(target=self._listen, args=(on_loss,), name="lifeline")
        thread.daemon = True
        thread.start()

    def _listen(self, on_loss: Callable[[int], None]) -> None:
        while True:
            try:
                line = self._stream.readline(LINE_LIMIT)
            except OSError:
                line = b""
            if not line and self._leaving:
                return self._close()
            message = _parse(line) if line else {"ended": None, "process": 0}
            if "ended" in message:
                number, code = message["process"], message["ended"]
                how = "is gone" if code is None else f"ended with exit code {code}"
                who = f"process {self.cluster.process}/{self.cluster.processes}"
                print(
                    f"ctssl_jax [{who}]: process {number} {how}: this one ends too",
                    file=sys.stderr,
                    flush=True,
                )
                self._close()
                on_loss(DeviceError.exit_code if code is None else code)
                return

    def _close(self) -> None:
        self._stream.close()
        self._connection.close()

    def leave(self) -> None:
        """Says that this process ends because its work is done."""
        self._leaving = True
        _send(self._connection, {"leaving": True})

    def fail(self, code: int) -> None:
        """Tells the others that this process ends with `code`, and gives them time to hear it."""
        self._leaving = True
        _send(self._connection, {"ended": code})
        time.sleep(0.5)


def _connect(cluster: Cluster, timeout: float) -> socket.socket:
    deadline = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection((cluster.host, cluster.port + 1), timeout=5)
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return connection
        except OSError:
            if time.monotonic() > deadline:
                raise DeviceError(
                    f"process 0 did not answer at {cluster.host}:{cluster.port + 1} within "
                    f"{timeout:g} s: see whether it runs and whether that port is open"
                ) from None
            time.sleep(RETRY_S)


def _absent(cluster: Cluster, answer: Mapping[str, Any]) -> UserError:
    if "refused" in answer:
        return ConfigError(
            f"--processes={cluster.processes} here but {answer['refused']} at process 0, or the "
            "run has begun already: start all processes anew with the same number"
        )
    if "taken" in answer:
        return ConfigError(f"--process={cluster.process} is there twice: number them from 0 on")
    if "missing" in answer:
        numbers = ", ".join(map(str, answer["missing"][:20]))
        more = "" if len(answer["missing"]) <= 20 else f" and {len(answer['missing']) - 20} more"
        return DeviceError(
            f"process {numbers}{more} of {cluster.processes} (from 0) did not start within "
            f"{answer['timeout']:g} s: see the logs there, then start all processes again"
        )
    return DeviceError("process 0 ended before all processes had started: see its log")


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # whoever is gone is noticed by the reader
        connection.sendall(json.dumps(message).encode() + b"\n")


def _parse(line: bytes) -> dict[str, Any]:
    """A message; nothing for what is none, as a stranger at the port might send."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
