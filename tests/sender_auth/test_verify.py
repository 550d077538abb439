"""The verifier: all mechanisms together, under one deadline, over fake and real DNS."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from server.clock import SystemClock
from server.dns import CachingResolver, Resolver
from server.evidence import of_verdicts
from server.sender_auth.verify import INLINE_OCTETS, Verifier
from storage.records import Envelope, Peer, Verdict
from tests.fakes import FakeClock
from tests.nameserver import Nameserver
from tests.sender_auth.letters import AT, LETTER, ed25519_key, record, rsa_key, sign
from tests.sender_auth.zone import TIMEOUT, InlineThreads, SlowResolver, ZoneResolver

ZONE: dict[str, dict[str, list[Any]]] = {
    "example.com": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"], "A": ["192.0.2.80"]},
    "_dmarc.example.com": {"TXT": ["v=DMARC1; p=reject; np=quarantine; rua=mailto:d@example.com"]},
    "sel._domainkey.example.com": {"TXT": [record(rsa_key())]},
    "ed._domainkey.example.com": {"TXT": [record(ed25519_key())]},
    "news.example.com": {"A": ["192.0.2.81"]},
    "strict.example": {"TXT": ["v=spf1 +all"]},
    "_dmarc.strict.example": {"TXT": ["v=DMARC1; p=quarantine; aspf=s; adkim=s"]},
    "open.example": {"TXT": ["v=spf1 +all"]},
    "_dmarc.testing.example": {"TXT": ["v=DMARC1; p=reject; t=y"]},
}
SIGNED = sign(LETTER, rsa_key())


async def verdicts_of(
    content: bytes | Path,
    *,
    resolver: Resolver | None = None,
    sender: str | None = "ann@example.com",
    address: str = "192.0.2.1",
    threads: InlineThreads | None = None,
    deadline_seconds: float = 20,
) -> tuple[Verdict, ...]:
    verifier = Verifier(
        resolver=resolver or ZoneResolver(ZONE),
        threads=threads or InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
        clock=FakeClock((AT + 60) * 1_000_000),
        hostname="mx.example.net",
        deadline_seconds=deadline_seconds,
    )
    peer = Peer(address, helo="mail.example.com")
    return await verifier.verify(peer=peer, envelope=Envelope(sender, ()), content=content)


def verify(content: bytes | Path, **given: Any) -> dict[str, Verdict]:
    """The verdicts by method; of several signatures the topmost."""
    found = asyncio.run(verdicts_of(content, **given))
    return {verdict.method: verdict for verdict in reversed(found)}


def letter_from(value: str) -> bytes:
    return LETTER.replace(b"Ann <ann@example.com>", value.encode())


def test_wholly_authentic_message_passes_everything() -> None:
    found = asyncio.run(verdicts_of(SIGNED))
    assert [(verdict.method, verdict.result, verdict.domain) for verdict in found] == [
        ("spf", "pass", "example.com"),
        ("dkim", "pass", "example.com"),
        ("dmarc", "pass", "example.com"),
    ]
    assert found[2].properties == {"header.from": "example.com", "policy.dmarc": "reject"}


def test_verdicts_become_facts() -> None:
    facts = of_verdicts(asyncio.run(verdicts_of(LETTER, sender="x@open.example")))
    assert (facts["spf"], facts["spf_domain"], facts["dkim_result"]) == ("pass", "open.example", "none")
    assert (facts["dmarc"], facts["dmarc_policy"], facts["dmarc_domain"]) == ("fail", "reject", "example.com")


def test_one_aligned_mechanism_is_enough() -> None:
    assert verify(SIGNED, sender="x@open.example")["dmarc"].result == "pass"
    assert verify(SIGNED, address="192.0.2.9")["dmarc"].result == "pass"
    assert verify(LETTER)["dmarc"].result == "pass"


def test_foreign_authentication_does_not_help() -> None:
    found = verify(LETTER, sender="x@open.example")
    assert (found["spf"].result, found["dmarc"].result) == ("pass", "fail")


def test_null_sender_is_judged_by_its_helo_and_can_align() -> None:
    zone = {**ZONE, "mail.example.com": {"TXT": ["v=spf1 ip4:192.0.2.1 -all"]}}
    found = verify(LETTER, sender=None, resolver=ZoneResolver(zone))
    assert (found["spf"].domain, found["dmarc"].result) == ("mail.example.com", "pass")


@pytest.mark.parametrize(
    ("author", "policy"),
    [
        ("a@example.com", "reject"),
        ("a@news.example.com", "reject"),
        ("a@absent.example.com", "quarantine"),  # np=
        ("a@testing.example", "quarantine"),  # t=y
        ("a@EXAMPLE.com", "reject"),
    ],
)
def test_policy_is_what_is_asked_for(author: str, policy: str) -> None:
    dmarc = verify(letter_from(author), sender="x@open.example")["dmarc"]
    assert (dmarc.result, dmarc.properties["policy.dmarc"]) == ("fail", policy)
    assert dmarc.properties["header.from"] == author.partition("@")[2].lower()


def test_domain_without_a_record_has_no_policy() -> None:
    dmarc = verify(letter_from("a@open.example"), sender="x@open.example")["dmarc"]
    assert dmarc == Verdict("dmarc", "none", "", "", {"header.from": "open.example"})


def test_strictest_failing_author_counts() -> None:
    content = letter_from("a@open.example, b@strict.example, c@example.com")
    dmarc = verify(content, sender="x@strict.example")["dmarc"]
    assert (dmarc.result, dmarc.domain, dmarc.properties["policy.dmarc"]) == ("fail", "example.com", "reject")
    content = letter_from("b@strict.example, c@open.example")
    assert verify(content, sender="x@strict.example")["dmarc"].result == "none"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("nobody", "From without a valid domain"),
        ("", "From without a valid domain"),
        ("a@localhost", "From without a valid domain"),
        ("a@[192.0.2.1]", "From without a valid domain"),
        ("group:;", "From without a valid domain"),
        ("a@strict.example, broken@", "From without a valid domain"),
        (", ".join(f"a@d{number}.example" for number in range(9)), "too many author domains"),
        (", ".join(["a@strict.example"] * 200), "too many author domains"),
        ("a@strict.example\r\nFrom: b@strict.example", "not one From field"),
    ],
)
def test_message_without_one_clear_author_never_passes(value: str, reason: str) -> None:
    dmarc = verify(letter_from(value), sender="x@strict.example")["dmarc"]
    assert (dmarc.result, dmarc.reason) == ("permerror", reason)


def test_second_from_field_of_a_protected_domain_still_fails() -> None:
    content = letter_from("a@strict.example\r\nFrom: ceo@example.com")
    dmarc = verify(content, sender="x@strict.example")["dmarc"]
    assert (dmarc.result, dmarc.domain) == ("fail", "example.com")


def test_message_without_from_is_permerror() -> None:
    assert verify(b"Subject: x\r\n\r\n")["dmarc"].reason == "not one From field"


def test_each_name_is_asked_for_once_a_message() -> None:
    resolver = ZoneResolver(ZONE)
    content = sign(sign(LETTER, rsa_key()), rsa_key())
    verify(content, resolver=resolver)
    assert len(resolver.asked) == len(set(resolver.asked))


def test_identifiers_of_other_organizations_cause_no_walk() -> None:
    resolver = ZoneResolver(ZONE)
    verify(LETTER, sender="x@a.b.open.example", resolver=resolver)
    assert "_dmarc.open.example" not in {name for name, _ in resolver.asked}


@pytest.mark.parametrize(
    ("name", "spf", "dkim", "dmarc"),
    [
        ("example.com", "temperror", "pass", "pass"),
        ("sel._domainkey.example.com", "pass", "temperror", "pass"),
        ("_dmarc.example.com", "pass", "pass", "temperror"),
        ("_dmarc.com", "pass", "pass", "pass"),
    ],
)
@pytest.mark.parametrize("is_slow", [False, True])
def test_one_failed_lookup_spoils_only_what_depends_on_it(
    name: str, spf: str, dkim: str, dmarc: str, is_slow: bool
) -> None:
    resolver: Resolver
    if is_slow:
        resolver = SlowResolver(ZONE, silent={name})
    else:
        resolver = ZoneResolver({**ZONE, name: {"TXT": [TIMEOUT]}})
    found = verify(SIGNED, resolver=resolver, deadline_seconds=0.2)
    assert (found["spf"].result, found["dkim"].result, found["dmarc"].result) == (spf, dkim, dmarc)


def test_fail_that_a_failed_lookup_may_have_made_is_temperror() -> None:
    broken = ZoneResolver({**ZONE, "sel._domainkey.example.com": {"TXT": [TIMEOUT]}})
    dmarc = verify(SIGNED, sender="x@open.example", resolver=broken)["dmarc"]
    assert (dmarc.result, dmarc.reason) == ("temperror", "example.com could not be checked")
    assert "policy.dmarc" not in dmarc.properties


def test_strangers_slow_names_do_not_turn_a_fail_into_a_temperror() -> None:
    content = sign(LETTER, rsa_key(), d="slow.example")
    silent = {"sel._domainkey.slow.example", "slow.example"}
    found = verify(
        content,
        sender="x@slow.example",
        resolver=SlowResolver(ZONE, silent=silent),
        deadline_seconds=0.2,
    )
    assert (found["spf"].result, found["dkim"].result) == ("temperror", "temperror")
    assert (found["dmarc"].result, found["dmarc"].properties["policy.dmarc"]) == ("fail", "reject")


def test_slow_signature_does_not_hide_a_good_one() -> None:
    content = sign(SIGNED, rsa_key(), d="slow.example")
    resolver = SlowResolver(ZONE, silent={"sel._domainkey.slow.example"})
    found = asyncio.run(verdicts_of(content, resolver=resolver, deadline_seconds=0.2))
    assert [verdict.result for verdict in found if verdict.method == "dkim"] == ["temperror", "pass"]


def test_cancelled_check_leaves_no_task_behind() -> None:
    async def scenario() -> None:
        resolver = SlowResolver(ZONE, silent={"example.com", "_dmarc.example.com"})
        checking = asyncio.ensure_future(verdicts_of(SIGNED, resolver=resolver))
        for _ in range(20):
            await asyncio.sleep(0)
        checking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await checking
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())


def test_large_content_leaves_the_loop_and_small_does_not() -> None:
    small, large = InlineThreads(), InlineThreads()
    verify(SIGNED, threads=small)
    content = sign(LETTER + b"x" * INLINE_OCTETS, rsa_key())
    assert verify(content, threads=large)["dkim"].result == "pass"
    assert (small.computed, large.computed) == (0, 1)


class BusyThreads(InlineThreads):
    """Computes nothing in any time anybody waits."""

    async def compute(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.get_running_loop().create_future()


def test_computation_that_does_not_come_to_its_turn_is_temperror() -> None:
    content = sign(LETTER + b"x" * INLINE_OCTETS, rsa_key())
    found = verify(content, sender="x@open.example", threads=BusyThreads(), deadline_seconds=0.2)
    assert (found["spf"].result, found["dkim"].result) == ("pass", "temperror")
    assert found["dmarc"].result == "temperror"


def test_file_is_verified_as_its_octets(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(sign(LETTER + b"a line\r\n" * 100_000, rsa_key()))
    assert verify(path)["dmarc"].result == "pass"
    path.write_bytes(path.read_bytes() + b"more\r\n")
    assert verify(path)["dkim"].reason == "body hash mismatch"


def test_absent_file_is_our_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "absent")


def test_everything_over_a_real_resolver_and_name_server() -> None:
    async def scenario() -> None:
        server = Nameserver(ZONE)
        await server.start()
        resolver = CachingResolver(
            servers=[server.address], timeout_seconds=5, cache_entries=100, clock=SystemClock()
        )
        try:
            content = sign(SIGNED, ed25519_key(), s="ed")
            for _ in range(2):
                found = await verdicts_of(content, resolver=resolver)
                assert [verdict.result for verdict in found] == ["pass"] * 4
            asked = len(server.asked)
            assert asked == len(set(server.asked)) == 5  # a second message costs no query
            server.servfail.add("_dmarc.strict.example")
            found = await verdicts_of(letter_from("a@strict.example"), resolver=resolver)
            assert found[-1].result == "temperror"
            server.silent.add("_dmarc.quiet.example")
            found = await verdicts_of(letter_from("a@quiet.example"), resolver=resolver, deadline_seconds=0.3)
            assert found[-1].result == "temperror"
        finally:
            await resolver.close()
            await server.stop()

    asyncio.run(scenario())


def test_results_field_says_it_all() -> None:
    async def scenario() -> bytes:
        verifier = Verifier(
            resolver=ZoneResolver(ZONE),
            threads=InlineThreads(),  # type: ignore[arg-type]  # stands in for Threads
            clock=FakeClock((AT + 60) * 1_000_000),
            hostname="mx.example.net",
            deadline_seconds=5,
        )
        envelope = Envelope("ann@example.com", ())
        found = await verifier.verify(
            peer=Peer("192.0.2.1", helo="h.example.com"), envelope=envelope, content=SIGNED
        )
        return verifier.results_field(found)

    words = asyncio.run(scenario()).decode().split()
    assert words[:2] == ["Authentication-Results:", "mx.example.net;"]
    assert {"spf=pass", "dkim=pass", "dmarc=pass", "policy.dmarc=reject"} <= set(words)
