"""ARC: chains that a sealer made, changed ones, and who is believed."""

import asyncio
import base64

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from server.mail.header import HeaderField
from server.sender_auth.arc import MAX_FIELDS, read_chain
from server.sender_auth.results import field
from server.sender_auth.verify import Verifier
from storage.records import Envelope, Peer, Verdict
from tests.fakes import FakeClock
from tests.sender_auth.zone import TIMEOUT, InlineThreads, Zone, ZoneResolver

KEY = rsa.generate_private_key(public_exponent=65537, key_size=1024)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
)
PUBLIC = base64.b64encode(
    KEY.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
).decode()
ZONE: Zone = {"s._domainkey.list.example": {"TXT": [f"v=DKIM1; k=rsa; p={PUBLIC}"]}}
LETTER = (
    b"Authentication-Results: list.example; dmarc=pass header.from=author.example\r\n"
    b"From: a@author.example\r\nTo: b@list.example\r\nSubject: x\r\n"
    b"Date: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@author.example>\r\n\r\nText.\r\n"
)


def sealed(letter: bytes = LETTER, status: str = "") -> bytes:
    """A letter with one more set of list.example on top."""
    if status:
        letter = b"Authentication-Results: list.example; arc=" + status.encode() + b"\r\n" + letter
    made = dkim.arc_sign(letter, b"s", b"list.example", PEM, b"list.example", include_headers=[b"from"])
    assert len(made) == 3
    return b"".join(made) + letter


def verdict(content: bytes, *, zone: Zone = ZONE, believed: tuple[str, ...] = ()) -> Verdict | None:
    verifier = Verifier(
        resolver=ZoneResolver(zone),
        threads=InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        clock=FakeClock(1_700_000_000_000_000),
        hostname="mx.example.net",
        deadline_seconds=20,
        believed_sealers=believed,
    )
    found = asyncio.run(verifier.verify(peer=Peer("192.0.2.1"), envelope=Envelope(None, ()), content=content))
    return next((one for one in found if one.method == "arc"), None)


def test_message_without_a_chain_has_no_verdict() -> None:
    assert verdict(LETTER) is None


def test_whole_chain_passes_and_names_its_sealer() -> None:
    found = verdict(sealed())
    assert found is not None
    assert (found.result, found.domain) == ("pass", "list.example")
    assert b"arc=pass policy.sealer=list.example" in field("mx.example.net", [found])


@pytest.mark.parametrize(("part", "other"), [(b" i=1;", b"\ti=1;"), (b": i=1;", b":i=1;")])
def test_place_of_the_number_in_a_field_does_not_matter(part: bytes, other: bytes) -> None:
    found = verdict(sealed().replace(part, other))
    assert found is not None
    assert found.result == "pass"


def test_second_set_over_the_first_passes() -> None:
    found = verdict(sealed(sealed(), status="pass"))
    assert found is not None
    assert found.result == "pass"


@pytest.mark.parametrize(("part", "other"), [(b"Text.", b"Tex t"), (b"a@author", b"b@author")])
def test_changed_message_fails(part: bytes, other: bytes) -> None:
    found = verdict(sealed().replace(part, other))
    assert found is not None
    assert found.result == "fail"


def test_changed_record_of_results_fails() -> None:
    found = verdict(sealed().replace(b"dmarc=pass", b"dmarc=fail"))
    assert found is not None
    assert found.result == "fail"


def test_key_that_cannot_be_looked_up_fails_and_says_so() -> None:
    found = verdict(sealed(), zone={"s._domainkey.list.example": {TIMEOUT: []}})
    assert found is not None
    assert (found.result, found.reason) == ("fail", "key lookup failed")


def test_sealer_is_believed_only_where_named() -> None:
    believed, other = (
        verdict(sealed(), believed=("List.example",)),
        verdict(sealed(), believed=("x.example",)),
    )
    assert believed is not None
    assert other is not None
    assert believed.properties["policy.believed"] == "dmarc"
    assert "policy.believed" not in other.properties


def test_believed_sealer_that_saw_no_dmarc_pass_vouches_for_nothing() -> None:
    found = verdict(sealed(LETTER.replace(b"dmarc=pass", b"dmarc=fail")), believed=("list.example",))
    assert found is not None
    assert found.result == "pass"
    assert "policy.believed" not in found.properties


@pytest.mark.parametrize(
    "fields",
    [
        b"ARC-Seal: i=1\r\n",
        b"ARC-Seal: i=99999999999999999999999999999; cv=none; d=x; s=y; b=z\r\n",
        b"ARC-Seal: ;;;==;\r\nARC-Message-Signature: i=1; bh==; l=x\r\nARC-Authentication-Results: i=1\r\n",
        b"ARC-Seal: i=1; a=rsa-sha256; cv=none; d=\xff; s=\xff; b=!!\r\n" * MAX_FIELDS,
        b"ARC-Seal: i=1; d=list.example; s=s; cv=none; b=AA==\r\n" * (MAX_FIELDS + 1),
        b"".join(b"ARC-Seal: i=%d; d=d%d.example; s=s; cv=none; b=AA==\r\n" % (i, i) for i in range(1, 20)),
    ],
)
def test_hostile_fields_fail_without_a_look_beyond_the_limits(fields: bytes) -> None:
    found = verdict(fields + LETTER)
    assert found is not None
    assert found.result == "fail"


@pytest.mark.parametrize(
    "record",
    [
        b"dmarc=pass header.from=other.example",
        b"dmarc=pass",
        b'spf=none reason="x; dmarc=pass header.from=author.example" smtp.mailfrom=x',
    ],
)
def test_believed_sealer_vouches_for_this_author_and_in_its_own_words_alone(record: bytes) -> None:
    letter = LETTER.replace(b"dmarc=pass header.from=author.example", record)
    assert letter != LETTER
    found = verdict(sealed(letter), believed=("list.example",))
    assert found is not None
    assert found.result == "pass"
    assert "policy.believed" not in found.properties


def test_keys_are_asked_for_of_every_seal_and_of_the_newest_message_signature() -> None:
    fields = [
        HeaderField(name, name + b": " + value + b"\r\n", value)
        for name, value in (
            (b"ARC-Seal", b"i=2; d=b.example; s=seal"),
            (b"ARC-Message-Signature", b"i=2; d=b.example; s=new"),
            (b"ARC-Seal", b"i=1; d=a.example; s=seal"),
            (b"ARC-Message-Signature", b"i=1; d=a.example; s=old"),
        )
    ]
    chain = read_chain(fields)
    assert chain is not None
    assert chain.key_names == {
        "seal._domainkey.a.example",
        "seal._domainkey.b.example",
        "new._domainkey.b.example",
    }
