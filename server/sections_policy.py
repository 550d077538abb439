"""Settings of judging: policies, their limits, the folder Rejects, scanners and webhooks.

Owns sections as sections owns the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from policies.facts import LIMIT_PREFIX, LIMITS
from server.listen import ListenKind, parse_listen
from server.settings_kinds import DAY, FILE, MEBI, PATH, Directory, SecretFile, Section
from server.settings_text import setting

Absence = Literal["accept", "defer", "tag"]
SCANNER = "empty, tcp:HOST:PORT or unix:PATH"


def _place(text: str) -> str:
    if text:
        found = parse_listen(text)
        if found.kind not in (ListenKind.TCP, ListenKind.UNIX) or found.proxy:
            raise ValueError("a scanner is reached by tcp:HOST:PORT or unix:PATH")
    return text


Place = Annotated[str, AfterValidator(_place)]


class Policy(Section):
    """The rules that judge messages."""

    directory: Directory = setting(
        Path("/etc/mailagents/policies"),
        "Directory whose *.toml files hold the rules, read in the order of their names.",
        allowed=PATH,
    )
    list_reload_seconds: float = setting(
        10.0,
        "How often the files of lists are looked at for changes. 0: on reload alone.",
        at_least=0,
        at_most=DAY,
    )


def _limit(name: str) -> Any:
    limit = LIMITS[name]
    used = f" Rules call it {LIMIT_PREFIX}{name}."
    return setting(limit.default, limit.meaning + used, unit=limit.unit, at_least=0, at_most=1_000_000_000)


class Limits(Section):
    """Figures that policy rules name: what senders of this server may do. Rules enforce them, no code."""

    key_hour: int = _limit("key_hour")
    key_day: int = _limit("key_day")
    organization_hour: int = _limit("organization_hour")
    organization_day: int = _limit("organization_day")
    message_recipients: int = _limit("message_recipients")
    similar_bodies_hour: int = _limit("similar_bodies_hour")
    new_recipient_percent: int = _limit("new_recipient_percent")
    bounce_permille: int = _limit("bounce_permille")
    complaint_permille: int = _limit("complaint_permille")
    settled_least: int = _limit("settled_least")
    warmup_first_days: int = _limit("warmup_first_days")

    @property
    def figures(self) -> dict[str, int]:
        """The figures by name, as compile_rules takes them."""
        return {name: getattr(self, name) for name in LIMITS}


class Rejects(Section):
    """The folder Rejects: what rules refuse with reason = "reputation", kept for the recipients."""

    keep_seconds: int = setting(
        7 * DAY,
        "How long refused mail is kept in Rejects. 0: it is not.",
        at_least=0,
        at_most=366 * DAY,
    )
    max_messages: int = setting(
        500,
        "How many of them an inbox holds; the oldest go first.",
        unit="messages",
        at_least=1,
        at_most=100_000,
    )
    max_octets: int = setting(
        25 * MEBI,
        "How much of it an inbox holds; a larger message is not kept. Of an inbox with a quota Rejects never "
        "fills the last tenth.",
        at_least=64 * 1024,
        at_most=1024 * MEBI,
    )


class Scanners(Section):
    """ClamAV and rspamd, which look into messages where a rule asks for it."""

    clamav_address: Place = setting(
        "", "Where clamd listens, usually unix:/run/clamav/clamd.ctl. Empty: no virus scans.", allowed=SCANNER
    )
    clamav_timeout_seconds: float = setting(
        30.0, "How long a message waits for its virus scan.", at_least=0.1, at_most=300
    )
    clamav_max_octets: int = setting(
        25 * MEBI,
        "Messages larger than this are not scanned, which rules see. clamd's own StreamMaxLength is best not "
        "below it.",
        at_least=1024,
        at_most=2048 * MEBI,
    )
    clamav_concurrency: int = setting(
        8, "Virus scans at once; clamd's MaxThreads is 10.", unit="scans", at_least=1, at_most=1000
    )
    clamav_if_absent: Absence = setting(
        "defer",
        "What the shipped rules do where clamd does not answer: accept the message, defer it (451), or tag "
        "it with the keyword $Unscanned.",
    )
    rspamd_address: Place = setting(
        "",
        "Where a normal or proxy worker of rspamd listens, usually tcp:127.0.0.1:11333. Empty: no scans.",
        allowed=SCANNER,
    )
    rspamd_timeout_seconds: float = setting(
        15.0, "How long a message waits for rspamd, whose own limit is 8.", at_least=0.1, at_most=300
    )
    rspamd_max_octets: int = setting(
        10 * MEBI, "Messages larger than this are not scanned, which rules see.", at_least=1024,
        at_most=2048 * MEBI,
    )  # fmt: skip
    rspamd_concurrency: int = setting(
        16, "Scans by rspamd at once.", unit="scans", at_least=1, at_most=1000
    )  # fmt: skip
    rspamd_if_absent: Absence = setting("accept", "What the shipped rules do where rspamd does not answer.")

    @property
    def configured(self) -> frozenset[str]:
        """The scanners that are there, by the names that rules need them under."""
        there = {"clamav": self.clamav_address, "rspamd": self.rspamd_address}
        return frozenset(name for name, address in there.items() if address)


class Webhooks(Section):
    """What the action webhook of a rule calls."""

    secret_file: SecretFile = setting(
        "",
        "File with the secret that signs the calls: whsec_ and base64 of 24 to 64 octets (Standard "
        "Webhooks). Empty: webhook.secret in the data directory, made when it is first needed.",
        allowed="empty, " + FILE,
        masks="file",
    )
    allow_private_addresses: bool = setting(
        False,
        "Let calls go to loopback, link-local and private addresses, and there by http:// as well.",
    )
    timeout_seconds: float = setting(
        15.0, "Time for one call, from the look-up of the name to the answer.", at_least=0.5, at_most=120
    )
    expiry_hours: int = setting(
        24, "How long a call is tried again; the waits between double from 5 seconds to 2 hours.",
        unit="hours", at_least=1, at_most=30 * DAY // 3600,
    )  # fmt: skip
    concurrency: int = setting(
        16, "Calls at once, four of them to one host.", unit="calls", at_least=1, at_most=1000
    )
