"""A client that costs next to nothing: sends a command over TLS, reads to its tagged line, keeps little."""

import base64
import socket
import ssl
import time

BUFFER_OCTETS = 1 << 20
KEPT_OCTETS = 64 * 1024


class Refused(Exception):
    """The server said NO or BAD."""


class ImapClient:
    """One connection; commands are bytes without tag and CRLF."""

    def __init__(self, port: int, *, login: str, password: str) -> None:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        plain = socket.create_connection(("127.0.0.1", port), timeout=120)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain)
        self._buffer = memoryview(bytearray(BUFFER_OCTETS))
        self._count = 0
        self.octets = 0
        self._until(b"* OK")
        credentials = base64.b64encode(f"\0{login}\0{password}".encode())
        self.command(b"AUTHENTICATE PLAIN " + credentials)

    def _until(self, start: bytes) -> bytes:
        """Read to a whole line that begins so; returns the end of what was read."""
        tail = b""
        self.octets = 0
        while True:
            count = self.socket.recv_into(self._buffer)
            if not count:
                raise ConnectionError("the server closed")
            self.octets += count
            tail = (tail + self._buffer[:count])[-KEPT_OCTETS:]
            if tail.endswith(b"\r\n"):
                last = tail.rfind(b"\r\n", 0, -2)
                if tail.startswith(start, last + 2 if last >= 0 else 0):
                    return tail

    def begin(self, command: bytes) -> bytes:
        """Send a command; returns its tag."""
        self._count += 1
        tag = b"t%d" % self._count
        self.socket.sendall(b"%b %b\r\n" % (tag, command))
        return tag

    def finish(self, tag: bytes) -> bytes:
        """Read to the end of a command; returns the end of its answer; Refused where it failed."""
        answer = self._until(tag + b" ")
        last = answer[answer.rfind(b"\r\n", 0, -2) + 2 if answer.count(b"\r\n") > 1 else 0 :]
        if not last.startswith(tag + b" OK"):
            raise Refused(last.decode("ascii", "replace"))
        return answer

    def command(self, command: bytes) -> bytes:
        """Send a command and read to its end."""
        return self.finish(self.begin(command))

    def timed(self, command: bytes) -> float:
        """Return the milliseconds from the command to its end."""
        begin = time.perf_counter()
        self.finish(self.begin(command))
        return (time.perf_counter() - begin) * 1000

    def append(self, messages: list[bytes], *, folder: bytes = b"Other") -> float:
        """Append messages in one command with literals that wait for nobody; returns milliseconds."""
        parts = [b"APPEND " + folder]
        for message in messages:
            parts += [b" {%d+}\r\n" % len(message), message]
        return self.timed(b"".join(parts))

    def idle(self) -> None:
        """Begin to idle."""
        self.begin(b"IDLE")
        self._until(b"+ ")

    def settle(self) -> None:
        """Read what came meanwhile."""
        self.socket.settimeout(0.001)
        try:
            while self.socket.recv(4096):
                pass
        except TimeoutError:
            pass
        self.socket.settimeout(120)

    def close(self) -> None:
        """End the connection without a word."""
        self.socket.close()
