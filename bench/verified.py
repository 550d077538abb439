"""The load of the cell 2k-c10-reuse-verified: a signed message, and a daemon that checks all it can.

SPF, DKIM, DMARC and 20 rules beside the shipped ones; the DNS answers on loopback and the resolver is
warm. smtp-source sends the message from its file, to Postfix the same one.
"""

import asyncio
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dkim

from bench.appliance import ROOT, Appliance
from bench.judging import mixed
from server.sender_auth.keys import make_key
from tests.nameserver import Nameserver

OCTETS = 2048  # of the body, as the cells of smtp-source's own messages have
PATIENCE_SECONDS = 30
SELECTOR = "bench"
DOMAIN = "source.test"
TTL_SECONDS = 86_400


@contextmanager
def checking(place: Path, *, port: int) -> Iterator[tuple[Appliance, Path]]:
    """A started daemon that verifies, and the file with the message that passes all its checks."""
    place.mkdir(mode=0o755)
    pem, key = make_key("rsa-sha256")
    letter = place / "letter"
    letter.write_bytes(_signed(pem).replace(b"\r\n", b"\n"))
    zone = {
        DOMAIN: {"TXT": ["v=spf1 ip4:127.0.0.1 -all"], "A": ["127.0.0.1"], "MX": [f"10 {DOMAIN}"]},
        f"_dmarc.{DOMAIN}": {"TXT": ["v=DMARC1; p=reject"]},
        f"{SELECTOR}._domainkey.{DOMAIN}": {"TXT": [key]},
    }
    with _answering(zone) as address:
        appliance = Appliance(
            place / "mailagents",
            port=port,
            authentication=f'enabled = true\n\n[dns]\nservers = ["{address}"]',
            policies=_rules(place / "policies"),
        )
        appliance.start()
        try:
            _prove(appliance, letter)
            yield appliance, letter
        finally:
            appliance.stop()


def _signed(pem: bytes) -> bytes:
    line = b"All work and no play makes a dull benchmark, but this one has a signature.\r\n"
    head = (
        f"From: Sender <sender@{DOMAIN}>\r\nTo: user@bench.test\r\nSubject: A message that is checked\r\n"
        f"Date: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@{DOMAIN}>\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"
    )
    body = (line * (OCTETS // len(line) + 1))[: OCTETS - 2] + b"\r\n"
    content = head.encode() + body
    forms = (b"relaxed", b"relaxed")
    made: bytes = dkim.sign(content, SELECTOR.encode(), DOMAIN.encode(), pem, canonicalize=forms)
    return made + content


def _rules(directory: Path) -> Path:
    """The shipped rules and 20 more, as bench/policy has them, with their lists."""
    directory.mkdir()
    for path in (ROOT / "conf" / "policies").glob("*.toml"):
        (directory / path.name).write_text(path.read_text())
    (directory / "80-bench.toml").write_text(mixed(20))
    (directory / "domains.txt").write_text("".join(f"d{number}.example\n" for number in range(10_000)))
    (directory / "nets.txt").write_text("".join(f"10.{n >> 8}.{n & 255}.0/24\n" for n in range(10_000)))
    return directory


@contextmanager
def _answering(zone: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """A name server in a thread of its own; gives its address."""
    loop, server = asyncio.new_event_loop(), Nameserver(zone, ttl=TTL_SECONDS, negative_ttl=TTL_SECONDS)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(PATIENCE_SECONDS)
    try:
        yield server.address
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(PATIENCE_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_SECONDS)


def _prove(appliance: Appliance, letter: Path) -> None:
    """Send one message and see that all was checked and passed; it warms the resolver too."""
    command = ["smtp-source", "-F", str(letter), "-f", f"sender@{DOMAIN}", "-t", "user@bench.test"]
    subprocess.run([*command, f"127.0.0.1:{appliance.port}"], check=True, stdout=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := list(appliance.new.iterdir()) if appliance.new.exists() else []):
        if time.monotonic() > end:
            raise TimeoutError("the signed message did not arrive")
        time.sleep(0.02)
    content = found[0].read_bytes()
    for wanted in (b"spf=pass", b"dkim=pass", b"dmarc=pass"):
        if wanted not in content:
            raise RuntimeError(f"{wanted.decode()} is not in what arrived:\n{content[:2000].decode()}")
    found[0].unlink()
