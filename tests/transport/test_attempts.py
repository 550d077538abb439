"""What a policy does to an attempt: real servers with real certificates, real DNS, a real policy host."""

from dataclasses import replace
from pathlib import Path

import pytest

from storage.records import DeliveryState, Outcome
from tests.transport.authority import DAY, NOW, make, server_context
from tests.transport.test_dane import tlsa
from tests.transport.world import DOMAIN, HOST, LETTER, OTHER, ROOT, Peer, World, certified, go

DELIVERED, DEFERRED, BOUNCED = DeliveryState.DELIVERED, DeliveryState.DEFERRED, DeliveryState.BOUNCED
ALIEN = make("an authority that nobody knows", ca=True)


def told(found: Outcome) -> tuple[DeliveryState, str, bool]:
    return found.state, found.tls_policy, found.tls_version is not None


# No policy.


def test_opportunistic_takes_any_certificate_and_says_so(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer(certified(tmp_path, "p", "wrong.example", by=ALIEN)))
        found = await world.send()
        assert told(found) == (DELIVERED, "opportunistic", True), found
        assert "no policy" in found.tls_reason
        assert len(peer.messages) == 1 and peer.asked_names == [HOST]
        assert world.counted() == {("no-policy-found", "success"): 1}

    go(tmp_path, scenario)


def test_server_without_tls_gets_mail_in_clear_and_the_event_says_so(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer())
        found = await world.send()
        assert told(found) == (DELIVERED, "opportunistic", False)
        assert "offers no TLS" in found.tls_reason and peer.clear
        assert world.counted() == {("no-policy-found", "starttls-not-supported"): 1}

    go(tmp_path, scenario)


@pytest.mark.parametrize("how", ["garbled", "refuses"])
def test_broken_tls_is_told_first_and_passed_over_the_next_time(tmp_path: Path, how: str) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer(**{how: True}))
        first = await world.send()
        assert told(first) == (DEFERRED, "opportunistic", False) and first.phase == "tls", first
        second = await world.send()
        assert told(second) == (DELIVERED, "opportunistic", False)
        assert "in clear, since" in second.text and "does not hold" in second.tls_reason
        assert len(peer.clear) == 1

    go(tmp_path, scenario)


