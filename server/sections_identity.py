"""Settings of who this server says it is: the keys that it signs with.

Owns sections as sections owns the others.
"""

from __future__ import annotations

from server.settings_kinds import DAY, HOUR, Section
from server.settings_text import setting


class Dkim(Section):
    """How the keys of DKIM signatures are replaced: see `mailagents domain dkim`."""

    rotate_days: int = setting(
        0,
        "Age of a domain's keys at which new ones are made. They sign when their records are in the DNS, "
        "however long that takes; postmaster of the domain is told what to publish. 0: only "
        "`mailagents domain dkim rotate` makes new keys.",
        unit="days",
        at_least=0,
        at_most=3660,
    )
    look_seconds: int = setting(
        300, "How often the DNS is asked for the records of new keys.", at_least=1, at_most=DAY
    )
    settle_seconds: int = setting(
        HOUR,
        "How long the records of all new keys must have been seen, without a gap, before they sign. Where "
        "the records' TTL is longer, that counts.",
        at_least=0,
        at_most=7 * DAY,
    )
    retire_seconds: int = setting(
        7 * DAY,
        "How long the records of old keys stay needed for mail on the way. While mail that they may have "
        "signed is in the queue, they stay needed for longer.",
        at_least=0,
        at_most=366 * DAY,
    )
    watch_records: bool = setting(
        True,
        "Ask the DNS once a day whether the records of keys that sign are still there, and tell postmaster "
        "of the domain when one is gone.",
    )
