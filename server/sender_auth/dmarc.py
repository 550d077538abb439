"""DMARC: does an authenticated identifier stand behind the author domain.

Owns the records' grammar, the tree walk and the evaluation to RFC 9989, pure:
the caller resolves the names that `walk` gives and hands in what was found and
what could not be. There is no `pct`; `t=y` asks for one step less than the
policy says. Decides nothing: the policy is what the domain's owner asks for.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

MAX_QUERIES = 8  # RFC 9989 4.10: names of more labels make no more queries than this
MAX_RECORD_OCTETS = 8192
KNOWN_CHARACTERS = 512  # of a record that is remembered
POLICIES = ("none", "quarantine", "reject")
_VERSION = re.compile(r"[vV][ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")
_TAG = re.compile(r"[ \t]*([A-Za-z]+)[ \t]*=([^;]*)")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_SIZE = re.compile(r"![0-9]+[kmgtKMGT]?\Z")


@dataclass(frozen=True, slots=True)
class Record:
    """One DMARC record.

    p: '' where the record has no usable policy and names no place for reports, so that
    nothing is to be processed. sp and np already hold what they fall back to. psd: 'y', 'n' or 'u'.
    rua: the places for aggregate reports as they are written, '' for none.
    """

    p: str
    sp: str
    np: str
    is_dkim_strict: bool = False
    is_spf_strict: bool = False
    psd: str = "u"
    is_testing: bool = False
    rua: str = ""
    fo: str = ""


@dataclass(frozen=True, slots=True)
class Records:
    """The records by the domain they were found at; failed: the domains whose lookup failed."""

    found: Mapping[str, Record]
    failed: AbstractSet[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What DMARC says of one author domain: a result of RFC 9989 9.2 with what led to it.

    policy: what is asked for on failure, '' where no record applies. record_domain: where
    the applied record lies. aligned: the identifier that passed.
    """

    author: str
    result: str
    policy: str = ""
    record_domain: str = ""
    aligned: str = ""
    reason: str = ""


class Unknown(Exception):
    """A record that the answer depends on could not be looked up; the text is its domain."""


def parse(text: str) -> Record | None:
    """Return the record of a TXT text; None where it is no DMARC record."""
    return _known(text) if len(text) <= KNOWN_CHARACTERS else _parse(text)


def _parse(text: str) -> Record | None:
    if not _VERSION.match(text) or len(text) > MAX_RECORD_OCTETS:
        return None
    tags: dict[str, str] = {}
    for part in text.split(";")[1:]:
        match = _TAG.fullmatch(part.rstrip(" \t"))
        if match is not None:
            # RFC 9989 4.8: what is in error is passed over; so a tag's second occurrence is.
            tags.setdefault(match[1].lower(), match[2].strip(" \t"))
    p, sp, np = _policies(tags)
    psd = tags.get("psd", "u").lower()
    return Record(
        p=p,
        sp=sp,
        np=np,
        is_dkim_strict=tags.get("adkim", "r").lower() == "s",
        is_spf_strict=tags.get("aspf", "r").lower() == "s",
        psd=psd if psd in ("y", "n") else "u",
        is_testing=tags.get("t", "n").lower() == "y",
        rua=tags.get("rua", ""),
        fo=tags.get("fo", "").lower(),
    )


_known = functools.lru_cache(maxsize=1024)(_parse)


def _policies(tags: Mapping[str, str]) -> tuple[str, str, str]:
    """Return p, sp and np with their defaults, or what takes their place (RFC 9989 4.10.1)."""
    p, sp, np = (tags.get(name, "").lower() for name in ("p", "sp", "np"))
    bad_subdomain = any(name in tags and tags[name].lower() not in POLICIES for name in ("sp", "np"))
    if p not in POLICIES or bad_subdomain:
        p = "none" if _has_uri(tags.get("rua", "")) else ""
        return p, p, p
    return p, sp or p, np or sp or p


def _has_uri(value: str) -> bool:
    """Return whether a list of report addresses holds one that can be one."""
    for uri in report_uris(value):
        scheme, _, rest = uri.partition(":")
        local, at, domain = rest.rpartition("@")
        if scheme.lower() != "mailto" or (local and at and domain):
            return True
    return False


def report_uris(value: str) -> list[str]:
    """Return the URIs of a rua tag in order, without the sizes that RFC 7489 put behind them."""
    written = (_SIZE.sub("", one.strip(" \t")) for one in value.split(","))
    return [uri for uri in written if _URI.fullmatch(uri)]


def choose(texts: Sequence[str]) -> Record | None:
    """Return the one DMARC record among a name's TXT texts; several are none (RFC 9989 4.10)."""
    candidates = [text for text in texts if _VERSION.match(text)]
    return parse(candidates[0]) if len(candidates) == 1 else None


def walk(domain: str) -> list[str]:
    """Return the domains whose _dmarc names are asked for, from the domain up (RFC 9989 4.10)."""
    labels = domain.split(".")
    start = max(1, len(labels) - (MAX_QUERIES - 1))
    return [domain, *(".".join(labels[position:]) for position in range(start, len(labels)))]


