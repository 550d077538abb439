"""Where our results and mailauth's differ on purpose: what docs/differences-mailauth.md explains.

Each difference is told by the two answers themselves, so that another one in its place shows.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.differ.cases import Case


@dataclass(frozen=True)
class Answer:
    """One result with its reason."""

    result: str
    why: str = ""


@dataclass(frozen=True)
class Difference:
    """A heading of the page, and which pairs it explains; of: 'spf', 'dkim', 'arc', 'dmarc' or 'policy'."""

    heading: str
    of: str
    explains: Callable[[Answer, Answer, Case], bool]


UNREADABLE = {"neutral", "permerror"}


def explained(of: str, ours: Answer, theirs: Answer, case: Case) -> str | None:
    """Return the heading that explains a difference, None where there is none."""
    for one in DIFFERENCES:
        if one.of == of and one.explains(ours, theirs, case):
            return one.heading
    return None


def _last_line_is_open(content: bytes) -> bool:
    return not content.endswith(b"\r\n") and content[-1:] in b" \t"


def _records(case: Case) -> list[str]:
    """Every DMARC record of a case's DNS."""
    found = [
        records.get("TXT", ()) for name, records in case.zone.items() if name.lower().startswith("_dmarc.")
    ]
    return [text for texts in found for text in texts if isinstance(text, str) and "DMARC1" in text]


def _begins_with_a_blank(case: Case) -> bool:
    return any(text[:1] == " " for text in _records(case))


def _has_a_tag_twice(case: Case) -> bool:
    for text in _records(case):
        names = [part.partition("=")[0].strip().lower() for part in text.split(";") if part.strip()]
        if len(set(names)) < len(names):
            return True
    return False


DIFFERENCES = (
    Difference(
        "A key that cannot be used",
        "dkim",
        lambda ours, theirs, _: (ours.result, theirs.result) == ("permerror", "neutral"),
    ),
    Difference(
        "An expired signature",
        "dkim",
        lambda ours, theirs, _: (ours.why, theirs.why) == ("signature expired", "expired"),
    ),
    Difference(
        "A signature of the future",
        "dkim",
        lambda ours, theirs, _: ours.why == "signed in the future" and theirs.result == "pass",
    ),
    Difference(
        "Content beyond l=",
        "dkim",
        lambda ours, theirs, _: ours.why == "content beyond the signed length" and theirs.result == "pass",
    ),
    Difference(
        "A second field beside a signed one",
        "dkim",
        lambda ours, theirs, case: (
            theirs.result == "pass"
            and (ours.why.startswith("unsigned ") or case.content.lower().count(b"\nfrom:") + 1 > 1)
            and ours.result in ("policy", "fail")
        ),
    ),
    Difference(
        "Base64 that is none",
        "dkim",
        lambda ours, theirs, _: ours.why in ("base64 syntax", "h= syntax") and theirs.result == "fail",
    ),
    Difference(
        "A third canonicalization",
        "dkim",
        lambda ours, theirs, _: ours.why == "unknown canonicalization" and theirs.result == "pass",
    ),
    Difference(
        "Several records at a key's name",
        "dkim",
        lambda ours, theirs, _: (
            ours.result == "pass" and theirs.why in ("bad signature", "invalid public key")
        ),
    ),
    Difference(
        "A last line without its end",
        "dkim",
        lambda ours, theirs, case: (
            ours.result == "pass"
            and theirs.why == "body hash did not verify"
            and _last_line_is_open(case.content)
        ),
    ),
    Difference(
        "A record without a policy",
        "dmarc",
        lambda ours, _theirs, _: ours.why == "record without a usable policy",
    ),
    Difference(
        "No From field, several, or no author",
        "dmarc",
        lambda ours, theirs, _: (
            ours.why == "From without a valid domain"
            or (
                ours.result in ("permerror", "fail")
                and theirs.why in ("multiple-from-fields", "no-author-domain", "invalid-author-domain")
            )
        ),
    ),
    Difference(
        "Several author domains",
        "dmarc",
        lambda _ours, theirs, _: theirs.why == "multiple-author-domains",
    ),
    Difference("White space before v=", "dmarc", lambda _ours, _theirs, case: _begins_with_a_blank(case)),
    Difference("White space before v=", "policy", lambda _ours, _theirs, case: _begins_with_a_blank(case)),
    Difference("A tag that stands twice", "dmarc", lambda _ours, _theirs, case: _has_a_tag_twice(case)),
    Difference("A tag that stands twice", "policy", lambda _ours, _theirs, case: _has_a_tag_twice(case)),
    Difference(
        "Which fault is named",
        "dkim",
        lambda ours, theirs, _: (
            ours.why in ("rsa-sha1 is not accepted", "no key") and theirs.result in ("fail", "neutral")
        ),
    ),
    Difference(
        "ARC signatures of the drafts",
        "arc",
        lambda _ours, theirs, case: (
            case.name.endswith(("ams_fields_c_na", "ams_fields_h_empty")) and theirs.result == "fail"
        ),
    ),
)
