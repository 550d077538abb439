"""What went wrong with a record on its way into mailboxes, as events of its timeline.

Owns the events of messages that could not be rendered or were put aside for the
operator. Logs them too, by the message's id alone.
"""

import logging
from typing import Any

from storage import absent, ids
from storage.folder_names import REJECTS
from storage.placing import Placing, Work
from storage.records import Event

_log = logging.getLogger(__name__)


def event(work: Work, kind: str, data: dict[str, Any], *, at: int) -> Event:
    """Return an event of a record's message; at: microseconds."""
    record = work.encoded.record
    return Event(
        id=ids.new("evt"),
        kind=kind,
        at=at,
        organization_id=record.organization_id,
        message_id=record.message_id,
        data=data,
    )


def note(work: Work, placing: Placing, *, at: int) -> None:
    """Set a placed record's events anew: what could not be rendered, what lies aside and where."""
    work.events = []
    if work.unrendered is not None:
        work.events.append(event(work, "message.unrendered", {"reason": work.unrendered}, at=at))
    record = work.encoded.record
    for index, (target, location) in enumerate(zip(record.local, work.locations, strict=True)):
        if location is None and target.folder != REJECTS:
            name = placing.aside_name(work, index)
            _log.error("message %s has no inbox to go to, it lies aside as %s", record.message_id, name)
            # One time for all: then one notice tells of them all.
            told = absent.told(work.encoded, target, file=name)
            work.events += [event(work, kind, data, at=at) for kind, data in told]