def test_broken_tls_of_one_host_is_told_though_the_next_one_takes_the_mail(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await world.host(Peer(garbled=True))
        other = await world.host(Peer(certified(tmp_path, "p", OTHER)), OTHER, preference=20)
        found = await world.send()
        assert told(found) == (DELIVERED, "opportunistic", True) and found.host == OTHER
        (passed,) = found.passed_over
        assert passed.startswith(f"{HOST} [127.0.0.1]: the TLS handshake failed")
        assert len(other.messages) == 1

    go(tmp_path, scenario)


# MTA-STS.


def test_enforced_policy_is_met(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer(certified(tmp_path, "p", HOST)))
        world.policy("enforce", "*.peer.test")
        found = await world.send()
        assert told(found) == (DELIVERED, "sts enforce", True), found
        assert found.tls_reason == f"the MTA-STS policy of {DOMAIN}"
        assert len(peer.messages) == 1
        assert world.web.requests == [f"GET /.well-known/mta-sts.txt HTTP/1.1 mta-sts.{DOMAIN}"]
        assert world.counted() == {("sts", "success"): 1}

    go(tmp_path, scenario)


FAULTY = {
    "wrong name": "certificate-host-mismatch",
    "common name alone": "certificate-host-mismatch",
    "stranger": "certificate-not-trusted",
    "expired": "certificate-expired",
    "none": "starttls-not-supported",
    "refuses": "starttls-not-supported",
    "garbled": "validation-failure",
    "other host": "validation-failure",
}


async def faulty(world: World, case: str) -> Peer:
    directory = world.directory
    contexts = {
        "wrong name": lambda: certified(directory, "p", "other.example"),
        "common name alone": lambda: certified(directory, HOST),
        "stranger": lambda: certified(directory, "p", HOST, by=ALIEN),
        "expired": lambda: certified(directory, "p", HOST, begin=NOW - 400 * DAY, end=NOW - 300 * DAY),
        "other host": lambda: certified(directory, "p", HOST),
    }
    context = contexts[case]() if case in contexts else None
    peer = Peer(context, refuses=case == "refuses", garbled=case == "garbled")
    return await world.host(peer)


def patterns(case: str) -> tuple[str, ...]:
    return ("elsewhere.example",) if case == "other host" else (HOST,)


@pytest.mark.parametrize("case", FAULTY)
def test_enforced_policy_that_is_not_met_sends_nothing_ever(tmp_path: Path, case: str) -> None:
    async def scenario(world: World) -> None:
        peer = await faulty(world, case)
        world.policy("enforce", *patterns(case))
        for _ in range(3):
            found = await world.send()
            assert told(found) == (DEFERRED, "sts enforce", False), found
            assert found.enhanced == "4.7.5" or found.code == 454, found
            assert found.text and found.host == HOST
            await world.later(4000)
        assert peer.messages == peer.clear == []
        assert not any(line.startswith("MAIL") for line in peer.commands)
        assert world.counted() == {("sts", FAULTY[case]): 3}

    go(tmp_path, scenario)


@pytest.mark.parametrize("case", FAULTY)
def test_policy_in_testing_is_reported_and_stops_nothing(tmp_path: Path, case: str) -> None:
    async def scenario(world: World) -> None:
        peer = await faulty(world, case)
        world.policy("testing", *patterns(case))
        # With a server whose STARTTLS does not work the first attempt finds that out, as without a policy.
        found = await world.send()
        if case in ("refuses", "garbled"):
            assert told(found)[0] is DEFERRED
            found = await world.send()
        assert told(found)[:2] == (DELIVERED, "sts testing"), found
        assert "does not hold" in found.tls_reason or "is no host" in found.tls_reason, found
        assert len(peer.messages) + len(peer.clear) == 1
        assert set(world.counted()) >= {("sts", FAULTY[case])}, world.counted()

    go(tmp_path, scenario)


def test_testing_that_is_met_is_a_success(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer(certified(tmp_path, "p", HOST)))
        world.policy("testing")
        for number in (1, 2):
            found = await world.send(number=number)
            assert told(found) == (DELIVERED, "sts testing", True)
        assert peer.connections == 1, "the second goes by the same connection"
        assert world.counted() == {("sts", "success"): 1}

    go(tmp_path, scenario)


def test_next_host_takes_the_mail_where_the_first_fails_the_policy(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        first = await world.host(Peer(certified(tmp_path, "p", "wrong.example")))
        second = await world.host(Peer(certified(tmp_path, "q", OTHER)), OTHER, preference=20)
        unnamed = await world.host(Peer(certified(tmp_path, "r", "x.test")), "x.test", preference=5)
        world.policy("enforce", HOST, OTHER)
        found = await world.send()
        assert told(found) == (DELIVERED, "sts enforce", True) and found.host == OTHER, found
        assert found.passed_over[0] == "x.test: x.test is no host of the MTA-STS policy"
        assert found.passed_over[1].startswith(f"{HOST} [127.0.0.1]: the TLS handshake failed: Hostname")
        assert (len(first.messages), len(second.messages), unnamed.connections) == (0, 1, 0)

    go(tmp_path, scenario)


@pytest.mark.parametrize("mode", ["none", "off"])
def test_policy_of_none_asks_nothing(tmp_path: Path, mode: str) -> None:
    async def scenario(world: World) -> None:
        await world.host(Peer(certified(tmp_path, "p", "wrong.example")))
        world.policy("none")
        if mode == "off":
            world.begin(sts=False)
        assert told(await world.send()) == (DELIVERED, "opportunistic", True)
        assert len(world.web.requests) == (mode == "none")

    go(tmp_path, scenario)


def test_connection_of_another_domain_is_not_used_where_more_is_asked(tmp_path: Path) -> None:
    """An idle connection carries the trust it was opened with, and no more."""

    async def scenario(world: World) -> None:
        peer = await world.host(Peer(certified(tmp_path, "p", "wrong.example")))
        assert told(await world.send())[0] is DELIVERED
        world.policy("enforce")
        world.clock.advance(400)
        found = await world.send()
        assert told(found) == (DEFERRED, "sts enforce", False), found
        assert len(peer.messages) == 1

    go(tmp_path, scenario)


# DANE.


def test_dane_is_met_by_a_certificate_that_nobody_else_would_take(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        old = make("self", names=["whatever.example"], end=NOW - DAY)
        peer = await world.host(Peer(server_context(tmp_path / "p", old)))
        world.tlsa(str(tlsa(3, 1, 1, old)))
        found = await world.send()
        assert told(found) == (DELIVERED, "dane", True), found
        assert found.tls_reason == f"DNSSEC proves 1 TLSA record of {HOST}"
        assert peer.asked_names == [HOST] and len(peer.messages) == 1
        assert world.counted() == {("tlsa", "success"): 1}

    go(tmp_path, scenario)


def test_dane_by_an_anchor(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        leaf = make("leaf", by=make("middle", by=ALIEN, ca=True), names=[HOST])
        await world.host(Peer(server_context(tmp_path / "p", leaf)))
        world.tlsa(str(tlsa(2, 0, 1, ALIEN)))
        assert told(await world.send()) == (DELIVERED, "dane", True)

    go(tmp_path, scenario)


@pytest.mark.parametrize("sts", [False, True])
@pytest.mark.parametrize("case", ["another key", "no tls", "refuses", "garbled", "bogus", "silent"])
def test_dane_that_fails_sends_nothing_ever_and_mta_sts_excuses_nothing(
    tmp_path: Path, case: str, sts: bool
) -> None:
    async def scenario(world: World) -> None:
        good = make("good", by=ROOT, names=[HOST])
        context = None if case in ("no tls", "refuses", "garbled") else server_context(tmp_path / "p", good)
        peer = await world.host(Peer(context, refuses=case == "refuses", garbled=case == "garbled"))
        world.tlsa(str(tlsa(3, 1, 1, ROOT if case == "another key" else good)))
        name = f"_25._tcp.{HOST}"
        if case == "bogus":
            world.dns.servfail.add(name)
        if case == "silent":
            world.dns.silent.add(name)
        if sts:
            world.policy("enforce" if case != "bogus" else "testing")
        for _ in range(2):
            found = await world.send()
            assert told(found) == (DEFERRED, "dane", False), found
            await world.later(4000)
        assert peer.messages == peer.clear == []
        expected = {
            "another key": "certificate-not-trusted",
            "no tls": "starttls-not-supported",
            "refuses": "starttls-not-supported",
            "garbled": "validation-failure",
        }.get(case, "dnssec-invalid")
        assert world.counted() == {("tlsa", expected): 2}

    go(tmp_path, scenario)


def test_dane_comes_before_mta_sts(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        own = make("self")
        await world.host(Peer(server_context(tmp_path / "p", own)))
        world.tlsa(str(tlsa(3, 1, 1, own)))
        world.policy("enforce", "elsewhere.example")
        assert told(await world.send()) == (DELIVERED, "dane", True)

    go(tmp_path, scenario)


def test_host_without_records_beside_one_with_them(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        own = make("self")
        await world.host(Peer(server_context(tmp_path / "p", own)))
        other = await world.host(Peer(certified(tmp_path, "q", OTHER)), OTHER, preference=20)
        world.tlsa(str(tlsa(3, 1, 1, ROOT)))
        world.policy("enforce", OTHER)
        found = await world.send()
        assert told(found) == (DELIVERED, "sts enforce", True) and found.host == OTHER
        assert len(found.passed_over) == 1 and len(other.messages) == 1

    go(tmp_path, scenario)


@pytest.mark.parametrize("insecure", [DOMAIN, HOST, f"_25._tcp.{HOST}"])
def test_records_count_only_where_dnssec_proves_all_of_the_way(tmp_path: Path, insecure: str) -> None:
    async def scenario(world: World) -> None:
        await world.host(Peer(certified(tmp_path, "p", HOST)))
        world.tlsa(str(tlsa(3, 1, 1, ROOT)))
        world.dns.insecure.add(insecure)
        assert told(await world.send()) == (DELIVERED, "opportunistic", True)

    go(tmp_path, scenario)


@pytest.mark.parametrize(
    ("setting", "expected"), [("loopback", "dane"), ("any", "dane"), ("never", "opportunistic")]
)
def test_whose_word_counts_is_a_setting(tmp_path: Path, setting: str, expected: str) -> None:
    async def scenario(world: World) -> None:
        own = make("self")
        await world.host(Peer(server_context(tmp_path / "p", own)))
        world.tlsa(str(tlsa(3, 1, 1, own)))
        world.resolver._believe_ad = setting  # type: ignore[assignment]
        assert told(await world.send()) == (DELIVERED, expected, True)

    go(tmp_path, scenario)


@pytest.mark.parametrize("has_tls", [True, False])
def test_unusable_records_ask_for_tls_and_for_nobody(tmp_path: Path, has_tls: bool) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer(certified(tmp_path, "p", "x.example", by=ALIEN) if has_tls else None))
        world.tlsa("1 1 1 " + "00" * 32, "3 1 7 00")
        found = await world.send()
        assert told(found) == (DELIVERED if has_tls else DEFERRED, "dane", has_tls), found
        assert len(peer.messages) == has_tls and peer.clear == []
        assert ("tlsa", "tlsa-invalid") in world.counted()

    go(tmp_path, scenario)


def test_records_lie_where_an_alias_leads(tmp_path: Path) -> None:
    """RFC 7672 2.2.2: the name at the end first; what is asked for by SNI is its name."""

    async def scenario(world: World) -> None:
        own = make("self")
        peer = await world.host(Peer(server_context(tmp_path / "p", own)))
        world.dns.update({HOST: {"CNAME": ["real.peer.test"]}, "real.peer.test": {"A": ["127.0.0.1"]}})
        world.tlsa(str(tlsa(3, 1, 1, own)), name="real.peer.test")
        assert told(await world.send()) == (DELIVERED, "dane", True)
        assert peer.asked_names == ["real.peer.test"]

    go(tmp_path, scenario)


@pytest.mark.parametrize("is_alias_proved", [True, False])
def test_alias_out_of_the_signed_zone_keeps_its_own_records(tmp_path: Path, is_alias_proved: bool) -> None:
    async def scenario(world: World) -> None:
        own = make("self")
        await world.host(Peer(server_context(tmp_path / "p", own)))
        world.dns.update({HOST: {"CNAME": ["real.cloud.test"]}, "real.cloud.test": {"A": ["127.0.0.1"]}})
        world.tlsa(str(tlsa(3, 1, 1, own)))
        world.dns.insecure.add("real.cloud.test")
        if not is_alias_proved:
            world.dns.insecure.add(HOST)
        expected = "dane" if is_alias_proved else "opportunistic"
        assert told(await world.send()) == (DELIVERED, expected, True)

    go(tmp_path, scenario)


def test_domain_that_is_its_own_host(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        own = make("self")
        await world.host(Peer(server_context(tmp_path / "p", own)))
        world.dns.update({DOMAIN: {"A": ["127.0.0.1"]}})
        world.tlsa(str(tlsa(3, 1, 1, own)), name=DOMAIN)
        assert told(await world.send()) == (DELIVERED, "dane", True)

    go(tmp_path, scenario)


def test_dane_can_be_switched_off(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        await world.host(Peer(certified(tmp_path, "p", HOST)))
        world.tlsa(str(tlsa(3, 1, 1, ROOT)))
        world.begin(dane=False)
        assert told(await world.send()) == (DELIVERED, "opportunistic", True)
        assert not any(kind == "TLSA" for _, kind, _ in world.dns.asked)

    go(tmp_path, scenario)


# What messages ask themselves.


@pytest.mark.parametrize("by", ["dane", "sts", "dnssec"])
def test_message_that_requires_tls_goes_where_the_way_is_proved(tmp_path: Path, by: str) -> None:
    """RFC 8689 4.2.1: DNSSEC or MTA-STS says who the host is, DANE or an authority vouches for it."""

    async def scenario(world: World) -> None:
        own = make("self") if by == "dane" else make("p", by=ROOT, names=[HOST])
        peer = await world.host(Peer(server_context(tmp_path / "p", own), requiretls=True))
        if by == "dane":
            world.tlsa(str(tlsa(3, 1, 1, own)))
        if by == "sts":
            world.policy("testing")
        world.dns.authenticated = by != "sts"
        found = await world.send(require_tls=True)
        assert told(found) == (DELIVERED, "dane" if by == "dane" else "required", True), found
        assert "the message requires TLS" in found.tls_reason
        assert "MAIL FROM:<s@us.test> REQUIRETLS" in " ".join(peer.commands) or any(
            line.startswith("MAIL") and "REQUIRETLS" in line for line in peer.commands
        )

    go(tmp_path, scenario)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("nothing proves the name", BOUNCED),
        ("sts names another host", BOUNCED),
        ("sts cannot be had", DEFERRED),
        ("no extension", BOUNCED),
        ("tlsa unusable and unknown authority", BOUNCED),
        ("tlsa bogus", DEFERRED),
        ("testing and wrong name", BOUNCED),
    ],
)
def test_message_that_requires_tls_goes_nowhere_else(
    tmp_path: Path, case: str, expected: DeliveryState
) -> None:
    async def scenario(world: World) -> None:
        by = ALIEN if case.startswith("tlsa unusable") else ROOT
        name = "wrong.example" if case == "testing and wrong name" else HOST
        peer = await world.host(
            Peer(certified(tmp_path, "p", name, by=by), requiretls=case != "no extension")
        )
        if case == "sts names another host":
            world.policy("testing", "elsewhere.example")
        if case == "sts cannot be had":
            world.policy("enforce")
            world.web.answer = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n"
        if case in ("no extension", "testing and wrong name"):
            world.policy("testing")
        if case.startswith("tlsa"):
            world.tlsa("3 1 9 00")
        if case == "tlsa bogus":
            world.dns.servfail.add(f"_25._tcp.{HOST}")
        found = await world.send(require_tls=True)
        assert found.state is expected, found
        assert found.enhanced in ("5.7.30", "4.7.30", "4.7.5"), found
        assert peer.messages == peer.clear == []

    go(tmp_path, scenario)


@pytest.mark.parametrize("policy", ["dane", "sts"])
def test_message_that_says_tls_is_not_required_goes_whatever_the_policy(tmp_path: Path, policy: str) -> None:
    """RFC 8689 5: reports about broken TLS must get through it."""

    async def scenario(world: World) -> None:
        await world.host(Peer(certified(tmp_path, "p", "wrong.example")))
        if policy == "dane":
            world.tlsa(str(tlsa(3, 1, 1, ROOT)))
        else:
            world.policy("enforce", "elsewhere.example")
        assert told(await world.send())[0] is DEFERRED
        await world.later(100)
        found = await world.send(letter=replace(LETTER, tls_optional=True))
        assert told(found) == (DELIVERED, "none", True), found
        before = world.counted()
        assert told(await world.send(letter=replace(LETTER, tls_optional=True)))[0] is DELIVERED
        assert world.counted() == before, "what ignores the policy says nothing about it"

    go(tmp_path, scenario)


def test_requirement_outweighs_the_field(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer(certified(tmp_path, "p", "wrong.example"), requiretls=True))
        world.policy("enforce")
        found = await world.send(letter=replace(LETTER, tls_optional=True), require_tls=True)
        assert found.state is BOUNCED and peer.messages == []

    go(tmp_path, scenario)


def test_configured_host_has_no_policy(tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        peer = await world.host(Peer(certified(tmp_path, "p", "wrong.example")))
        world.policy("enforce")
        found = await world.send(hop=f"smtp:127.0.0.1:{peer.port}")
        assert told(found) == (DELIVERED, "opportunistic", True)
        assert "configured" in found.tls_reason and world.web.requests == [] and world.counted() == {}

    go(tmp_path, scenario)
