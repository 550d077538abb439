"""The control socket: the command line's way into the running daemon.

One JSON object a line in each direction over a Unix socket that only the
daemon's user can open: {"operation", "arguments"} asks, {"result"} or
{"error": {"code", "text"}} answers. Serves nothing that lacks an operation.
Where several processes serve one data directory, each has a socket of its own
beside the configured name, and any of them answers for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from twisted.internet import defer, protocol
from twisted.protocols.basic import LineOnlyReceiver

from server.operations import OperationFailed
from storage.ownership import is_instance

LINE_LIMIT = 1 << 20
ANSWER_LIMIT = 64 << 20
Ask = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]

log = structlog.get_logger("control")


class ControlProtocol(LineOnlyReceiver):
    """One client of the control socket; answers in the order of the questions."""

    delimiter = b"\n"
    MAX_LENGTH = LINE_LIMIT

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._turn: defer.Deferred[None] = defer.succeed(None)

    def lineReceived(self, line: bytes) -> None:
        """Queue one question behind those before it."""
        self._turn.addCallback(lambda _: defer.ensureDeferred(self._answer(line)))

    async def _answer(self, line: bytes) -> None:
        try:
            question = json.loads(line)
            name, arguments = question["operation"], question.get("arguments", {})
            if not isinstance(name, str) or not isinstance(arguments, dict):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._send(_error("bad_question", "a question is {operation, arguments} in JSON"))
            return
        try:
            result = await _as_deferred(self._ask(name, arguments))
        except OperationFailed as error:
            self._send(_error(error.code, str(error)))
        except Exception:
            log.exception("operation failed", operation=name)
            self._send(_error("internal_error", "the daemon could not do this; its log says why"))
        else:
            self._send({"result": result})

    def _send(self, answer: Mapping[str, Any]) -> None:
        self.sendLine(json.dumps(answer).encode())


def _as_deferred(awaitable: Awaitable[dict[str, Any]]) -> defer.Deferred[dict[str, Any]]:
    return defer.Deferred.fromFuture(asyncio.ensure_future(awaitable))


def _error(code: str, text: str) -> dict[str, Any]:
    return {"error": {"code": code, "text": text}}


class ControlFactory(protocol.Factory):
    """Makes the protocol for each client."""

    noisy = False

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    def buildProtocol(self, addr: object) -> ControlProtocol:
        """Return the protocol of one client."""
        made = ControlProtocol(self._ask)
        made.factory = self
        return made


class ControlListener:
    """The listening socket, made with mode 0600 and removed at the end."""

    def __init__(self, path: Path, ask: Ask, reactor: Any) -> None:
        self._path = path
        self._reactor = reactor
        self._factory = ControlFactory(ask)
        self._port: Any = None

    def start(self) -> None:
        """Listen; a socket left by a dead daemon is replaced."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        self._port = self._reactor.listenUNIX(str(self._path), self._factory, mode=0o600)

    async def stop(self) -> None:
        """Stop listening."""
        if self._port is not None:
            closed = defer.maybeDeferred(self._port.stopListening)
            # Its directory may have gone before it, as the service manager has it.
            with contextlib.suppress(FileNotFoundError):
                await closed.asFuture(asyncio.get_running_loop())
            self._port = None


class DaemonDown(Exception):
    """No daemon answers at the control socket."""


def socket_of(path: Path, instance: str) -> Path:
    """Return the socket of one process among several."""
    return path.with_name(f"{path.name}.{instance}")


def sockets(path: Path) -> list[Path]:
    """Return where a process may answer: the configured socket, and those of processes among several."""
    try:
        beside = [one for one in path.parent.iterdir() if _is_beside(one.name, path.name)]
    except OSError:
        beside = []
    return [path, *sorted(beside)]


def _is_beside(name: str, configured: str) -> bool:
    stem, dot, instance = name.rpartition(".")
    return bool(dot) and stem == configured and is_instance(instance)


def ask_any(
    path: Path, operation: str, arguments: Mapping[str, Any], *, timeout_seconds: float = 300.0
) -> dict[str, Any]:
    """Ask whichever process answers; as ask_daemon."""
    for place in sockets(path):
        try:
            return ask_daemon(place, operation, arguments, timeout_seconds=timeout_seconds)
        except DaemonDown:
            continue
    raise DaemonDown(str(path))


def ask_all(
    path: Path, operation: str, arguments: Mapping[str, Any], *, timeout_seconds: float = 300.0
) -> list[dict[str, Any]]:
    """Ask every process; their answers. DaemonDown where there is none, else as ask_daemon."""
    answers = []
    for place in sockets(path):
        with contextlib.suppress(DaemonDown):
            answers.append(ask_daemon(place, operation, arguments, timeout_seconds=timeout_seconds))
    if not answers:
        raise DaemonDown(str(path))
    return answers


def ask_daemon(
    path: Path, operation: str, arguments: Mapping[str, Any], *, timeout_seconds: float = 300.0
) -> dict[str, Any]:
    """Ask the running daemon; blocking.

    Raises DaemonDown where nobody listens, OperationFailed with the daemon's words.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            raise DaemonDown(str(path)) from None
        except PermissionError:
            raise OperationFailed("not_permitted", f"{path}: only the daemon's user may ask it") from None
        question = {"operation": operation, "arguments": dict(arguments)}
        connection.sendall(json.dumps(question).encode() + b"\n")
        answer = _read_line(connection)
    if "error" in answer:
        raise OperationFailed(answer["error"]["code"], answer["error"]["text"])
    result: dict[str, Any] = answer["result"]
    return result


def _read_line(connection: socket.socket) -> dict[str, Any]:
    received = bytearray()
    while not received.endswith(b"\n"):
        chunk = connection.recv(65536)
        if not chunk or len(received) > ANSWER_LIMIT:
            raise OperationFailed("no_answer", "the daemon closed the control socket without an answer")
        received += chunk
    answer: dict[str, Any] = json.loads(received)
    return answer
