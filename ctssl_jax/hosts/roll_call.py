"""How the processes of a run meet, and one end for all of them.

Before JAX starts, every process reports to a roll call that process 0 holds at the port after
JAX's, so that one which is missing is named (JAX itself would abort without saying who). The
connections stay open: a process that fails says so with its exit code, one that is killed falls
silent, and in both cases the others end too, at once, instead of waiting in a collective for ever.

Others may come to the port. Who does not show the run's token within `HELLO_S` is hung up on; what
is no message is ignored; nothing waits for anybody without a limit.
"""

import contextlib
import errno
import hmac
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
HELLO_S = 10.0  # that a connection may take to say who it is
ANSWER_S = 5.0  # that process 0 may take to tell who is missing
RETRY_S = 0.2


class Relay(threading.Thread):
    """Process 0's end of all connections: holds the roll call, then passes on who has ended."""

    def __init__(self, cluster: Cluster, timeout: float):
        super().__init__(name="roll call", daemon=True)
        self._cluster, self._timeout = cluster, timeout
        self._deadline = time.monotonic() + timeout
        self._listener = _listener(cluster)
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._received: dict[socket.socket, bytes] = {}
        self._since: dict[socket.socket, float] = {}  # of those that have not said who they are
        self._present: dict[int, socket.socket] = {}
        self._leaving: set[int] = set()
        self._complete = self._over = False

    @property
    def address(self) -> str | None:
        """That it listens at; None where it listens at all of this machine."""
        host = self._listener.getsockname()[0]
        return None if host in ("0.0.0.0", "::") else host

    def run(self) -> None:
        """Until all have left."""
        while not self._complete or self._present:
            left = None if self._complete else self._deadline - time.monotonic()
            if left is not None and left <= 0:
                self._tell_missing()
                break
            waits = [HELLO_S] * bool(self._since) + ([] if left is None else [left])
            for key, _ in self._selector.select(min(waits, default=None)):
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(key.fileobj)  # type: ignore[arg-type]
            self._drop_silent()
        for connection in (self._listener, *self._received):
            connection.close()
        self._selector.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # gone again, or too many are there
            time.sleep(RETRY_S)
            return
        connection.setblocking(False)  # who does not read is not waited for
        self._received[connection] = b""
        self._since[connection] = time.monotonic()
        self._selector.register(connection, selectors.EVENT_READ)

    def _drop_silent(self) -> None:
        limit = time.monotonic() - HELLO_S
        for connection in [c for c, since in self._since.items() if since < limit]:
            self._gone(connection)

    def _tell_missing(self) -> None:
        everyone = range(self._cluster.processes)
        missing = [number for number in everyone if number not in self._present]
        self._tell_all({"missing": missing, "timeout": self._timeout})

    def _read(self, connection: socket.socket) -> None:
        try:
            chunk = connection.recv(LINE_LIMIT)
        except BlockingIOError:
            return
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
        elif number is not None and type(message.get("ended")) is int:
            self._tell_end(number, message["ended"])

    def _register(self, connection: socket.socket, message: dict[str, Any]) -> None:
        number, everyone = message.get("process"), self._cluster.processes
        if type(number) is not int or not _has_token(message, self._cluster):
            return
        if message["processes"] != everyone or self._complete:
            _send(connection, {"refused": everyone})
        elif number in self._present:
            _send(connection, {"taken": number})
        elif 0 <= number < everyone:
            self._present[number] = connection
            self._since.pop(connection, None)
            if len(self._present) == everyone:
                self._complete = True
                self._tell_all({"all_here": True, "token": self._cluster.token})

    def _gone(self, connection: socket.socket) -> None:
        if connection not in self._received:
            return
        self._selector.unregister(connection)
        del self._received[connection]
        self._since.pop(connection, None)
        number = self._number(connection)
        connection.close()
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
        deadline = time.monotonic() + timeout
        self._connection = _connect(cluster, timeout, deadline)
        self._stream = self._connection.makefile("rb")
        self._leaving = False
        hello = {"process": cluster.process, "processes": cluster.processes, "token": cluster.token}
        _send(self._connection, hello)
        answer = self._answer(deadline + ANSWER_S, timeout)
        if "all_here" not in answer or not _has_token(answer, cluster):
            self._close()
            raise _absent(cluster, answer)
        self._connection.settimeout(None)

    def _answer(self, deadline: float, timeout: float) -> dict[str, Any]:
        """What process 0 says once all are there, or some are not."""
        self._connection.settimeout(max(deadline - time.monotonic(), 0.1))
        try:
            return _parse(self._stream.readline(LINE_LIMIT))
        except TimeoutError:
            self._close()
            raise DeviceError(
                f"process 0 at {self.cluster.host}:{self.cluster.port + 1} did not say within "
                f"{timeout:g} s who is there: see whether it is of this run, and its log"
            ) from None
        except OSError:
            return {}

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
            number, code = message.get("process"), message.get("ended")
            if "ended" in message and type(number) is int and type(code) in (int, type(None)):
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


def _listener(cluster: Cluster) -> socket.socket:
    """Listens at the coordinator's own address; at all of this machine where it has another.

    The latter where addresses are translated, as for a service in front of a machine.
    """
    port = cluster.port + 1
    try:
        return _serve(cluster.host, port)
    except OSError as error:
        if cluster.local or error.errno == errno.EADDRINUSE:
            raise
        return _serve("", port)


def _serve(host: str, port: int) -> socket.socket:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, *_, address = found[0]
    return socket.create_server(address[:2], family=family, backlog=4096)


def _has_token(message: Mapping[str, Any], cluster: Cluster) -> bool:
    """Whether a message is of this run."""
    token = str(message.get("token", ""))
    return hmac.compare_digest(token.encode(errors="replace"), cluster.token.encode())


def _connect(cluster: Cluster, timeout: float, deadline: float) -> socket.socket:
    while True:
        try:
            wait = min(5.0, max(deadline - time.monotonic(), 0.1))
            connection = socket.create_connection((cluster.host, cluster.port + 1), timeout=wait)
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
    # Whoever is gone, or takes nothing, is noticed by the reader.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _parse(line: bytes) -> dict[str, Any]:
    """A message; nothing for what is none, as a stranger at the port might send."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
