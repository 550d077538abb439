"""The MIME corpus, run through the scanner, the text reader and the renderer of IMAP's replies.

A message is right where its parts lie where the corpus has them, its texts and files are those of
the corpus, and its envelope names the same people. Where we read otherwise on purpose the reason
stands here, with the reading that is right instead.
"""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.imap.render import render
from server.mail import header
from server.mail.envelope import read_envelope
from server.mail.structure import Part, scan
from server.mail.text import part_octets, part_source
from tests.fuzz.targets_mail import check_structure

CASE_SECONDS = 5.0  # of the processor: the largest takes a tenth of one
Outline = list[tuple[str, int, int]]
MULTIPART, MESSAGE, LEAF = "Multipart", "Message", "Leaf"

# Structures: why ours is another one, and what it is.
STRUCTURES: dict[str, tuple[str, Outline]] = {
    "malformed/000": (
        "parts whose header has no blank line are parts",
        [(MULTIPART, 0, 48), (LEAF, 55, 55), (LEAF, 62, 86), (LEAF, 94, 118), (LEAF, 127, 150)],
    ),
    "malformed/007": (
        "a multipart's header may run into its first delimiter",
        [(MULTIPART, 0, 45), (MULTIPART, 49, 112), (LEAF, 117, 143)],
    ),
    "malformed/008": (
        "a boundary that begins another one does not end it",
        [(MULTIPART, 0, 46), (MULTIPART, 51, 96), (LEAF, 100, 126), (LEAF, 136, 161)],
    ),
    "malformed/011": (
        "an outer delimiter ends the inner multipart",
        [(MULTIPART, 0, 45), (MULTIPART, 49, 94), (LEAF, 98, 124), (LEAF, 130, 156), (LEAF, 163, 189)],
    ),
    "malformed/012": (
        "an outer delimiter ends the inner multipart",
        [
            (MULTIPART, 0, 45),
            (MULTIPART, 49, 94),
            (MESSAGE, 98, 128),
            (MESSAGE, 160, 190),
            (MESSAGE, 223, 253),
        ],
    ),
    "malformed/013": (
        "a delimiter at the very end begins an empty part",
        [
            (MULTIPART, 0, 63),
            (LEAF, 67, 93),
            (MULTIPART, 110, 173),
            (LEAF, 177, 203),
            (MULTIPART, 220, 283),
            (LEAF, 287, 313),
            (MULTIPART, 330, 389),
            (LEAF, 393, 419),
            (LEAF, 436, 436),
        ],
    ),
    "malformed/014": (
        "a delimiter at the very end begins an empty part",
        [(MULTIPART, 0, 45), (LEAF, 49, 75), (LEAF, 92, 92)],
    ),
    "malformed/016": (
        "a closed multipart's boundary means nothing any more",
        [
            (MULTIPART, 0, 126),
            (MULTIPART, 211, 336),
            (MULTIPART, 420, 544),
            (LEAF, 627, 653),
            (LEAF, 740, 766),
        ],
    ),
    "thirdparty/015": (
        "delimiters behind an embedded message are seen",
        [
            (MULTIPART, 0, 10496),
            (LEAF, 10533, 10622),
            (MESSAGE, 12184, 12344),
            (MESSAGE, 14569, 14727),
            (MESSAGE, 17145, 17297),
        ],
    ),
}
# Texts of parts whose base64 is none: RFC 2045 6.8 passes over what is outside the alphabet.
TEXTS: dict[tuple[str, int], str] = {
    ("rfc/000", 4): "not base64: another parser shows it as it lies",
    ("rfc/000", 5): "not base64: another parser shows it as it lies",
    ("thirdparty/002", 2): "what follows the padding is passed over",
    ("thirdparty/002", 3): "not base64: another parser shows it as it lies",
    ("malformed/007", 1): "the part is an open multipart, as above, and no text",
}


def run(folder: Path) -> dict[str, str]:
    """Each message by name with what is wrong about our reading, '' where it is right."""
    messages = sorted(folder.rglob("*.eml"))
    if not messages:
        raise FileNotFoundError(f"{folder}: no *.eml")
    return {name_of(path): judge(path) for path in messages}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def judge(path: Path) -> str:
    begin = time.process_time()
    problem = _crash(path) or _difference(path)
    seconds = time.process_time() - begin
    return problem or (f"took {seconds:.1f} s" if seconds > CASE_SECONDS else "")


