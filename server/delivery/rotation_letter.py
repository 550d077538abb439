"""The mail that tells a domain's postmaster about the rotation of its DKIM keys.

Owns its words. Composes and sends nothing by itself; RFC 3834 5 (Auto-Submitted).
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from server.mail.address import parse_mailbox
from server.mail.compose import Draft, NamedAddress, compose
from storage.records import DkimKey

WIDTH = 76
LOST = "lost"
_SUBJECTS = {
    "made": "New DKIM keys of {domain}: please publish their records",
    "active": "New DKIM keys of {domain} are in use",
    "retired": "Old DKIM keys of {domain}: their records can be removed",
    "lost": "DKIM records of {domain} are not in the DNS any more",
}
_WORDS = {
    "made": (
        "New keys were made for the DKIM signatures of {domain}. Please publish these records in its DNS. "
        "Nothing else is to be done: the keys are used once the records have been seen for a while, and "
        "until then the present keys stay in use, however long that takes."
    ),
    "active": (
        "Mail of {domain} is now signed with the new keys below. Please leave the records of the old keys "
        "where they are: mail that was signed with them is still on its way. You will be told when they "
        "can go."
    ),
    "retired": (
        "No mail needs these keys any more. Please remove their records from the DNS of {domain}; the "
        "keys themselves are erased."
    ),
    "lost": (
        "Mail of {domain} is signed with these keys, and their records are gone from its DNS, or others "
        "stand in their place. Other servers cannot verify the signatures. Please publish these records."
    ),
}


def step_of(key: DkimKey) -> str:
    """Return what is to be told of a key: its state, or 'lost' where it signs and the DNS has it no more."""
    return LOST if key.state == "active" and key.told == LOST else key.state


def at_of(key: DkimKey) -> int:
    """Return when that happened, in microseconds."""
    return (key.looked_at if step_of(key) == LOST else None) or key.changed_at


def letter(domain: str, about: Sequence[DkimKey], *, hostname: str, message_id: str, at: int) -> bytes:
    """Return the message about keys that are all at one step; at: microseconds."""
    step = step_of(about[0])
    postmaster = parse_mailbox(f"postmaster@{domain}", smtputf8=False)
    records = "\n\n".join(_record(key, with_value=step in ("made", LOST)) for key in about)
    words = fill(_WORDS[step].format(domain=domain), WIDTH)
    where = f"`mailagents domain dkim status {domain}` tells how far they are."
    return compose(
        Draft(
            # Of the domain itself, which can sign it wherever its postmaster reads.
            from_=NamedAddress(postmaster, "Mailagents"),
            to=(NamedAddress(postmaster),),
            subject=_SUBJECTS[step].format(domain=domain),
            message_id=f"{message_id}@{hostname}",
            at=at,
            text=f"{words}\n\n{records}\n\n{where}\n",
            headers=(("Auto-Submitted", "auto-generated"),),
        )
    )


def _record(key: DkimKey, *, with_value: bool) -> str:
    name = f"{key.selector}._domainkey.{key.domain}"
    return (
        f"name   {name}\ntype   TXT\nvalue  {key.public_record}"
        if with_value
        else f"{name} ({key.algorithm})"
    )
