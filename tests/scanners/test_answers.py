"""What scanners answer, read: words of the field, and octets that are none."""

import asyncio
import json
import random
from contextlib import suppress

import pytest

from server.scanners import findings
from server.scanners.clamav import read_answer as read_clamav
from server.scanners.request import Held, Request, ScannerFault
from server.scanners.rspamd import headers
from server.scanners.rspamd import read_answer as read_rspamd
from storage.codec import read_verdicts, verdicts_text
from storage.records import Envelope, Peer, Recipient, Verdict


@pytest.mark.parametrize(
    ("answer", "result", "virus"),
    [
        (b"stream: OK\0", "clean", ""),
        (b"stream: Win.Test.EICAR_HDB-1 FOUND\0", "infected", "Win.Test.EICAR_HDB-1"),
        (b"stream: a b FOUND FOUND\0", "infected", "a b FOUND"),
        (b"INSTREAM size limit exceeded. ERROR\0", "too_large", ""),
    ],
)
def test_clamd_is_understood(answer, result, virus):
    verdict = read_clamav(answer, 5)
    assert (verdict.result, verdict.properties.get("virus", "")) == (result, virus)


@pytest.mark.parametrize(
    "answer", [b"", b"\0", b"stream: ", b"OK", b"UNKNOWN COMMAND\0", b"\xff\xfe", b"FOUND"]
)
def test_what_is_no_answer_of_clamd_is_a_fault(answer):
    with pytest.raises(ScannerFault):
        read_clamav(answer, 5)


def test_rspamd_is_understood():
    body = json.dumps(
        {
            "score": 7.256,
            "required_score": 15,
            "action": "Add Header",
            "symbols": {"B": {}, "A": {"score": 1}},
        }
    ).encode()
    facts = findings.facts_of(read_rspamd(body))
    assert facts == {
        "rspamd_status": "scanned",
        "rspamd_action": "add header",
        "rspamd_score": 726,
        "rspamd_symbols": ["A", "B"],
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"action": 1}',
        b'{"action": ""}',
        b'{"error": "no"}',
        b"[" * 100_000,
        b'{"action": "%s"}' % (b"x" * 41),
    ],
)
def test_what_is_no_answer_of_rspamd_is_a_fault(body):
    with pytest.raises(ScannerFault):
        read_rspamd(body)


@pytest.mark.parametrize(
    "score", ["NaN", "Infinity", "-Infinity", "1e400", '"7"', "null", "true", "[]", "9" * 400]
)
def test_a_score_that_is_no_number_is_none(score):
    verdict = read_rspamd(
        b'{"action": "reject", "score": %s, "symbols": {"%s": 1}}' % (score.encode(), b"x" * 500)
    )
    facts = findings.facts_of(verdict)
    assert facts["rspamd_action"] == "reject"
    assert isinstance(facts["rspamd_score"], int)
    assert abs(facts["rspamd_score"]) <= 1_000_000
    assert facts["rspamd_symbols"] == []


def test_mutated_answers_make_a_verdict_or_a_fault():
    dice = random.Random(7)
    seed = b'{"is_skipped":false,"score":3.5,"required_score":15.0,"action":"reject","symbols":{"A":{}}}'
    for _ in range(3000):
        octets = bytearray(seed)
        for _ in range(dice.randrange(1, 6)):
            octets[dice.randrange(len(octets))] = dice.randrange(256)
        for read in (read_rspamd, lambda found: read_clamav(found, 1)):
            with suppress(ScannerFault):
                assert isinstance(read(bytes(octets)), Verdict)


def test_what_was_found_is_the_same_after_it_was_stored():
    verdicts = (
        findings.infected("Eicar"),
        findings.scored("add header", 6.789, 15, ["B", "A", "", "with,comma", "y" * 81]),
    )
    kept = read_verdicts(verdicts_text(verdicts))
    assert findings.recorded(kept) == {
        "virus_status": "scanned",
        "virus_name": "Eicar",
        "rspamd_status": "scanned",
        "rspamd_action": "add header",
        "rspamd_score": 679,
        "rspamd_symbols": ["A", "B"],
        "scanner_absence": "",
    }
    assert findings.recorded([Verdict("spf", "pass")])["virus_status"] == "unknown"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [((), ""), (("accept",), "accept"), (("accept", "tag"), "tag"), (("tag", "defer"), "defer")],
)
def test_of_several_that_are_absent_the_strictest_answer_counts(wanted, found):
    verdicts = [findings.absent("clamav", absence=one, reason="") for one in wanted]
    assert findings.absence_of([*verdicts, findings.too_large("rspamd", 1)]) == found


def test_a_strangers_words_stay_within_their_header_line():
    peer = Peer("192.0.2.1", helo="x\r\nPass: all\r\n\r\n\0", reverse_name="ü.test")
    envelope = Envelope(None, tuple(Recipient(f"u{n}@b.test") for n in range(500)))
    told = list(headers(Request(peer, envelope, Held(b""), "q\n1", ""), hostname="mx.test"))
    assert all(b"\r" not in value and b"\n" not in value and b"\0" not in value for _, value in told)
    assert ("From", b"<>") in told
    assert ("Helo", b"xPass: all") in told
    assert sum(name == "Rcpt" for name, _ in told) == 100
    assert not any(name == "User" for name, _ in told)


def test_octets_in_memory_come_in_pieces_and_as_often_as_asked():
    async def whole() -> None:
        content = bytes(300_000)
        octets = Held(content)
        for _ in range(2):
            assert b"".join([bytes(piece) async for piece in octets.pieces()]) == content

    asyncio.run(whole())
