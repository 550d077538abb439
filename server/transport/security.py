"""What a connection to another server must prove, and what is said of it afterwards.

Owns the nouns that the choice of a policy, the handshake and the reports share. Pure.
RFC 7435 (opportunistic), RFC 8461 (MTA-STS), RFC 7672 (DANE), RFC 8460 4.3 (result types).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """What is asked of a host before it gets content.

    OPPORTUNISTIC: TLS if it can be had. TRIED: a certificate is asked for, and the connection used without
    one all the same. ENCRYPTED: TLS, whoever is there. WEBPKI: TLS with a certificate for the host's name by
    the system's authorities. DANE: TLS with what the host's TLSA records name.
    """

    OPPORTUNISTIC = "opportunistic"
    TRIED = "tried"
    ENCRYPTED = "encrypted"
    WEBPKI = "webpki"
    DANE = "dane"


@dataclass(frozen=True, slots=True, order=True)
class Tlsa:
    """One TLSA record (RFC 6698 2.1)."""

    usage: int
    selector: int
    matching: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.usage} {self.selector} {self.matching} {self.data.hex()}"


@dataclass(frozen=True, slots=True)
class Security:
    """What a connection needs. names: reference identifiers of DANE-TA, the first is sent as SNI."""

    level: Level = Level.OPPORTUNISTIC
    names: tuple[str, ...] = ()
    tlsa: tuple[Tlsa, ...] = ()

    @property
    def needs_tls(self) -> bool:
        """Whether nothing may go in clear."""
        return self.level in (Level.ENCRYPTED, Level.WEBPKI, Level.DANE)


OPPORTUNISTIC = Security()
TRIED = Security(Level.TRIED)
WEBPKI = Security(Level.WEBPKI)


class ResultType(str, Enum):
    """What went wrong with TLS, in the words of RFC 8460 4.3."""

    NO_STARTTLS = "starttls-not-supported"
    HOST_MISMATCH = "certificate-host-mismatch"
    EXPIRED = "certificate-expired"
    NOT_TRUSTED = "certificate-not-trusted"
    VALIDATION = "validation-failure"
    TLSA_INVALID = "tlsa-invalid"
    DNSSEC_INVALID = "dnssec-invalid"
    DANE_REQUIRED = "dane-required"
    STS_FETCH = "sts-policy-fetch-error"
    STS_INVALID = "sts-policy-invalid"
    STS_WEBPKI = "sts-webpki-invalid"


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of TLS or of a policy: its type, words for people, and a reason code for reports."""

    type: ResultType
    text: str
    code: str = ""


class PolicyType(str, Enum):
    """Which policy a session is reported under (RFC 8460 4.4)."""

    TLSA = "tlsa"
    STS = "sts"
    NONE = "no-policy-found"


@dataclass(frozen=True, slots=True)
class Reported:
    """A policy as reports tell it. domain: where it is defined; hosts: MX patterns of MTA-STS."""

    type: PolicyType
    domain: str
    lines: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """Which policy governs a host, and why: for the timeline, and for reports.

    name: 'dane', 'sts enforce', 'sts testing', 'required', 'opportunistic' or 'none'.
    faults: what was wrong before any connection, in the policy or in what it says of the host.
    """

    name: str = "opportunistic"
    why: str = ""
    reported: Reported | None = None
    faults: tuple[Fault, ...] = ()


NO_POLICY = Applied()
