"""A TLS client that shows its hands: every record can be sent whole, broken, or not at all."""

import contextlib
import socket
import ssl


class TlsWire:
    """TLS over a connected socket, pumped by hand. `raw` is the socket below it, for what is no TLS."""

    def __init__(self, raw: socket.socket, *, maximum: ssl.TLSVersion | None = None) -> None:
        self.raw = raw
        self._arriving, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if maximum is not None:
            context.maximum_version = maximum
        self._tls = context.wrap_bio(self._arriving, self._leaving, server_hostname="mx.example.org")

    def hello(self) -> bytes:
        """The octets of the ClientHello, not sent."""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._leaving.read()

    def shake_hands(self, first: bytes = b"") -> None:
        """Complete the handshake; the first octets leave together with its end."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.raw.sendall(self._leaving.read())
                self._arriving.write(self.raw.recv(65536))
            else:
                if first:
                    self._tls.write(first)
                self.raw.sendall(self._leaving.read())
                return

    def records(self, octets: bytes) -> bytes:
        """Octets as TLS records, not sent."""
        self._tls.write(octets)
        return self._leaving.read()

    def send(self, octets: bytes) -> None:
        self.raw.sendall(self.records(octets))

    def close_notify(self) -> bytes:
        """The record that ends what the client says, not sent."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        return self._leaving.read()

    def hear(self, mark: bytes) -> bytes:
        """Read until a mark comes."""
        heard = b""
        while mark not in heard:
            octets = self.read()
            assert octets, heard
            heard += octets
        return heard

    def read(self) -> bytes:
        """Read some; b'' when the server has ended."""
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                octets = self.raw.recv(65536)
                if not octets:
                    return b""
                self._arriving.write(octets)
            except ssl.SSLZeroReturnError:
                return b""


def rest_of(raw: socket.socket) -> bytes:
    """All that still comes below TLS."""
    heard = b""
    try:
        while octets := raw.recv(65536):
            heard += octets
    except ConnectionError:
        pass
    return heard
