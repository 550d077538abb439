"""Which policy protects the way to each host of a domain: DANE, else MTA-STS, else what can be had.

Owns the order of the policies and what each asks of a host: usable TLSA records come before
MTA-STS, which never excuses what DANE finds wrong; a host whose TLSA records cannot be looked
up is passed over. Opens no connection. RFC 7672 2.2, RFC 8461 2 and 5, RFC 8689 4.2.1 and 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from server.transport import tlsa
from server.transport.dane import DANE_TA
from server.transport.mtasts import Mode, matches
from server.transport.policies import Sts
from server.transport.security import (
    OPPORTUNISTIC,
    TRIED,
    WEBPKI,
    Applied,
    Fault,
    Level,
    PolicyType,
    Reported,
    ResultType,
    Security,
)

if TYPE_CHECKING:
    from server.delivery.exchangers import Exchanger
    from server.dns import Resolver
    from server.transport.policies import StsPolicies
    from server.transport.tlsa import Anchors

NO_STS = Sts()
OPTIONAL = Applied("none", "the message says that TLS is not required")
CONFIGURED = Applied("opportunistic", "a configured host")


class Protection:
    """Finds the policy of each host. sts: None where MTA-STS is off; dane: whether TLSA records count."""

    def __init__(self, *, resolver: Resolver, sts: StsPolicies | None, dane: bool) -> None:
        self._resolver = resolver
        self._sts = sts
        self._dane = dane

    async def of_domain(self, domain: str, exchangers: Sequence[Exchanger]) -> tuple[Exchanger, ...]:
        """Return the hosts of a domain with what each must prove."""
        if domain.startswith("["):
            return tuple(exchangers)
        sts = await self._sts.find(domain) if self._sts is not None else NO_STS
        anchors = await asyncio.gather(*(self._anchors(one) for one in exchangers))
        return tuple(
            guard(exchanger, domain, sts, found) for exchanger, found in zip(exchangers, anchors, strict=True)
        )

    async def _anchors(self, exchanger: Exchanger) -> Anchors:
        if not self._dane or not exchanger.tlsa_names:
            return tlsa.NONE
        return await tlsa.find_anchors(self._resolver, exchanger.tlsa_names)


def guard(exchanger: Exchanger, domain: str, sts: Sts, anchors: Anchors) -> Exchanger:
    """Return a host with what it must prove: by DANE, else by MTA-STS, else by nothing."""
    if anchors.fault is not None:
        return _refused(exchanger, _dane(exchanger, anchors, anchors.fault.text), anchors.fault)
    if anchors.base:
        return _by_dane(exchanger, anchors)
    if sts.policy is not None and sts.policy.mode is not Mode.NONE:
        return _by_sts(exchanger, domain, sts)
    why = "the domain has no policy"
    faults: tuple[Fault, ...] = ()
    if sts.fault is not None:
        why, faults = f"its MTA-STS policy cannot be had: {sts.fault.text}", (sts.fault,)
    elif sts.is_unknown:
        why = "whether it has an MTA-STS policy is not known now"
    applied = Applied("opportunistic", why, Reported(PolicyType.NONE, domain), faults)
    return _guarded(exchanger, OPPORTUNISTIC, replace(applied, faults=faults), is_unknown=sts.is_unknown)


def _by_dane(exchanger: Exchanger, anchors: Anchors) -> Exchanger:
    if not anchors.records:
        # RFC 7672 2.2: TLS is a must, and nobody is authenticated.
        fault = Fault(ResultType.TLSA_INVALID, f"no TLSA record of {anchors.base} is usable")
        applied = replace(_dane(exchanger, anchors, fault.text), faults=(fault,))
        return _guarded(exchanger, Security(Level.ENCRYPTED), applied)
    why = (
        f"DNSSEC proves {len(anchors.records)} TLSA record{'s'[: len(anchors.records) > 1]} of {anchors.base}"
    )
    # RFC 7672 3.2.2: the names that a certificate below an anchor may be for. DANE-EE asks for none, so that
    # domains behind one host share its connections.
    names = [anchors.base]
    if any(one.usage == DANE_TA for one in anchors.records):
        names += [exchanger.host, exchanger.domain]
    security = Security(Level.DANE, tuple(dict.fromkeys(filter(None, names))), anchors.records)
    return _guarded(exchanger, security, _dane(exchanger, anchors, why))


def _dane(exchanger: Exchanger, anchors: Anchors, why: str) -> Applied:
    base = anchors.base or exchanger.host
    return Applied("dane", why, Reported(PolicyType.TLSA, base, tuple(map(str, anchors.records))))


def _by_sts(exchanger: Exchanger, domain: str, sts: Sts) -> Exchanger:
    policy = sts.policy
    assert policy is not None
    applied = Applied(
        f"sts {policy.mode.value}",
        f"the MTA-STS policy of {domain}{' as it was kept' if sts.is_cached else ''}",
        Reported(PolicyType.STS, domain, policy.lines, policy.mx),
        (sts.fault,) if sts.fault is not None else (),
    )
    if matches(policy, exchanger.host):
        security = WEBPKI if policy.mode is Mode.ENFORCE else TRIED
        return replace(_guarded(exchanger, security, applied), is_named=True)
    fault = Fault(ResultType.VALIDATION, f"{exchanger.host} is no host of the MTA-STS policy", "mx-mismatch")
    if policy.mode is Mode.ENFORCE:
        return _refused(exchanger, applied, fault)
    return _guarded(exchanger, OPPORTUNISTIC, replace(applied, faults=(*applied.faults, fault)))


def _guarded(
    exchanger: Exchanger, security: Security, applied: Applied, *, is_unknown: bool = False
) -> Exchanger:
    endpoints = tuple(replace(one, security=security) for one in exchanger.endpoints)
    return replace(exchanger, endpoints=endpoints, applied=applied, is_unknown=is_unknown)


def _refused(exchanger: Exchanger, applied: Applied, fault: Fault) -> Exchanger:
    return replace(exchanger, applied=applied, obstacle=fault)


def required(exchanger: Exchanger, *, by: str) -> Exchanger:
    """Return a host as a message wants it that goes only under verified TLS. by: who asks for that.

    DANE stays what it is; anything less becomes a certificate for the host's name by the authorities.
    """
    name = exchanger.applied.name
    if exchanger.obstacle is not None:
        return exchanger
    if exchanger.endpoints[0].security.level is Level.DANE:
        return replace(
            exchanger, applied=replace(exchanger.applied, why=f"{exchanger.applied.why}, and {by}")
        )
    known = exchanger.applied.reported
    applied = Applied(
        "required",
        f"{by}{f', and {exchanger.applied.why}' if name.startswith('sts') else ''}",
        # What a domain without a policy does not pass is our own demand, and no matter for reports.
        known if known is not None and known.type is PolicyType.STS else None,
        exchanger.applied.faults,
    )
    return _guarded(exchanger, WEBPKI, applied, is_unknown=exchanger.is_unknown)


def relaxed(exchanger: Exchanger) -> Exchanger:
    """Return a host as a message wants it that says `TLS-Required: No` (RFC 8689 5)."""
    return replace(_guarded(exchanger, OPPORTUNISTIC, OPTIONAL), obstacle=None)
