"""What reports tell of one message: alignment, disposition, reasons, and what is not told at all."""

import pytest

from server.mail.header import HeaderField
from server.sender_auth import dmarc
from server.sender_auth.observed import Observation, disposition, observe
from storage.records import Action, Verdict

RUA = "; rua=mailto:r@example.com"


def seen(
    record: str,
    *verdicts: Verdict,
    author: str = "example.com",
    spf: str | None = None,
    dkim: tuple[str, ...] = (),
    subject: bytes = b"hello",
    exists: bool = True,
) -> Observation | None:
    parsed = dmarc.parse(record)
    assert parsed is not None
    records = dmarc.Records({"example.com": parsed})
    evaluation = dmarc.evaluate(author, records, spf=spf, dkim=dkim, exists=exists)
    given = verdicts or (Verdict("spf", "pass" if spf else "fail", spf or "example.com"),)
    given += tuple(Verdict("dkim", "pass", one, properties={"header.s": "s1"}) for one in dkim)
    fields = [HeaderField(b"Subject", b"", subject)]
    return observe(evaluation, records, given, fields, exists=exists)


def must(found: Observation | None) -> Observation:
    assert found is not None
    return found


def test_both_identifiers_are_judged_each_by_itself() -> None:
    found = must(seen(f"v=DMARC1; p=reject; aspf=s{RUA}", spf="mail.example.com", dkim=("news.example.com",)))
    assert (found.dkim_aligned, found.spf_aligned, found.result) == (True, False, "pass")
    assert found.signatures == (("news.example.com", "s1", "pass"),)
    assert found.spf == ("mail.example.com", "pass")
    assert found.published.aspf == "s"


@pytest.mark.parametrize(
    ("record", "subject", "spf"),
    [
        ("v=DMARC1; p=reject", b"hello", "example.com"),
        (f"v=DMARC1; p=reject{RUA}", b"Report Domain: x.example Submitter: y Report-ID: <1>", "example.com"),
    ],
    ids=["nobody asks", "a report that passes"],
)
def test_not_observed(record: str, subject: bytes, spf: str) -> None:
    assert seen(record, spf=spf, subject=subject) is None


def test_forged_report_is_observed() -> None:
    assert seen(f"v=DMARC1; p=reject{RUA}", subject=b"Report Domain: example.com") is not None


def test_no_address_is_in_an_observation() -> None:
    spf = Verdict("spf", "pass", "example.com", properties={"smtp.mailfrom": "ann.secret@Example.COM"})
    found = must(seen(f"v=DMARC1; p=none{RUA}", spf))
    assert found.envelope_from == "example.com"
    assert "secret" not in repr(found)
    bounce = Verdict("spf", "pass", "mx.example.com", properties={"smtp.helo": "mx.example.com"})
    assert must(seen(f"v=DMARC1; p=none{RUA}", bounce)).envelope_from == ""


@pytest.mark.parametrize(
    ("record", "passes", "actions", "refused", "expected"),
    [
        ("p=reject", True, [Action.ACCEPT], False, ("pass", "")),
        ("p=none", True, [Action.ACCEPT], False, ("none", "")),
        # Refused as spam, say: no affair of the domain's owner.
        ("p=reject", True, [], True, ("pass", "")),
        ("p=reject", False, [], True, ("reject", "")),
        ("p=reject", False, [Action.QUARANTINE], False, ("quarantine", "local_policy")),
        ("p=reject", False, [Action.ACCEPT], False, ("none", "local_policy")),
        ("p=quarantine", False, [Action.QUARANTINE], False, ("quarantine", "")),
        ("p=quarantine", False, [], True, ("quarantine", "")),
        ("p=none", False, [], True, ("none", "")),
        ("p=none", False, [Action.ACCEPT], False, ("none", "")),
        ("p=quarantine", False, [Action.QUARANTINE, Action.ACCEPT], False, ("none", "local_policy")),
        ("p=reject; t=y", False, [Action.QUARANTINE], False, ("quarantine", "policy_test_mode")),
        ("p=quarantine; t=y", False, [Action.ACCEPT], False, ("none", "policy_test_mode")),
        ("p=reject; t=y", False, [Action.ACCEPT], False, ("none", "local_policy")),
    ],
)
def test_disposition_is_what_the_policy_did(
    record: str, passes: bool, actions: list[Action], refused: bool, expected: tuple[str, str]
) -> None:
    found = must(seen(f"v=DMARC1; {record}{RUA}", spf="example.com" if passes else None))
    assert disposition(found, actions, refused=refused) == expected


def test_believed_forwarder_is_the_reason() -> None:
    spf = Verdict("spf", "fail", "list.example")
    arc = Verdict("arc", "pass", "list.example", properties={"policy.believed": "dmarc"})
    found = must(seen(f"v=DMARC1; p=reject{RUA}", spf, arc))
    assert disposition(found, [Action.ACCEPT]) == ("none", "trusted_forwarder")


def test_subdomains_have_their_own_policy() -> None:
    record = f"v=DMARC1; p=none; sp=quarantine; np=reject{RUA}"
    below = must(seen(record, author="a.example.com"))
    assert (below.requested, below.full) == ("quarantine", "quarantine")
    invented = must(seen(record, author="b.example.com", exists=False))
    assert (invented.requested, invented.full) == ("reject", "reject")


def test_signatures_that_say_most_come_first_and_ten_at_most() -> None:
    spf = Verdict("spf", "none", "")
    broken = [Verdict("dkim", "fail", f"d{n}.example", properties={"header.s": "s"}) for n in range(20)]
    passing = [Verdict("dkim", "pass", one) for one in ("z.example", "sub.example.com", "example.com")]
    found = must(seen(f"v=DMARC1; p=none{RUA}", spf, *broken, *passing, dkim=()))
    assert [one[0] for one in found.signatures[:3]] == ["example.com", "sub.example.com", "z.example"]
    assert len(found.signatures) == 10
    assert found.spf == ("", "")
