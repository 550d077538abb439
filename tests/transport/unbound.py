"""Debian's unbound over zones that we sign: a validating resolver whose word DANE stands on."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dns.dnssec
import dns.message
import dns.name
import dns.query
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.zone
from cryptography.hazmat.primitives.asymmetric import ec

UNBOUND = shutil.which("unbound") or "/usr/sbin/unbound"
Zone = Mapping[str, Mapping[str, Sequence[str]]]


def _text(origin: str, zone: Zone) -> str:
    lines = [
        f"$ORIGIN {origin}.",
        "$TTL 60",
        f"@ IN SOA ns.{origin}. root.{origin}. 1 3600 600 86400 60",
        f"@ IN NS ns.{origin}.",
        f"ns.{origin}. IN A 127.0.0.1",
    ]
    for name, records in zone.items():
        for kind, values in records.items():
            for value in values:
                quoted = " ".join(f'"{value[i : i + 255]}"' for i in range(0, len(value), 255))
                lines.append(f"{name}. IN {kind} {quoted if kind == 'TXT' else value}")
    return "\n".join(lines) + "\n"


def write_zone(path: Path, origin: str, zone: Zone, *, bogus: Sequence[str] = ()) -> str:
    """Write a signed zone; returns its trust anchor. bogus: names whose signatures are broken."""
    made = dns.zone.from_text(_text(origin, zone), origin=origin, relativize=False)
    key = ec.generate_private_key(ec.SECP256R1())
    public = dns.dnssec.make_dnskey(key.public_key(), dns.dnssec.Algorithm.ECDSAP256SHA256, flags=257)
    now = datetime.now(UTC)
    with made.writer() as transaction:
        dns.dnssec.sign_zone(
            made,
            transaction,
            keys=[(key, public)],
            add_dnskey=True,
            dnskey_ttl=60,
            inception=now - timedelta(days=1),
            expiration=now + timedelta(days=30),
        )
    for name in bogus:
        node = made[dns.name.from_text(name)]
        for rdataset in node.rdatasets:
            if rdataset.rdtype == dns.rdatatype.RRSIG:
                broken = [one.replace(signature=bytes(len(one.signature))) for one in rdataset]
                rdataset.clear()
                for one in broken:
                    rdataset.add(one)
    path.write_text(made.to_text(relativize=False))
    return f"{origin}. DS {dns.dnssec.make_ds(origin + '.', public, 'SHA256').to_text()}"


@contextmanager
def running(
    directory: Path, port: int, signed: Mapping[str, Zone], *, plain: Mapping[str, Zone] | None = None,
    bogus: Sequence[str] = (),
) -> Iterator[str]:  # fmt: skip
    """A resolver over signed zones, by origin, and plain ones; yields its address."""
    directory.mkdir(parents=True, exist_ok=True)
    anchors, zones = [], []
    for origin, zone in signed.items():
        anchors.append(write_zone(directory / f"{origin}.zone", origin, zone, bogus=bogus))
        zones.append(origin)
    for origin, zone in (plain or {}).items():
        (directory / f"{origin}.zone").write_text(_text(origin, zone))
        zones.append(origin)
    configuration = directory / "unbound.conf"
    lines = [
        "server:",
        f"  interface: 127.0.0.1@{port}",
        "  do-daemonize: no",
        '  username: ""',
        '  chroot: ""',
        f'  directory: "{directory}"',
        f'  pidfile: "{directory}/pid"',
        "  use-syslog: no",
        f'  logfile: "{directory}/log"',
        '  module-config: "validator iterator"',
        "  do-not-query-localhost: no",
        '  local-zone: "test." nodefault',
        *(f'  trust-anchor: "{one}"' for one in anchors),
        "remote-control:",
        "  control-enable: no",
    ]
    for origin in zones:
        lines += [
            "auth-zone:",
            f'  name: "{origin}"',
            f'  zonefile: "{directory}/{origin}.zone"',
            "  for-downstream: no",
            "  for-upstream: yes",
            "  fallback-enabled: no",
        ]
    configuration.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([UNBOUND, "-d", "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        _wait(port, zones[0], process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _wait(port: int, origin: str, process: subprocess.Popen[bytes]) -> None:
    query = dns.message.make_query(f"{origin}.", "SOA")
    end = time.monotonic() + 20
    while True:
        try:
            dns.query.tcp(query, "127.0.0.1", port=port, timeout=1)
            return
        except (OSError, EOFError, dns.exception.DNSException):
            assert process.poll() is None and time.monotonic() < end, "unbound does not answer"
            time.sleep(0.05)
