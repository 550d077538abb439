"""A full disk and loads at the edge: what was promised stays, the rest is told to come back."""

import os
import shutil
import smtplib
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN, message, wire
from tests.daemon.running import Daemon, Inbox, until

DISK_OCTETS = 48 << 20


def missing(reason: str) -> None:
    """Skip, unless everything is to be there."""
    if os.environ.get("MAILAGENTS_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 of its own, small enough to fill."""
    if os.geteuid() != 0:
        missing("only root can mount a file system")
    programs = ("mkfs.ext4", "mount", "umount")
    if not all(shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin") for program in programs):
        missing("mkfs.ext4 and mount are not installed")
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_OCTETS)
    # -m 0: without blocks that only root may take, since the daemon runs as root here.
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    mounted = subprocess.run(
        ["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        missing(f"no loop mount here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        # Lazily: a killed daemon's worker may hold it for a moment longer.
        subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, *, leave_octets: int) -> Path:
    """Take the disk's room but so much."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    octets = free.f_bavail * free.f_frsize - leave_octets
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(octets, 4096))
    return filler


def deliver_until_refused(
    daemon: Daemon, octets: int, promised: list[str], *, limit: int
) -> tuple[int, bytes]:
    """Deliver messages of a size until one is refused; the refusal, wherever it came."""
    body = ("z" * 76 + "\r\n") * (octets // 78)
    for _ in range(limit):
        name = f"m{len(promised)}-{octets}"
        with suppress(smtplib.SMTPServerDisconnected), daemon.mx() as client:
            client.ehlo()
            reply = client.mail("stranger@partner.test")
            if reply[0] == 250:
                assert client.rcpt(f"alice@{DOMAIN}")[0] == 250
                reply = client.data(f"Subject: {name}\r\n\r\n{body}".encode())
        if reply[0] != 250:
            return reply
        promised.append(name)
    raise AssertionError(f"{limit} messages were taken and the disk is not full")


@pytest.mark.parametrize("reserve_octets", [4 << 20, 0], ids=["reserve", "to the last block"])
@pytest.mark.parametrize("octets", [3_000, 600_000], ids=["journaled", "spooled"])
def test_a_full_disk_is_452_and_nothing_is_lost(
    template: Path, tmp_path: Path, small_disk: Path, octets: int, reserve_octets: int
) -> None:
    store = {"disk_reserve_octets": reserve_octets, "checkpoint_seconds": 1}
    place = small_disk / "data"
    with Daemon(tmp_path / "daemon", template=template, data=place, store=store) as daemon:
        daemon.start()
        promised: list[str] = []
        filler = fill(small_disk, leave_octets=reserve_octets + (3 << 20))
        for _ in range(2):
            reply = deliver_until_refused(daemon, octets, promised, limit=3000)
            assert (reply[0], reply[1][:5]) == (452, b"4.3.1"), reply
        assert promised
        filler.unlink()
        settled(daemon, promised)
        # With room again, mail is taken again without a restart.
        until(lambda: not _is_refused(daemon, octets, promised), "the daemon does not recover")
        settled(daemon, promised)
        assert daemon.stop() == 0
        daemon.start()
        settled(daemon, promised)
        with daemon.imap(daemon.alice) as client:
            assert int(client.select("INBOX")[1][0] or b"0") == len(promised)


def _is_refused(daemon: Daemon, octets: int, promised: list[str]) -> bool:
    with suppress(AssertionError):
        deliver_until_refused(daemon, octets, promised, limit=1)
        return True
    return False


def settled(daemon: Daemon, promised: list[str]) -> None:
    """Everything promised is in the inbox, once and whole."""

    def found() -> bool:
        return Counter(str(one["Subject"]) for one in daemon.messages(daemon.alice)) == Counter(promised)

    until(found, f"{len(promised)} promised, {len(daemon.files(daemon.alice))} there\n{daemon.log[-5000:]}")
    sizes = {name: int(name.partition("-")[2]) // 78 for name in promised}
    for one in daemon.messages(daemon.alice):
        assert str(one.get_payload()).count("z" * 76) == sizes[str(one["Subject"])]


def test_a_kill_on_a_full_disk_loses_nothing(template: Path, tmp_path: Path, small_disk: Path) -> None:
    place = small_disk / "data"
    with Daemon(
        tmp_path / "daemon", template=template, data=place, store={"checkpoint_seconds": 1}
    ) as daemon:
        daemon.start()
        promised: list[str] = []
        filler = fill(small_disk, leave_octets=2 << 20)
        deliver_until_refused(daemon, 20_000, promised, limit=500)
        daemon.kill()
        filler.unlink()
        daemon.start()
        settled(daemon, promised)


def test_a_full_inbox_is_452_at_rcpt(daemon: Daemon) -> None:
    row = daemon.ask("inbox-add", address=f"small@{DOMAIN}", quota_octets=10_000)
    small = Inbox(row["id"], row["address"], row["password"])
    with daemon.mx() as client:
        client.sendmail("x@partner.test", [small.address], wire(message("Big", "words " * 2000)))
        daemon.find(small, "Big")
        # The file is there before the row that charges the quota.
        until(lambda: not daemon.ask("status")["journal_backlog_octets"] or None, "nothing is left to apply")
        client.mail("x@partner.test")
        code, text = client.rcpt(small.address)
        assert (code, text[:5]) == (452, b"4.2.2")


def test_connections_beyond_the_limit_are_told_so(template: Path, tmp_path: Path) -> None:
    limits = {"max_connections_per_address": 5, "max_message_octets": 70_000}
    with Daemon(tmp_path, template=template, smtp=limits) as daemon:
        daemon.start()
        clients = [daemon.mx() for _ in range(5)]
        with pytest.raises(smtplib.SMTPConnectError) as refused:
            daemon.mx()
        assert refused.value.smtp_code == 421
        clients.pop().quit()
        until(lambda: _can_connect(daemon), "a place that was given up is not free")
        client = clients[0]
        client.ehlo()
        # Told before the content where the client says so, after it where it doesn't.
        assert client.mail("x@partner.test", ["SIZE=70001"])[0] == 552
        client.mail("x@partner.test")
        client.rcpt(f"alice@{DOMAIN}")
        assert client.data(b"Subject: x\r\n\r\n" + b"y" * 70 * 1000 + b"\r\n" * 40)[0] in (552, 550)
        for one in clients:
            one.close()


def _can_connect(daemon: Daemon) -> bool:
    try:
        daemon.mx().quit()
    except smtplib.SMTPConnectError:
        return False
    return True


def test_many_clients_at_once_are_all_served(daemon: Daemon) -> None:
    inbox = daemon.new_inbox()
    replies: list[int] = []

    def client(number: int) -> None:
        with daemon.mx() as connection:
            connection.ehlo()
            for serial in range(5):
                connection.mail("x@partner.test")
                connection.rcpt(inbox.address)
                replies.append(connection.data(wire(message(f"{number} {serial}")))[0])

    threads = [threading.Thread(target=client, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert Counter(replies) == {250: 200}
    until(lambda: len(daemon.files(inbox)) == 200, "not all are there")
