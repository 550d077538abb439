"""What a hostile, slow or forgetful client costs, and what it hears."""

import os
import socket

import pytest

from tests.fakes import FakeClock
from tests.imap.appliance import QUICK, Appliance, Settings, Wire, client_context, running


@pytest.fixture
def timed(tmp_path):
    """A server whose clock stands still until told."""
    with running(tmp_path, clock=FakeClock(), settings=Settings(max_connections=4)) as started:
        yield started


def pass_time(appliance: Appliance, seconds: float) -> None:
    async def sweep() -> None:
        appliance.clock.advance(seconds)
        appliance.imap.sweep()

    appliance.call(sweep())


def test_client_that_does_not_log_in_is_sent_away(timed):
    client = Wire(timed)
    pass_time(timed, 59)
    client.ok("NOOP")
    pass_time(timed, 2)  # talking does not help
    assert client.line().startswith(b"* BYE Autologout")
    assert client.line() == b""


def test_idle_client_is_sent_away_after_the_timeout_and_not_before(timed):
    inbox = timed.new_inbox()
    client = Wire(timed).login(inbox)
    client.ok("SELECT INBOX")
    pass_time(timed, 1700)
    client.ok("NOOP")
    client.send(b"i IDLE\r\n")
    client.line()
    pass_time(timed, 1700)
    timed.deliver(inbox, b"Subject: x\r\n\r\n")
    assert client.line() == b"* 1 EXISTS"
    client.line()
    pass_time(timed, 200)
    assert client.line().startswith(b"* BYE Autologout")


def test_connections_beyond_the_limit_are_told_and_closed(timed):
    clients = [Wire(timed, tls=False) for _ in range(4)]
    refused = Wire(timed, tls=False)
    assert refused.greeting.startswith(b"* BYE [UNAVAILABLE]")
    clients.pop().command("LOGOUT")
    while timed.imap.connections > 3:
        clients[0].ok("NOOP")
    assert Wire(timed, tls=False).greeting.startswith(b"* OK")


def test_sessions_of_one_inbox_are_limited(tmp_path):
    with running(tmp_path, settings=Settings(max_connections_per_inbox=2)) as started:
        inbox = started.new_inbox()
        kept = [Wire(started).login(inbox) for _ in range(2)]
        third = Wire(started)
        assert third.command(f"LOGIN {inbox.address} {inbox.password}")[1].startswith(b"NO [LIMIT]")
        kept.pop().ok("LOGOUT")
        while started.imap.connections > 2:
            kept[0].ok("NOOP")
        third.login(inbox)


def test_client_that_never_reads_costs_bounded_memory_and_nobody_else_time(timed):
    inbox = timed.new_inbox()
    client = Wire(timed).login(inbox)
    body = b"Subject: large\r\n\r\n" + b"x" * 76 + b"\r\n"
    client.append("INBOX", body + (b"y" * 76 + b"\r\n") * 40_000)  # 3 MB
    greedy = Wire(timed).login(inbox)
    greedy.ok("EXAMINE INBOX")
    greedy.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.send(b"".join(b"g%d FETCH 1 BODY[]\r\n" % number for number in range(20)))

    async def is_stuck() -> bool:
        return any(not connection.is_writable for connection in timed.imap._connections)

    while not timed.call(is_stuck()):
        client.ok("NOOP")
    for _ in range(50):
        client.ok("NOOP")

    async def buffered() -> int:
        return max(connection.transport.get_write_buffer_size() for connection in timed.imap._connections)

    assert timed.call(buffered()) < 2 * 1024 * 1024
    pass_time(timed, 301)
    while timed.imap.connections > 1:
        client.ok("NOOP")


def test_commands_pipelined_without_end_are_read_only_as_they_are_done(timed):
    inbox = timed.new_inbox()
    client = Wire(timed).login(inbox)
    count = 20_000
    client.socket.settimeout(20)
    sent = b"".join(b"n%d NOOP\r\n" % number for number in range(count))
    import threading

    sender = threading.Thread(target=client.send, args=(sent,))
    sender.start()
    for number in range(count):
        assert client.line() == b"n%d OK Done" % number
    sender.join()


def test_lost_connection_in_a_large_append_leaves_no_spool_file(timed):
    inbox = timed.new_inbox()
    client = Wire(timed).login(inbox)
    client.send(b"a APPEND INBOX {1000000+}\r\n" + b"x" * 500_000)
    watcher = Wire(timed).login(inbox)
    spools = [path for path in timed.directory.rglob("spool") if path.is_dir()]
    assert spools
    while not any(os.listdir(path) for path in spools):
        watcher.ok("NOOP")
    client.socket.close()
    while any(os.listdir(path) for path in spools):
        watcher.ok("NOOP")
    assert b"* 0 EXISTS" in watcher.ok("SELECT INBOX")


def test_drain_says_goodbye(tmp_path):
    with running(tmp_path) as started:
        inbox = started.new_inbox()
        client = Wire(started).login(inbox)
        idle = Wire(started).login(inbox)
        idle.ok("SELECT INBOX")
        idle.send(b"i IDLE\r\n")
        idle.line()
        started.call(started.imap.drain(1.0))
        assert client.line() == b"* BYE Server is shutting down"
        assert idle.line() == b"* BYE Server is shutting down"
        assert client.line() == idle.line() == b""
        with pytest.raises(OSError):
            socket.create_connection((started.host, started.tls_port), timeout=5)


def test_garbage_instead_of_a_handshake_ends_the_connection(timed):
    raw = socket.create_connection((timed.host, timed.tls_port), timeout=10)
    raw.sendall(b"a LOGIN x y\r\n" * 10)
    received = b""
    while True:
        try:
            data = raw.recv(4096)
        except ConnectionError:
            break
        if not data:
            break
        received += data
    assert b"OK" not in received
    Wire(timed).ok("NOOP")


def test_client_may_vanish_in_any_moment(timed):
    inbox = timed.new_inbox()
    for sent in (
        b"",
        b"a",
        b"a APPEND INBOX {10+}\r\n12",
        b"a FETCH 1 BODY[]\r\n",
        b"a IDLE\r\n",
        b"a AUTHENTICATE PLAIN\r\n",
    ):
        client = Wire(timed).login(inbox)
        client.ok("SELECT INBOX")
        client.send(sent)
        client.close()
    survivor = Wire(timed).login(inbox)
    while timed.imap.connections > 1:
        survivor.ok("NOOP")


def test_tls_context_is_asked_for_each_connection(timed):
    assert QUICK.handshake_seconds > 0
    with socket.create_connection((timed.host, timed.tls_port), timeout=10) as raw:
        secure = client_context().wrap_socket(raw)
        assert secure.version() in ("TLSv1.2", "TLSv1.3")
