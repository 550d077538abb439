"""Settings of what clients of the MX door may bring, by where they come from.

Owns a section as sections owns the others.
"""

from __future__ import annotations

from server.settings_kinds import Networks, Section
from server.settings_text import setting

_MOST = 10_000_000


class Protection(Section):
    """What unknown servers may bring to smtp.listen_mx; counted in memory, by each process for itself.

    A limit is that of an address, an IPv6 /64 counting as one. 0: no limit.
    """

    exempt_networks: Networks = setting(
        ("127.0.0.0/8", "::1/128"),
        "Who is not counted and greeted at once: networks of the house, relays in front of it.",
    )
    connections_per_minute: int = setting(
        300,
        "New connections of an address in a minute; more get 421 4.7.0.",
        unit="connections",
        at_least=0,
        at_most=_MOST,
    )
    messages_per_hour: int = setting(
        10_000,
        "Messages of an address in an hour; MAIL gets 451 4.7.1 beyond.",
        unit="messages",
        at_least=0,
        at_most=_MOST,
    )
    recipients_per_hour: int = setting(
        20_000,
        "Recipients of an address in an hour; RCPT gets 451 4.7.1 beyond.",
        unit="recipients",
        at_least=0,
        at_most=_MOST,
    )
    unknown_recipients_per_hour: int = setting(
        300,
        "Recipients that do not exist, asked for by an address in an hour; beyond, its connections get 421 "
        "4.7.0.",
        unit="recipients",
        at_least=0,
        at_most=_MOST,
    )
    network_factor: int = setting(
        4,
        "How many times as much the network around an address (/24, or /48 of IPv6) may bring.",
        unit="times",
        at_least=1,
        at_most=65_536,
    )
    greeting_delay_seconds: float = setting(
        1.0,
        "How long the greeting is kept back from an address that has not waited for one in a week; who "
        "speaks meanwhile is no mail server (RFC 5321 4.3.1) and gets 554 5.5.1. 0: no delay.",
        at_least=0,
        at_most=60,
    )
    tarpit_after: int = setting(
        10,
        "After so many recipients that do not exist in an hour, each further refusal to that address is kept "
        "back, tarpit_step_seconds longer each time.",
        unit="recipients",
        at_least=0,
        at_most=_MOST,
    )
    tarpit_step_seconds: float = setting(0.5, "0: no refusal is kept back.", at_least=0, at_most=60)
    tarpit_most_seconds: float = setting(
        10.0, "A refusal is kept back no longer than this.", at_least=0, at_most=120
    )
