"""IMAP and the ends of TLS: what comes with the handshake counts, what comes behind TLS is nothing."""

import socket
import ssl

import pytest

from tests.imap.appliance import Appliance, Inbox
from tests.imap.test_session import Wire
from tests.tlswire import TlsWire, rest_of

EVIL = b"\r\nz LOGOUT\r\nz SELECT INBOX\r\n"


def connected(appliance: Appliance) -> socket.socket:
    raw = socket.create_connection(("127.0.0.1", appliance.plain_port), timeout=10)
    assert raw.recv(1000).startswith(b"* OK")
    raw.sendall(b"a STARTTLS\r\n")
    assert raw.recv(1000).startswith(b"a OK")
    return raw


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_command_that_comes_with_the_end_of_the_handshake_is_done(appliance: Appliance, maximum):
    """A client under TLS 1.3 may write right behind its Finished, in one segment."""
    for _ in range(20):
        with connected(appliance) as raw:
            wire = TlsWire(raw, maximum=maximum)
            if maximum is ssl.TLSVersion.TLSv1_3:
                wire.shake_hands(b"b NOOP\r\n")
            else:
                wire.shake_hands()
                wire.send(b"b NOOP\r\n")
            assert wire.hear(b"b OK")


@pytest.mark.parametrize("begun", ["idle", "command", "literal", "append", "authenticate"])
@pytest.mark.parametrize("ending", ["close_notify", "plain", "forged", "alert", "cut"])
def test_nothing_is_read_after_the_end_of_tls(appliance: Appliance, inbox: Inbox, begun: str, ending: str):
    with connected(appliance) as raw:
        wire = TlsWire(raw)
        wire.shake_hands()
        if begun == "authenticate":
            wire.send(b"b AUTHENTICATE PLAIN\r\n")
            wire.hear(b"+")
        else:
            wire.send(f"b LOGIN {inbox.address} {inbox.password}\r\n".encode())
            wire.hear(b"b OK")
        octets, mark = {
            "idle": (b"c NOOP\r\n", b"c OK"),
            "command": (b"c NOOP\r\nd CREATE ha", b"c OK"),
            "literal": (b"c CREATE {100}\r\n", b"+ "),
            "append": (b"c APPEND INBOX {100}\r\n", b"+ "),
            "authenticate": (b"", b""),
        }[begun]
        if octets:
            wire.send(octets)
            wire.hear(mark)
        if begun == "append":
            wire.send(b"Subject: half\r\n\r\nbody")
        if ending == "close_notify":
            raw.sendall(wire.close_notify() + b"x" * 100 + EVIL)
        elif ending == "plain":
            raw.sendall(b"x" * 100 + EVIL)
        elif ending == "forged":
            record = bytearray(wire.records(b"x" * 100 + EVIL))
            record[-1] ^= 1
            raw.sendall(bytes(record) + EVIL)
        elif ending == "alert":
            raw.sendall(b"\x15\x03\x03\x00\x02\x02\x28" + EVIL)
        else:
            raw.shutdown(socket.SHUT_WR)
        heard = rest_of(raw)
        assert b"z OK" not in heard and b"z BAD" not in heard
    client = Wire(appliance).login(inbox)
    assert client.ok("STATUS INBOX (MESSAGES)")[0].endswith(b"(MESSAGES 0)")
    listed = b"|".join(client.command('LIST "" *')[0])
    assert b" ha" not in listed and b"xxx" not in listed


@pytest.mark.parametrize("door", ["plain", "tls"])
@pytest.mark.parametrize("endless", ["hello", "records", "plain"])
def test_an_endless_handshake_is_cut_off_early(appliance: Appliance, door: str, endless: str):
    raw = (
        connected(appliance)
        if door == "plain"
        else socket.create_connection(("127.0.0.1", appliance.tls_port), timeout=10)
    )
    first = b"\x01\xff\xff\xff\x03\x03" + b"\0" * (0x4000 - 6)
    with raw:
        sent = 0
        try:
            while sent < 64 << 20:
                if endless == "plain":
                    sent += raw.send(b"x" * 0x4000)
                else:
                    body = first if endless == "hello" and not sent else b"\0" * 0x4000
                    raw.sendall(b"\x16\x03\x01\x40\x00" + body)
                    sent += 0x4005
        except OSError:
            pass
        # What the kernel's buffers take is not the server's.
        assert sent < 32 << 20
    Wire(appliance).ok("NOOP")
