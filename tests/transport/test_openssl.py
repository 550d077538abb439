"""Our verdicts on chains under DANE beside OpenSSL's own, which serves as judge: one server, two clients."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from server.transport.dane import find_fault, usable
from server.transport.security import Level, Security, Tlsa
from tests.transport.authority import DAY, NOW, Holder, make, server_context
from tests.transport.test_dane import HOST, LEAF, MIDDLE, ROOT, faulty_chains, tlsa

OPENSSL = shutil.which("openssl") or ""
pytestmark = [pytest.mark.skipif(not OPENSSL, reason="no openssl"), pytest.mark.interop]

RSA = make("rsa root", ca=True, key=rsa.generate_private_key(65537, 2048))
OLD = datetime(2020, 1, 1, tzinfo=UTC)


def named(*names: str) -> Holder:
    return make("leaf", by=ROOT, names=names)


def signed(**dates: datetime) -> Holder:
    return make("leaf", by=ROOT, names=[HOST], **dates)  # type: ignore[arg-type]


def limited(*, permitted: str = "", excluded: str = "") -> Holder:
    trees = x509.NameConstraints(
        [x509.DNSName(permitted)] if permitted else None, [x509.DNSName(excluded)] if excluded else None
    )
    return make("leaf", by=make("m", by=ROOT, ca=True, extensions=[(trees, True)]), names=[HOST])


# Name, what the server shows, certificates left out of that, and the records.
CASES: list[tuple[str, Holder, tuple[Holder, ...], tuple[Tlsa, ...]]] = [
    *(
        (f"ee {selector} {matching}", LEAF, (), (tlsa(3, selector, matching, LEAF),))
        for selector in (0, 1)
        for matching in (0, 1, 2)
    ),
    *(
        (f"ta {selector} {matching}", LEAF, (), (tlsa(2, selector, matching, ROOT),))
        for selector in (0, 1)
        for matching in (0, 1, 2)
    ),
    ("ta whole, not sent", LEAF, (ROOT,), (tlsa(2, 0, 0, ROOT),)),
    ("ta key, not sent", LEAF, (ROOT,), (tlsa(2, 1, 0, ROOT),)),
    ("ta digest, not sent", LEAF, (ROOT,), (tlsa(2, 0, 1, ROOT),)),
    ("ta in the middle", LEAF, (ROOT,), (tlsa(2, 1, 1, MIDDLE),)),
    ("ta of the leaf itself", LEAF, (), (tlsa(2, 0, 1, LEAF),)),
    ("ta self-signed leaf", ROOT, (), (tlsa(2, 0, 1, ROOT),)),
    ("wrong ee", LEAF, (), (tlsa(3, 1, 1, ROOT),)),
    ("wrong ta", LEAF, (), (tlsa(2, 1, 1, RSA),)),
    ("one of many", LEAF, (), (tlsa(3, 1, 1, ROOT), tlsa(2, 1, 1, RSA), tlsa(3, 0, 2, LEAF))),
    ("expired ee", make("old", end=OLD + DAY, begin=OLD), (), ()),
    ("expired leaf below ta", signed(begin=OLD, end=OLD + DAY), (), (tlsa(2, 0, 1, ROOT),)),
    ("not yet valid below ta", signed(begin=NOW + 300 * DAY), (), (tlsa(2, 0, 1, ROOT),)),
    ("wrong name below ta", named("other.example"), (), (tlsa(2, 0, 1, ROOT),)),
    ("wildcard", named("*.example.com"), (), (tlsa(2, 0, 1, ROOT),)),
    ("wildcard too high", named("*.com"), (), (tlsa(2, 0, 1, ROOT),)),
    ("no names below ta", make("leaf", by=ROOT), (), (tlsa(2, 0, 1, ROOT),)),
    ("rsa", make("leaf", by=RSA, names=[HOST]), (), (tlsa(2, 1, 1, RSA),)),
    ("constraint met", limited(permitted="example.com"), (), (tlsa(2, 0, 1, ROOT),)),
    ("constraint broken", limited(permitted="example.net"), (), (tlsa(2, 0, 1, ROOT),)),
    ("constraint excludes another", limited(excluded="example.net"), (), (tlsa(2, 0, 1, ROOT),)),
    ("constraint excludes", limited(excluded="example.com"), (), (tlsa(2, 0, 1, ROOT),)),
    *((name, leaf, (), (tlsa(2, 0, 1, anchor),)) for name, leaf, anchor in faulty_chains()),
]  # fmt: skip


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[int]:
    """A TLS server for one client."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                accepted, _ = listener.accept()
                with context.wrap_socket(accepted, server_side=True) as connection:
                    connection.recv(1)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


def judged(context: ssl.SSLContext, records: tuple[Tlsa, ...]) -> bool:
    """What OpenSSL's client says of a server under DANE."""
    with serving(context) as port:
        command = [OPENSSL, "s_client", "-connect", f"127.0.0.1:{port}", "-dane_tlsa_domain", HOST]
        for one in records:
            command += ["-dane_tlsa_rrdata", f"{one.usage} {one.selector} {one.matching} {one.data.hex()}"]
        # RFC 7671 5.1: names do not count for DANE-EE, as SMTP has it.
        command += ["-dane_ee_no_namechecks", "-verify_return_error", "-brief"]
        done = subprocess.run(command, input=b"", capture_output=True, timeout=20, check=False)
    return done.returncode == 0 and b"Verification: OK" in done.stderr + done.stdout


@pytest.mark.parametrize(("case", "holder", "without", "records"), CASES, ids=[one[0] for one in CASES])
def test_openssl_says_the_same(
    tmp_path: Path, case: str, holder: Holder, without: tuple[Holder, ...], records: tuple[Tlsa, ...]
) -> None:
    records = records or (tlsa(3, 1, 1, holder),)
    shown = [holder.der, *(one.der for one in holder.above if one not in without)]
    security = Security(Level.DANE, (HOST,), usable(records))
    ours = find_fault(shown, security, now=datetime.now(UTC))
    context = server_context(tmp_path, holder, without=without)
    assert judged(context, records) == (ours is None), f"{case}: we say {ours}"
