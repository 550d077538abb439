"""What an aggregate report tells of one message, taken from its checks.

Owns the observation: domains, results and the policy that was found, no address and
nothing of the content. Only messages whose domain asks for reports are observed; a report
that passes DMARC is not, lest two servers report about reports for ever. RFC 9990 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.mail.header import HeaderField
from server.sender_auth import dmarc
from storage.records import Action, Verdict

MAX_SIGNATURES = 10  # of one message that are told; RFC 9990 3.1.3 asks for no more than 100
MAX_NAME = 255  # characters of a selector that are told
_ABOUT_REPORTS = b"report domain:"


@dataclass(frozen=True, slots=True)
class Published:
    """The policy as it was found, with its defaults. rua: as written."""

    domain: str
    p: str
    sp: str
    np: str
    adkim: str
    aspf: str
    fo: str
    is_testing: bool
    rua: str


@dataclass(frozen=True, slots=True)
class Observation:
    """One message's results. signatures: domain, selector, result; spf: domain, result, '' for none.

    requested: what the owner asks for on failure, testing considered; full: without testing.
    envelope_from: '' for the null reverse-path. forwarder: an ARC sealer that is believed.
    """

    published: Published
    header_from: str
    envelope_from: str
    result: str
    requested: str
    full: str
    dkim_aligned: bool
    spf_aligned: bool
    signatures: tuple[tuple[str, str, str], ...]
    spf: tuple[str, str]
    forwarder: str = ""


@dataclass(frozen=True, slots=True)
class Observed(Verdict):
    """DMARC's verdict on a message that counts for a report."""

    observation: Observation | None = None


def observe(
    evaluation: dmarc.Evaluation,
    records: dmarc.Records,
    verdicts: Sequence[Verdict],
    fields: Sequence[HeaderField],
    *,
    exists: bool,
) -> Observation | None:
    """Return what a report tells of a message, None where nobody asks or nothing was decided.

    verdicts: of SPF and DKIM, and ARC's if there is one. exists: whether the author domain does.
    """
    if evaluation.result not in ("pass", "fail"):
        return None
    record = records.found[evaluation.record_domain]
    if not record.rua or (evaluation.result == "pass" and _is_report(fields)):
        return None
    author = evaluation.author
    spf = next(one for one in verdicts if one.method == "spf")
    found = [one for one in verdicts if one.method == "dkim" and one.domain]
    aligned = {
        one.domain: dmarc.is_aligned(author, one.domain, records, is_strict=record.is_dkim_strict)
        for one in found
        if one.result == "pass"
    }
    return Observation(
        published=_published(evaluation.record_domain, record),
        header_from=author,
        envelope_from=spf.properties.get("smtp.mailfrom", "").rpartition("@")[2].lower()[:MAX_NAME],
        result=evaluation.result,
        requested=evaluation.policy,
        full=record.p if author == evaluation.record_domain else record.sp if exists else record.np,
        dkim_aligned=any(aligned.values()),
        spf_aligned=spf.result == "pass"
        and dmarc.is_aligned(author, spf.domain, records, is_strict=record.is_spf_strict),
        signatures=_signatures(author, found, aligned),
        spf=(spf.domain, spf.result) if spf.domain else ("", ""),
        forwarder=next((one.domain for one in verdicts if "policy.believed" in one.properties), ""),
    )


def _is_report(fields: Sequence[HeaderField]) -> bool:
    subject = next((field.value for field in fields if field.name.lower() == b"subject"), b"")
    return subject.lower().startswith(_ABOUT_REPORTS)


def _published(domain: str, record: dmarc.Record) -> Published:
    return Published(
        domain=domain,
        p=record.p,
        sp=record.sp,
        np=record.np,
        adkim="s" if record.is_dkim_strict else "r",
        aspf="s" if record.is_spf_strict else "r",
        fo=record.fo[:MAX_NAME],
        is_testing=record.is_testing,
        rua=record.rua,
    )


def _signatures(
    author: str, found: Sequence[Verdict], aligned: dict[str, bool]
) -> tuple[tuple[str, str, str], ...]:
    """Return the signatures that say most (RFC 9990 3.1.3), in the same order for the same set."""

    def rank(one: Verdict) -> tuple[object, ...]:
        passed = one.result == "pass"
        told = one.domain, one.properties.get("header.s", ""), one.result
        return not (passed and one.domain == author), not (passed and aligned[one.domain]), not passed, *told

    chosen = sorted(found, key=rank)[:MAX_SIGNATURES]
    return tuple((one.domain, one.properties.get("header.s", "")[:MAX_NAME], one.result) for one in chosen)


def disposition(
    observation: Observation, actions: Sequence[Action], *, refused: bool = False
) -> tuple[str, str]:
    """Return what was done by DMARC's policy, and the type of the reason where it is less than asked for.

    actions: of the decisions on a message that was taken, one an organization. What was done
    beyond the owner's wish has other reasons, which are nobody's affair (RFC 9990 8.3).
    """
    if observation.result == "pass":
        return ("none" if observation.full == "none" else "pass"), ""
    if refused:
        done = "reject"
    elif actions and all(one in (Action.QUARANTINE, Action.HOLD, Action.DISCARD) for one in actions):
        done = "quarantine"
    else:
        done = "none"
    order = dmarc.POLICIES.index
    done = min(done, observation.requested, key=order)
    if done == observation.full:
        return done, ""
    if done == observation.requested:
        return done, "policy_test_mode"
    return done, "trusted_forwarder" if observation.forwarder else "local_policy"
