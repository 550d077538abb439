"""Settings of bounces, suppressions and unsubscribing.

Owns a section as sections owns the others.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from server.mail.address import AddressSyntax, normalise_domain, parse_domain
from server.settings_kinds import DAY, Section
from server.settings_text import setting


def _domain(text: str) -> str:
    if text == "*":
        return text
    try:
        return normalise_domain(parse_domain(text, smtputf8=True))
    except AddressSyntax as error:
        raise ValueError(f"{text!r} is neither a domain nor *") from error


def _base_url(text: str) -> str:
    if text and not text.startswith(("https://", "http://")):
        raise ValueError("it begins with https://")
    return text.rstrip("/")


class Bounces(Section):
    """What comes back: return paths that tell of their recipient, suppressions, one-click unsubscribing."""

    verp: Annotated[
        tuple[Annotated[str, AfterValidator(_domain)], ...], Field(strict=False, max_length=10_000)
    ] = setting(
        (),
        "Domains whose mail leaves with a signed return path of its own for each recipient, so that every "
        "bounce is known by its address. The domain is that of From; each recipient gets a transaction of "
        "its own.",
        allowed='domain names, or "*" for all domains of this server',
    )
    verp_expiry_seconds: int = setting(
        30 * DAY, "How long such an address takes bounces.", at_least=DAY, at_most=366 * DAY
    )
    soft_failures: int = setting(
        3,
        "After how many failures in a row that were the recipient's own, but may pass (a full mailbox), an "
        "address is suppressed.",
        unit="messages",
        at_least=1,
        at_most=1000,
    )
    soft_window_seconds: int = setting(
        30 * DAY, "Within what time they count as a row.", at_least=3600, at_most=366 * DAY
    )
    half_life_seconds: int = setting(
        7 * DAY,
        "How long such a suppression holds before one message may try the address again. It ends when that "
        "is taken, and holds twice as long when it is not.",
        at_least=60,
        at_most=366 * DAY,
    )
    hard_expiry_seconds: int = setting(
        0,
        "How long an address stays suppressed that does not exist. 0: until somebody removes it.",
        at_least=0,
        at_most=3660 * DAY,
    )
    unsubscribe: Literal["off", "bulk", "all"] = setting(
        "off",
        "Whose mail gets List-Unsubscribe and List-Unsubscribe-Post fields (RFC 8058), where it has one "
        "recipient and no such field: that of credentials and keys with the scope bulk, or of all.",
    )
    unsubscribe_url: Annotated[str, AfterValidator(_base_url)] = setting(
        "",
        "Where readers reach this server's HTTP role for that: /unsubscribe/ is added.",
        allowed="empty (then no such field is added), or the beginning of an https:// address",
    )
