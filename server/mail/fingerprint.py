"""What a text looks like to one who asks whether he has seen much the same one.

Owns a fingerprint by least hashes of word triples: texts that share nine tenths of
them share a band nearly always, texts that share a third hardly ever. Digits count
for nothing, so that codes and order numbers do not make two texts of one.
"""

from __future__ import annotations

import re
import zlib

from server.mail.structure import Octets, scan
from server.mail.text import find_body, part_text

MAX_OCTETS = 16_384
MAX_WORDS = 1200
LEAST_WORDS = 20
BANDS, ROWS = 4, 3
_WORD = re.compile(r"[^\W\d_]+")
_LETTERS = re.compile(rb"[a-z]+")  # the same words, where the text is ASCII in lower case


def bands(text: str) -> tuple[str, ...]:
    """Return the bands of a text, none of them for one of under LEAST_WORDS words."""
    words = _words(text[:MAX_OCTETS].lower())[:MAX_WORDS]
    if len(words) < LEAST_WORDS:
        return ()
    least = [0xFFFFFFFF] * (BANDS * ROWS)
    hashes = list(map(zlib.crc32, words))
    # The hash of a tuple of numbers is the same in every process of one Python.
    triples = set(map(hash, zip(hashes, hashes[1:], hashes[2:], strict=False)))
    for triple in triples:
        number = triple & 0xFFFFFFFF
        place = number % (BANDS * ROWS)
        if number < least[place]:  # noqa: PLR1730 - min() takes three times as long
            least[place] = number
    return tuple(
        f"{band}-" + "".join(f"{number:08x}" for number in least[band * ROWS : (band + 1) * ROWS])
        for band in range(BANDS)
    )


def _words(text: str) -> list[bytes]:
    if text.isascii():
        return _LETTERS.findall(text.encode())
    return [word.encode() for word in _WORD.findall(text)]


def of_message(beginning: Octets) -> tuple[str, ...]:
    """Return the bands of a message's text, plain where there is a plain one, from its beginning."""
    root = scan(beginning[:MAX_OCTETS])
    for kind in ("text/plain", "text/html"):
        part = find_body(root, kind)
        if part is not None:
            found = bands(part_text(part, beginning, limit=MAX_OCTETS))
            if found:
                return found
    return ()