def organizational_domain(domain: str, records: Records) -> str:
    """Return the organizational domain of a domain (RFC 9989 4.10.2); raises Unknown."""
    chosen = domain
    for name in walk(domain):
        if name in records.failed:
            raise Unknown(name)
        record = records.found.get(name)
        if record is None:
            continue
        if record.psd == "y" and name != domain:
            return _below(domain, name)
        chosen = name
        if record.psd in ("y", "n"):
            break  # 4.10: the walk ends here
    return chosen


def _below(domain: str, parent: str) -> str:
    """Return the name one label below a parent, on the way to the domain."""
    labels = domain.split(".")
    return ".".join(labels[-(parent.count(".") + 2) :])


def applied(author: str, records: Records) -> str | None:
    """Return the domain whose record applies to an author domain (RFC 9989 4.10.1), None without one.

    Raises Unknown.
    """
    if author in records.failed:
        raise Unknown(author)
    if author in records.found:
        return author
    organization = organizational_domain(author, records)
    if organization in records.found:
        return organization
    parent = organization.partition(".")[2]
    record = records.found.get(parent)
    return parent if record is not None and record.psd == "y" else None


def evaluate(
    author: str,
    records: Records,
    *,
    spf: str | None,
    dkim: Sequence[str],
    exists: bool | None,
) -> Evaluation:
    """Return the evaluation for one author domain.

    records: of the walks of the author domain and of the identifiers. spf: domain that SPF
    passed for; dkim: domains with a passing signature; exists: whether the author domain is
    in the DNS at all, None where that is not known.
    """
    try:
        name = applied(author, records)
    except Unknown as unknown:
        return Evaluation(author, "temperror", reason=f"no answer for _dmarc.{unknown}")
    if name is None:
        return Evaluation(author, "none")
    record = records.found[name]
    if not record.p:
        return Evaluation(author, "permerror", "", name, reason="record without a usable policy")
    aligned, unknown_domain = _align(author, records, record, spf=spf, dkim=dkim)
    if aligned:
        policy = _requested(record, is_own=name == author, exists=exists is not False)
        return Evaluation(author, "pass", policy, name, aligned)
    if unknown_domain:
        return Evaluation(author, "temperror", "", name, reason=f"no answer for _dmarc.{unknown_domain}")
    if exists is None and name != author and record.sp != record.np:
        return Evaluation(author, "temperror", "", name, reason=f"no answer for {author}")
    return Evaluation(
        author, "fail", _requested(record, is_own=name == author, exists=exists is not False), name
    )


def _requested(record: Record, *, is_own: bool, exists: bool) -> str:
    policy = record.p if is_own else record.sp if exists else record.np
    if record.is_testing and policy != "none":
        return POLICIES[POLICIES.index(policy) - 1]  # RFC 9989 4.7, t
    return policy


def _align(
    author: str, records: Records, record: Record, *, spf: str | None, dkim: Sequence[str]
) -> tuple[str, str]:
    """Return the identifier that is aligned, and a domain that left the question open; '' without."""
    open_at = ""
    identifiers = [(domain, record.is_dkim_strict) for domain in dkim]
    if spf is not None:
        identifiers.append((spf, record.is_spf_strict))
    for domain, is_strict in identifiers:
        try:
            if domain == author or (not is_strict and _is_related(author, domain, records)):
                return domain, ""
        except Unknown as unknown:
            open_at = str(unknown)
    return "", open_at


def is_aligned(author: str, domain: str, records: Records, *, is_strict: bool) -> bool:
    """Return whether an identifier's domain is aligned with an author's; False where that stays open."""
    try:
        return domain == author or (not is_strict and _is_related(author, domain, records))
    except Unknown:
        return False


def _is_related(author: str, domain: str, records: Records) -> bool:
    """Return whether two domains have one organizational domain (RFC 9989 3.2.10.1)."""
    if domain.rpartition(".")[2] != author.rpartition(".")[2]:
        return False
    return organizational_domain(author, records) == organizational_domain(domain, records)


def depends_on_existence(author: str, records: Records) -> bool:
    """Return whether the policy for an author domain depends on whether the domain exists."""
    try:
        name = applied(author, records)
    except Unknown:
        return False
    return name is not None and name != author and records.found[name].sp != records.found[name].np


def may_be_aligned(author: str, domain: str, records: Records) -> bool:
    """Return whether an identifier's own walk can matter: it lies in the author's organization."""
    try:
        organization = organizational_domain(author, records)
    except Unknown:
        return False
    return domain == organization or domain.endswith("." + organization)


_RANK = {"none": 1, "permerror": 2, "temperror": 3, "fail": 4}


def combine(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Return the one that counts for a message of several author domains (RFC 9989 11.5).

    The strictest policy among those that fail; pass only where all pass.
    """
    return max(
        evaluations,
        key=lambda one: (
            _RANK.get(one.result, 0),
            POLICIES.index(one.policy) if one.result == "fail" else 0,
        ),
    )