def _crash(path: Path) -> str:
    """Read a message with both line ends by everything there is; returns what went wrong."""
    bare = path.read_bytes().replace(b"\r\n", b"\n")
    try:
        for content in (bare, bare.replace(b"\n", b"\r\n")):
            check_structure(content)
            render(content)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _difference(path: Path) -> str:
    expected = path.with_suffix(".json")
    if not expected.exists():
        return ""
    message = message_of(path)
    parts, name = list(flatten(scan(message))), name_of(path)
    theirs = json.loads(expected.read_text())["parts"]
    wanted = STRUCTURES[name][1] if name in STRUCTURES else [outline(part) for part in theirs]
    if [form_of(part) for part in parts] != wanted:
        return "other parts"
    if name not in STRUCTURES:
        for index, (part, other) in enumerate(zip(parts, theirs, strict=True)):
            if (name, index) not in TEXTS and not _same_content(part, message, other["body"]):
                return f"part {index} has other content"
    return _envelope_difference(message[: parts[0].body_start], theirs[0]["headers"])


def message_of(path: Path) -> bytes:
    """A message as the corpus means it: its offsets count bare LF but in the malformed ones."""
    octets = path.read_bytes()
    return octets if path.parent.name == "malformed" else octets.replace(b"\r\n", b"\n")


def flatten(part: Part) -> Iterator[Part]:
    """Parts in the order of their octets, embedded messages not opened, as the corpus has them."""
    yield part
    if part.is_multipart:
        for inner in part.parts:
            yield from flatten(inner)


def form_of(part: Part) -> tuple[str, int, int]:
    form = MULTIPART if part.is_multipart else MESSAGE if part.is_message else LEAF
    return form, part.header_start, part.body_start


def outline(part: dict[str, Any]) -> tuple[str, int, int]:
    """The same of a part of the corpus."""
    form = next(iter(part["body"])) if isinstance(part["body"], dict) else part["body"]
    known = form if form in (MULTIPART, MESSAGE) else LEAF
    return known, part["offset_header"], part["offset_body"]


def _same_content(part: Part, message: bytes, body: Any) -> bool:
    if not isinstance(body, dict):
        return True
    form, value = next(iter(body.items()))
    if form in ("Text", "Html"):
        return _same_text(part_source(part, message), value)
    if form in ("Binary", "InlineBinary"):
        return part_octets(part, message) == bytes(value)
    return True


def _same_text(ours: str, theirs: str) -> bool:
    """Line ends and the last blank lines aside; what the corpus could not decode may be anything."""
    plain = [re.sub(r"\r", "", text).replace("\0", "\ufffd").rstrip() for text in (ours, theirs)]
    pattern = ".".join(re.escape(piece) for piece in plain[1].split("\ufffd"))
    return re.fullmatch(pattern, plain[0], re.DOTALL) is not None


def _envelope_difference(head: bytes, fields: list[dict[str, Any]]) -> str:
    found = read_envelope(head)
    said = {field["name"]: field["value"] for field in reversed(fields) if isinstance(field["name"], str)}
    subject = said.get("subject", {})
    if "Text" in subject and not _same_text(header.decode(found.subject or b""), subject["Text"]):
        return "other Subject"
    for name, addresses in (("from", found.from_), ("to", found.to), ("cc", found.cc)):
        value = said.get(name, {})
        if "Address" not in value or sum(field["name"] == name for field in fields) != 1:
            continue
        ours = [_address(one) for one in addresses if one.is_mailbox and one.domain]
        if ours != [one for one in _listed(value["Address"]) if "@" in one]:
            return f"other {name}: {ours}"
    return ""


def _address(address: Any) -> str:
    local, domain = (address.local or b"").decode("utf-8", "replace"), address.domain
    return f"{local}@{domain.decode('utf-8', 'replace')}" if domain else local


def _listed(value: dict[str, Any]) -> list[str]:
    if "List" in value:
        return [one.get("address") or "" for one in value["List"]]
    return [one.get("address") or "" for group in value.get("Group", ()) for one in group["addresses"]]
