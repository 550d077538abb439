"""Settings of what rules reach for outside this server: scanners and webhooks.

Owns two sections, as sections owns the others; a module of their own for its length alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator

from server.listen import ListenKind, parse_listen
from server.sections import DAY, FILE, MEBI, SecretFile, Section
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
