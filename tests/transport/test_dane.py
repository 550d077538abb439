"""DANE: which TLSA records count, and which chains are what they name; with real certificates."""

import hashlib
import warnings
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from server.transport.chain import Broken, subject_key
from server.transport.dane import find_fault, own_record, usable
from server.transport.security import Level, ResultType, Security, Tlsa
from tests.transport.authority import DAY, NOW, Holder, make

HOST = "mx.example.com"
ROOT = make("root", ca=True)
MIDDLE = make("middle", by=ROOT, ca=True)
LEAF = make("leaf", by=MIDDLE, names=[HOST])


def tlsa(usage: int, selector: int, matching: int, holder: Holder) -> Tlsa:
    octets = holder.der if selector == 0 else holder.key_der
    digests = {0: bytes, 1: lambda o: hashlib.sha256(o).digest(), 2: lambda o: hashlib.sha512(o).digest()}
    return Tlsa(usage, selector, matching, digests[matching](octets))


def judge(
    chain: list[bytes], *records: Tlsa, names: tuple[str, ...] = (HOST,), now: datetime = NOW
) -> ResultType | None:
    counting = usable(records)
    assert counting, "a record of this test is none"
    fault = find_fault(chain, Security(Level.DANE, names, counting), now=now)
    return None if fault is None else fault.type


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_every_form_of_record_names_a_server(selector: int, matching: int) -> None:
    assert judge([LEAF.der], tlsa(3, selector, matching, LEAF)) is None
    assert judge(LEAF.chain, tlsa(2, selector, matching, MIDDLE)) is None
    assert judge(LEAF.chain, tlsa(2, selector, matching, ROOT)) is None
    other = make("leaf", by=MIDDLE, names=[HOST])
    assert judge([LEAF.der], tlsa(3, selector, matching, other)) is ResultType.NOT_TRUSTED
    assert judge(LEAF.chain, tlsa(2, selector, matching, make("root", ca=True))) is ResultType.NOT_TRUSTED


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()])
def test_keys_of_every_kind_sign(key: object) -> None:
    root = make("root", ca=True, key=key)
    leaf = make("leaf", by=root, names=[HOST])
    assert judge(leaf.chain, tlsa(2, 1, 1, root)) is None
    assert judge([leaf.der], tlsa(2, 1, 0, root)) is None


def test_one_fitting_record_of_many_is_enough() -> None:
    wrong = tlsa(3, 1, 1, ROOT)
    assert judge([LEAF.der], wrong, tlsa(3, 1, 1, LEAF)) is None
    assert judge([LEAF.der], wrong, tlsa(2, 0, 0, make("x", ca=True)), tlsa(3, 0, 2, LEAF)) is None


def test_end_entity_counts_whatever_its_names_and_dates() -> None:
    """RFC 7671 5.1."""
    old = make("old", names=["another.example"], end=NOW - DAY)
    assert judge([old.der], tlsa(3, 1, 1, old)) is None
    assert judge([old.der], tlsa(3, 0, 1, old), names=("wrong.example",)) is None


def test_anchor_that_is_given_whole_need_not_be_sent() -> None:
    assert judge([LEAF.der, MIDDLE.der], tlsa(2, 0, 0, ROOT)) is None
    assert judge([LEAF.der], tlsa(2, 0, 0, MIDDLE)) is None
    assert judge([LEAF.der], tlsa(2, 1, 0, MIDDLE)) is None
    assert judge([LEAF.der, MIDDLE.der], tlsa(2, 1, 0, ROOT)) is None


def test_anchor_by_digest_must_be_sent() -> None:
    """RFC 7671 5.2.2: nobody finds a certificate by its digest."""
    assert judge([LEAF.der, MIDDLE.der], tlsa(2, 0, 1, ROOT)) is ResultType.NOT_TRUSTED


def test_order_of_the_chain_does_not_matter() -> None:
    assert judge([LEAF.der, ROOT.der, MIDDLE.der], tlsa(2, 0, 1, ROOT)) is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((HOST,), None),
        (("other.example", HOST), None),
        (("other.example",), ResultType.HOST_MISMATCH),
        (("MX.Example.COM.",), None),
    ],
)
def test_anchor_wants_one_of_the_names(names: tuple[str, ...], expected: ResultType | None) -> None:
    assert judge(LEAF.chain, tlsa(2, 0, 1, ROOT), names=names) is expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (["*.example.com"], None),
        (["*.com"], ResultType.HOST_MISMATCH),
        (["*.mx.example.com"], ResultType.HOST_MISMATCH),
        (["mx.*.com"], ResultType.HOST_MISMATCH),
        ([], ResultType.HOST_MISMATCH),
    ],
)
def test_wildcard_is_one_whole_label(told: list[str], expected: ResultType | None) -> None:
    leaf = make(HOST, by=ROOT, names=told)
    assert judge(leaf.chain, tlsa(2, 0, 1, ROOT)) is expected, "and the common name counts for nothing"


def test_dates_count_below_an_anchor() -> None:
    record = tlsa(2, 0, 1, ROOT)
    assert judge(LEAF.chain, record, now=NOW + 500 * DAY) is ResultType.EXPIRED
    assert judge(LEAF.chain, record, now=NOW - 500 * DAY) is ResultType.NOT_TRUSTED
    expired = make("middle", by=ROOT, ca=True, end=NOW - DAY)
    below = make("leaf", by=expired, names=[HOST])
    assert judge(below.chain, record) is ResultType.EXPIRED


