"""Fuzz targets of the SMTP door: any octets in, an invariant out.

`check_grammar`: a line becomes a command or a Refusal of a known code; what was
accepted contains no control character and formats to something that parses the same.
`check_data`: content read in segments equals content read whole, and both equal a
plain octet-by-octet machine (which of several faults is named may differ); what is
accepted has CRLF line ends only and no NUL; nothing behind the end is ever part of
the content. `check_loose`: content whose line ends are mended, or that is binary, reads
the same however it is cut; mended content ends where strict content ends and is clean.
"""

from server.refusal import Refusal
from server.smtp import door, grammar
from server.smtp.data import ChunkReader, ContentLimits, DataReader, LineEnds

CODES = frozenset({500, 501, 502, 504, 553, 555})
LIMITS = ContentLimits(octets=2048, received=5, header_line_octets=200, header_octets=1024)
DIALECTS = (
    door.PLAIN,
    door.EXTENDED,
    door.widened(door.EXTENDED),
    door.SUBMITTING_HELD,
    door.widened(door.SUBMITTING_HELD),
)


def check_grammar(line: bytes) -> None:
    """Any octets are a command or a refusal; addresses that pass are stable."""
    for dialect in DIALECTS:
        try:
            command = grammar.parse(line, dialect)
        except Refusal as refusal:
            assert refusal.code in CODES, refusal.code
            assert refusal.enhanced[:2] == "5."
            assert refusal.public.isprintable()
            continue
        assert not any(octet < 32 or octet == 127 for octet in line)
        if isinstance(command, grammar.Mail):
            _check_address(
                command.envelope.reverse_path, b"MAIL FROM:<%s>", dialect, command.envelope.smtputf8
            )
        elif isinstance(command, grammar.Rcpt):
            _check_address(command.recipient.address, b"RCPT TO:<%s>", dialect, False)


def _check_address(address: str | None, form: bytes, dialect: grammar.Dialect, wide: bool) -> None:
    if address is None:
        return
    assert address
    again = form % address.encode() + (b" SMTPUTF8" if wide else b"")
    command = grammar.parse(again, dialect)
    if isinstance(command, grammar.Mail):
        assert command.envelope.reverse_path == address
    else:
        assert isinstance(command, grammar.Rcpt)
        assert command.recipient.address == address


def check_data(octets: bytes) -> None:
    """The first two octets choose how the rest is cut; every cut reads the same."""
    step, kind, stream = octets[:1], octets[1:2], octets[2:]
    size = (step[0] if step else 0) % 23 + 1
    whole = read_data([stream])
    cut = read_data([stream[at : at + size] for at in range(0, len(stream), size)])
    assert cut == whole
    content, at_fault, ended, rest = whole
    assert content_of(stream) == ((None if at_fault else content, rest) if ended else (None, b""))
    _check_clean(content)
    chunks = [stream[at : at + size * 3] for at in range(0, len(stream), size * 3)] or [b""]
    blocks = (kind[0] if kind else 0) % 7 + 1
    assert read_chunks(chunks, blocks) == read_chunks([stream], len(stream) or 1)


def check_loose(octets: bytes) -> None:
    """The first octet chooses how the rest is cut; every cut reads the same."""
    stream = octets[1:]
    size = (octets[0] if octets else 0) % 23 + 1
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)] or [b""]
    strict, mended = read_data([stream]), read_data([stream], LineEnds.MENDED)
    assert read_data(pieces, LineEnds.MENDED) == mended
    assert mended[2:] == strict[2:]
    if not strict[1]:
        assert mended == strict
    _check_clean(mended[0])
    for ends in (LineEnds.MENDED, LineEnds.BINARY):
        whole = read_chunks([stream], len(stream) or 1, ends)
        assert read_chunks(pieces, 3, ends) == whole
        if ends is LineEnds.MENDED:
            _check_clean(whole[0])
        elif not whole[1]:
            assert whole[0] == stream


def _check_clean(content: bytes) -> None:
    stripped = content.replace(b"\r\n", b"")
    assert b"\r" not in stripped
    assert b"\n" not in stripped
    assert b"\0" not in stripped


def read_data(segments: list[bytes], ends: LineEnds = LineEnds.STRICT) -> tuple[bytes, bool, bool, bytes]:
    """Content, whether it is at fault, whether it ended, and what came behind, of a stream in segments."""
    reader = DataReader(LIMITS, ends)
    content, rest = b"", b""
    for segment in segments:
        if reader.ended:
            rest += segment
            continue
        content += reader.feed(segment)
        rest = reader.rest
    at_fault = reader.fault is not None
    return b"" if at_fault else content, at_fault, reader.ended, rest


def read_chunks(chunks: list[bytes], block: int, ends: LineEnds = LineEnds.STRICT) -> tuple[bytes, bool]:
    """Content, and whether it is at fault, of BDAT chunks, each fed in blocks."""
    reader = ChunkReader(LIMITS, ends)
    content = b""
    for index, chunk in enumerate(chunks):
        content += reader.open(len(chunk), last=index == len(chunks) - 1)
        for at in range(0, len(chunk), block):
            content += reader.feed(chunk[at : at + block])
        assert reader.complete
    assert reader.ended
    at_fault = reader.fault is not None
    return b"" if at_fault else content, at_fault


def content_of(stream: bytes) -> tuple[bytes | None, bytes]:
    """What a machine that looks at one octet at a time takes for content; None if it must be refused."""
    out = bytearray()
    at = 0
    line_start = True
    clean = True
    while at < len(stream):
        if line_start and stream[at : at + 1] == b".":
            if stream[at : at + 3] == b".\r\n":
                content = bytes(out)
                return (content if clean and _is_within(content) else None), stream[at + 3 :]
            at += 1
            line_start = False
            continue
        pair = stream[at : at + 2]
        if pair == b"\r\n":
            out += pair
            at += 2
            line_start = True
            continue
        clean = clean and pair[:1] not in {b"\r", b"\n", b"\0"}
        out += pair[:1]
        at += 1
        line_start = False
    return None, b""


def _is_within(content: bytes) -> bool:
    """Whether content keeps LIMITS, judged line by line."""
    if len(content) > LIMITS.octets:
        return False
    lines = content.split(b"\r\n")
    header = lines[: lines.index(b"")] if b"" in lines else lines
    hops = sum(line[:9].lower() == b"received:" for line in header)
    if hops >= LIMITS.received or sum(len(line) + 2 for line in header) > LIMITS.header_octets:
        return False
    return all(len(line) + 2 <= LIMITS.header_line_octets for line in header)
