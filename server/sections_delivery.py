"""Settings of the queue and of delivery to other servers.

Each is declared once, with its type, unit, default and the text that the documentation shows.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from server.settings_kinds import (
    DAY,
    FILE,
    HOUR,
    NEXT_HOP,
    SecretFile,
    Section,
    fixed_hop,
    ip_text,
    next_hop,
    rate,
    zone,
)
from server.settings_text import setting


class Delivery(Section):
    """The queue and the delivery to other servers."""

    routes: Annotated[dict[str, Annotated[str, AfterValidator(next_hop)]], Field(max_length=10_000)] = (
        setting(
            {},
            'Next hop by recipient domain, as a table: "example.net" = "smtp:192.0.2.1:25". '
            "A name that begins with a dot stands for all domains below it.",
            allowed="a table of domain = next hop; a next hop is " + NEXT_HOP,
        )
    )
    default_route: Annotated[str, AfterValidator(next_hop)] = setting(
        "mx",
        "Next hop of all other domains. mx asks the DNS (RFC 5321 5.1); capture keeps mail in the outbox "
        "directory of the data directory instead of sending it; refuse bounces it.",
        allowed=NEXT_HOP,
    )
    organization_routes: Annotated[
        dict[str, Annotated[str, AfterValidator(next_hop)]], Field(max_length=10_000)
    ] = setting(
        {},
        "Next hop by organization, id or name, for domains that routes do not name.",
        allowed="a table of organization = next hop; a next hop is " + NEXT_HOP,
    )
    logins: Annotated[dict[str, SecretFile], Field(max_length=1000)] = setting(
        {},
        "What is shown to smart hosts, as a table of NAME = file. The file has the user on its first line "
        "and the password on the second. A next hop asks for it by ,login=NAME.",
        allowed="a table of name = " + FILE,
    )
    relay_lane: Annotated[str, AfterValidator(fixed_hop)] = setting(
        "",
        "Smart host for what goes by the DNS and is refused for the reputation of this server's address: the "
        "destination is sent to through it for relay_lane_seconds. All goes through it while one of "
        "blocklists lists one of public_addresses.",
        allowed="empty, or a next hop with a host",
    )
    relay_lane_seconds: int = setting(
        7 * DAY, "How long a destination that refused goes by the relay lane.", at_least=60, at_most=90 * DAY
    )
    blocklists: Annotated[tuple[Annotated[str, AfterValidator(zone)], ...], Field(strict=False)] = setting(
        (), "DNS lists in which public_addresses are looked for every ten minutes.", allowed="a list of zones"
    )
    public_addresses: Annotated[tuple[Annotated[str, AfterValidator(ip_text)], ...], Field(strict=False)] = (
        setting((), "The addresses that this server's mail comes from.", allowed="a list of IP addresses")
    )
    forwarded_sender: Literal["ours", "original"] = setting(
        "ours",
        "Envelope sender of mail that a route or rule forwards to another server. ours is an address in the "
        "domain that forwards, so that SPF passes there; bounces to it go back to the sender for 30 days. "
        "original keeps the sender's, for next hops that know this server as a forwarder.",
    )
    concurrency: int = setting(100, "Attempts at once.", unit="attempts", at_least=1, at_most=10_000)
    per_domain_concurrency: int = setting(
        20, "Connections at once to one domain.", unit="connections", at_least=1, at_most=1000
    )
    per_provider_concurrency: int = setting(
        50,
        "Connections at once to the hosts of one provider, whatever domains they serve: known by the last "
        "labels of the host that an MX record names.",
        unit="connections",
        at_least=1,
        at_most=10_000,
    )
    rates: Annotated[dict[str, Annotated[str, AfterValidator(rate)]], Field(max_length=10_000)] = setting(
        {},
        'Most recipients in a time, by domain ("example.net" = "100/minute") or by provider '
        '("mx:google.com" = "10/second").',
        allowed="a table of domain or mx:PROVIDER = N/second, N/minute, N/hour or N/day",
    )
    source_addresses: Annotated[dict[Annotated[str, AfterValidator(ip_text)], str], Field(max_length=256)] = (
        setting(
            {},
            "Addresses of this machine that mail leaves from, with the name of each in EHLO (empty: "
            "server.hostname). A destination keeps to one of them. Empty: the system chooses.",
            allowed="a table of IP address = name",
        )
    )
    source_pools: Annotated[
        dict[str, tuple[Annotated[str, AfterValidator(ip_text)], ...]], Field(strict=False, max_length=256)
    ] = setting(
        {},
        "Addresses that are kept for some organizations: they leave the common pool.",
        allowed="a table of pool = list of IP addresses",
    )
    organization_pools: Annotated[dict[str, str], Field(max_length=10_000)] = setting(
        {}, "Pool by id of an organization.", allowed="a table of organization = pool"
    )
    warm_up: Annotated[dict[Annotated[str, AfterValidator(ip_text)], date], Field(max_length=256)] = setting(
        {},
        "First day of addresses that are new: from then on one sends to warm_up_first_day recipients a day, "
        "twice as many every two days, for four weeks. What is beyond that waits.",
        allowed="a table of IP address = date, such as 2026-12-01",
    )
    warm_up_first_day: int = setting(
        500, "What a new address may send to in a day at first.", unit="recipients", at_least=1, at_most=10**7
    )
    messages_per_connection: int = setting(
        100,
        "Messages after which a connection is not used again.",
        unit="messages",
        at_least=1,
        at_most=100_000,
    )
    connection_idle_seconds: float = setting(
        5.0, "How long a connection is kept for the next message.", at_least=0, at_most=300
    )
    connect_timeout_seconds: float = setting(
        30.0, "Wait for a TCP connection to one address.", at_least=0.1, at_most=300
    )
    command_timeout_seconds: float = setting(
        300.0,
        "Wait for the reply to a command; RFC 5321 4.5.3.2 asks for 5 minutes.",
        at_least=0.1,
        at_most=HOUR,
    )
    data_timeout_seconds: float = setting(
        600.0,
        "Wait for the reply after the final dot; RFC 5321 4.5.3.2.6 asks for 10 minutes.",
        at_least=0.1,
        at_most=HOUR,
    )
    retry_first_seconds: int = setting(
        60, "Wait before the second attempt; it doubles from there, with jitter.", at_least=1, at_most=DAY
    )
    retry_max_seconds: int = setting(4 * HOUR, "Longest wait between attempts.", at_least=1, at_most=7 * DAY)
    expiry_api_seconds: int = setting(
        2 * DAY, "How long delivery is tried for messages sent over the API.", at_least=60, at_most=30 * DAY
    )
    expiry_submission_seconds: int = setting(
        5 * DAY,
        "How long delivery is tried for all other messages; RFC 5321 4.5.4.1 asks for 4 to 5 days.",
        at_least=60,
        at_most=30 * DAY,
    )
    in_doubt: Literal["retry", "ask"] = setting(
        "retry",
        "What becomes of a message of which it is not known whether the next server has it: the connection "
        "broke after all of it was sent, or this server stopped while it was being sent. retry sends it "
        "again, with the same Message-ID, as RFC 5321 asks; it may come twice. ask holds it until somebody "
        "says what is true (`mailagents queue verdict`). Rules can ask for single messages (ask_in_doubt).",
    )
    in_doubt_deadline_seconds: int = setting(
        DAY, "How long such a message waits for that word. 0: for ever.", at_least=0, at_most=30 * DAY
    )
    in_doubt_unanswered: Literal["bounce", "retry", "sent"] = setting(
        "bounce",
        "What becomes of it then: returned to its sender, who is told that it may have arrived; sent again; "
        "or taken for sent.",
    )
    held_expiry_seconds: int = setting(
        30 * DAY,
        "How long held mail waits for a person to release it. 0: for ever.",
        at_least=0,
        at_most=366 * DAY,
    )
    held_expiry_answer: Literal["bounce", "own", "discard"] = setting(
        "own",
        "What becomes of held mail then: bounced to its sender; or bounced to senders of this server and "
        "discarded where it came from elsewhere, since a stranger's address may be forged; or discarded. The "
        "timeline says so in each case.",
    )
    undo_seconds: int = setting(
        600,
        "How long hold, release, retry and cancel can be taken back (`mailagents queue undo`). The content "
        "of what was cancelled is kept for as long.",
        at_least=0,
        at_most=7 * DAY,
    )
    delay_notice_seconds: int = setting(
        4 * HOUR,
        "When the sender is told that a message is still in the queue. 0: never.",
        at_least=0,
        at_most=30 * DAY,
    )
    allow_private_addresses: bool = setting(
        False,
        "Let delivery connect to loopback, link-local and private addresses that the DNS gives. "
        "Addresses written in routes are always allowed.",
    )
