"""The facts that intake gives at each stage: all that the table promises, of the types it says."""

import pytest

from policies.facts import FACTS, SCANNER_FACTS, STAGES, facts_at, faults
from server import client_facts, evidence
from server.login import Identity
from server.standing import EMPTY
from storage.records import Envelope, Peer, Recipient, Source, Verdict

CONTENT = (
    b"From: Ann <ann@example.org>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nPrecedence: BULK\r\n\r\nx\r\n"
)
CASE = evidence.Case(
    Peer("192.0.2.1", 25, "MX.example", reverse_name="Mx.Example", tls_version="TLSv1.3"),
    Identity("org_1", "inb_1", "ann@example.org", "key", "key_1", frozenset({"message:send"})),
    Envelope("Ann@Example.org", (Recipient("Bob@example.net"),)),
    Source.SUBMISSION,
    recipient="Bob@example.net",
    recipient_count=1,
    letter=evidence.Letter(CONTENT, len(CONTENT), lambda: CONTENT),
    verdicts=(Verdict("spf", "pass", "example.org"),),
    organization_id="org_1",
    mailbox_id="inb_1",
    reply_code=550,
    reply_status="5.1.1",
    notice="failure",
)


@pytest.mark.parametrize("stage", STAGES)
def test_every_fact_of_a_stage_is_given_with_its_type(stage: str):
    facts = evidence.Facts(CASE)
    facts.update({name: EMPTY[name] for name in EMPTY})  # what a look ahead tells
    values = {fact.name: facts[fact.name] for fact in facts_at(stage)}
    assert faults(stage, values) == []


def test_a_look_ahead_tells_the_facts_that_wait_and_no_others():
    assert {fact.name for fact in FACTS.values() if fact.ahead} == (
        EMPTY.keys() | SCANNER_FACTS.keys() | client_facts.NAMES
    )
    assert evidence.UNASKED.keys() == client_facts.NAMES


def test_texts_are_given_in_lower_case_and_decoded():
    facts = evidence.Facts(CASE)
    assert facts["subject"] == "grüße"
    assert facts["sender"] == "ann@example.org"
    assert facts["precedence"] == "bulk"
    assert facts["helo"] == "mx.example"
    assert facts["header_from_domain"] == "example.org"


def test_what_was_not_checked_is_none():
    facts = evidence.Facts(CASE)
    assert (facts["spf"], facts["dmarc"], facts["dkim_result"]) == ("pass", "none", "none")


def test_unreadable_author_is_counted_and_not_named():
    letter = evidence.Letter(b"From: a b c <x@@y>\r\n\r\n", 24, bytes)
    assert letter.from_fields == 1
    assert not letter.from_readable
    assert letter.from_addresses == ()


def test_unknown_fact_is_a_key_error():
    with pytest.raises(KeyError):
        evidence.Facts(CASE)["no_such_fact"]


@pytest.mark.parametrize(
    ("value", "selector"),
    [
        ("v=BIMI1; s=brand", "brand"),
        ("v=BIMI1;s=Brand.Two;", "brand.two"),
        ("V=bimi1 ; x=y; s = a", "a"),
        ("s=brand", ""),
        ("v=BIMI1; s=a b", ""),
        ("v=BIMI1; s=", ""),
        ("v=BIMI1" + ";" * 5000, ""),
    ],
)
def test_bimi_selector_is_read_as_a_fact(value, selector):
    content = f"From: a@b.example\r\nBIMI-Selector: {value}\r\n\r\n".encode()
    letter = evidence.Letter(content, len(content), lambda: content)
    assert evidence.Facts(evidence.Case(Peer("192.0.2.1"), letter=letter))["bimi_selector"] == selector
