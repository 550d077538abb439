"""Fuzz targets of the IMAP engine, each with the invariant that it holds.

A target takes any octets and raises AssertionError where the invariant breaks.
"""

from __future__ import annotations

from server.imap import framing, grammar
from server.imap.scanner import ImapSyntax

LIMITS = framing.Limits(line_octets=512, literal_octets=256, literals=8)
BOUND_OCTETS = LIMITS.line_octets + LIMITS.literal_octets + 64


def check_grammar(data: bytes) -> None:
    """Any octets become the same events whole and in pieces, within bounds; grammar raises ImapSyntax only.

    Framing never holds more than the limits of one command and what was fed last, and
    never hands on a command longer than them.
    """
    whole = events_of([data])
    for size in (1, 2, 3, 7, 64):
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        assert events_of(pieces) == whole, f"pieces of {size} octets give other events"
    for event in whole:
        if isinstance(event, framing.Command):
            assert len(event.data) <= BOUND_OCTETS
            _parse(grammar.parse, event.data)
        elif isinstance(event, framing.Announced):
            assert len(event.head) <= BOUND_OCTETS
            _parse(grammar.parse_append, event.head)
        elif isinstance(event, framing.Refused):
            assert grammar.tag_of(event.head) in event.head


def events_of(pieces: list[bytes]) -> list[framing.Event]:
    """Return the events of octets fed in pieces; literals are taken, their chunks joined."""
    frames = framing.Framing(LIMITS)
    events: list[framing.Event] = []
    for piece in pieces:
        frames.feed(piece)
        while (event := frames.next()) is not None:
            if isinstance(event, framing.Announced):
                # Every other one is refused, so that both ways are walked.
                (frames.accept if event.octets % 2 else frames.refuse)()
            previous = events[-1] if events else None
            if isinstance(event, framing.Chunk) and isinstance(previous, framing.Chunk):
                events[-1] = framing.Chunk(previous.data + event.data, event.last)
            else:
                events.append(event)
        assert frames.buffered_octets <= BOUND_OCTETS, "framing keeps more than one command"
    return events


def _parse(parse: object, data: bytes) -> None:
    assert callable(parse)
    try:
        tagged = parse(data)
    except ImapSyntax as error:
        assert error.status in (b"BAD", b"NO")
        assert data.startswith(error.tag)
        assert error.text.isprintable()
        assert b"\r" not in error.text.encode() and b"\n" not in error.text.encode()
        return
    assert data.startswith(tagged.tag)
    assert parse(data) == tagged