def faulty_chains() -> list[tuple[str, Holder, Holder]]:
    client = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
    unknown = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    elsewhere = x509.NameConstraints([x509.DNSName("example.net")], None)
    except_us = x509.NameConstraints(None, [x509.DNSName("example.com")])
    narrow = make("narrow", ca=True, path_length=0)
    nobody, plain = make("nobody", by=ROOT), make("plain")

    def below(extension: x509.ExtensionType) -> Holder:
        return make("m", by=ROOT, ca=True, extensions=[(extension, True)])

    return [
        ("no authority", make("l", by=nobody, names=[HOST]), ROOT),
        ("no authority at the end", make("l", by=plain, names=[HOST]), plain),
        ("no key that signs", make("l", by=below(usage), names=[HOST]), ROOT),
        ("too long", make("l", by=make("m", by=narrow, ca=True), names=[HOST]), narrow),
        ("for clients", make("l", by=ROOT, names=[HOST], extensions=[client]), ROOT),
        ("unknown, critical", make("l", by=ROOT, names=[HOST], extensions=[unknown]), ROOT),
        ("other names", make("l", by=below(elsewhere), names=[HOST]), ROOT),
        ("not our name", make("l", by=below(except_us), names=[HOST]), ROOT),
    ]


@pytest.mark.parametrize(("case", "leaf", "anchor"), faulty_chains())
def test_chain_with_a_fault_leads_nowhere(case: str, leaf: Holder, anchor: Holder) -> None:
    assert judge(leaf.chain, tlsa(2, 0, 1, anchor)) is ResultType.NOT_TRUSTED, case


def test_signature_by_another_of_the_same_name_counts_for_nothing() -> None:
    impostor = make("root", ca=True)
    leaf = make("leaf", by=impostor, names=[HOST])
    assert judge([leaf.der, ROOT.der], tlsa(2, 0, 1, ROOT)) is ResultType.NOT_TRUSTED
    assert judge([leaf.der, ROOT.der, impostor.der], tlsa(2, 0, 1, ROOT)) is ResultType.NOT_TRUSTED


def test_server_itself_is_no_anchor() -> None:
    """RFC 7671 5.2: an anchor is above the server."""
    own = make("own", ca=True, names=[HOST])
    assert judge([own.der], tlsa(2, 0, 1, own)) is ResultType.NOT_TRUSTED


def test_maze_of_certificates_ends() -> None:
    key = ROOT.key
    maze = [make("same", by=make("same", ca=True, key=key), ca=True, key=key) for _ in range(9)]
    leaf = make("leaf", by=maze[0], names=[HOST])
    chain = [leaf.der, *(one.der for one in maze), *(one.above[0].der for one in maze)]
    assert judge(chain, tlsa(2, 0, 0, make("other", ca=True))) is ResultType.NOT_TRUSTED


@pytest.mark.parametrize(
    "record",
    [
        Tlsa(0, 0, 1, bytes(32)),
        Tlsa(1, 1, 1, bytes(32)),
        Tlsa(4, 1, 1, bytes(32)),
        Tlsa(255, 1, 1, bytes(32)),
        Tlsa(3, 2, 1, bytes(32)),
        Tlsa(3, 1, 3, bytes(32)),
        Tlsa(3, 1, 1, bytes(31)),
        Tlsa(3, 1, 2, bytes(32)),
        Tlsa(3, 0, 0, b"no certificate"),
        Tlsa(2, 1, 0, b"no key"),
        Tlsa(3, 0, 0, LEAF.der + b"x"),
        Tlsa(2, 1, 0, LEAF.key_der[:-1]),
        Tlsa(3, 0, 0, b""),
    ],
)
def test_record_that_means_nothing_is_not_usable(record: Tlsa) -> None:
    assert usable([record]) == ()


def test_anchor_that_is_not_understood_is_no_reason_to_ask_for_less() -> None:
    """What has the form of a key or certificate counts, and fails where nothing can be read there."""
    odd = ROOT.der.replace(b"\x2a\x86\x48\xce\x3d\x03\x01\x07", b"\x2a\x86\x48\xce\x3d\x03\x01\x7f")
    key = LEAF.key_der.replace(b"\x2a\x86\x48\xce\x3d\x02\x01", b"\x2a\x86\x48\xce\x3d\x02\x7f")
    for record in (Tlsa(2, 0, 0, odd), Tlsa(2, 1, 0, key)):
        assert judge(LEAF.chain, record) is ResultType.NOT_TRUSTED
        assert judge(LEAF.chain, record, tlsa(2, 0, 1, ROOT)) is None


def test_own_record_names_the_key() -> None:
    assert own_record(LEAF.der) == tlsa(3, 1, 1, LEAF)


@given(st.data())
def test_damaged_certificate_is_never_an_error_of_ours(data: st.DataObject) -> None:
    octets = bytearray(LEAF.der)
    for _ in range(data.draw(st.integers(1, 4))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(octets[: data.draw(st.integers(0, len(octets)))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for record in (tlsa(3, 1, 1, LEAF), tlsa(2, 0, 1, ROOT), tlsa(2, 1, 0, MIDDLE)):
            judge([cut, MIDDLE.der, ROOT.der], record)
            judge([LEAF.der, cut, ROOT.der], record)


@given(st.binary(max_size=200))
def test_any_octets_have_a_key_or_are_refused(octets: bytes) -> None:
    with pytest.raises(Broken):
        subject_key(octets)
    assert judge([octets], tlsa(3, 1, 1, LEAF)) is not None
    assert judge([], tlsa(3, 1, 1, LEAF)) is not None
