"""Modified UTF-7, the form of mailbox names on the wire before UTF8=ACCEPT.

Owns encoding and decoding between text and its one canonical octet form.
Refuses what another spelling could say: two spellings of one name would be
two mailboxes to a client. RFC 3501 5.1.3.
"""

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64


class NameSyntax(ValueError):
    """A mailbox name that is not in canonical modified UTF-7; the text may be shown to the peer."""


def encode(text: str) -> bytes:
    """Return the wire form of a name; raises UnicodeEncodeError for a lone surrogate."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text.encode()
    pieces: list[bytes] = []
    shifted: list[str] = []
    for character in text:
        if " " <= character <= "~":
            if shifted:
                pieces.append(_shift("".join(shifted)))
                shifted.clear()
            pieces.append(b"&-" if character == "&" else character.encode())
        else:
            shifted.append(character)
    if shifted:
        pieces.append(_shift("".join(shifted)))
    return b"".join(pieces)


def decode(name: bytes) -> str:
    """Return the text of a wire form; raises NameSyntax unless it is the canonical form of that text."""
    if not name.isascii():
        raise NameSyntax("Mailbox name is not in modified UTF-7")
    if b"&" not in name:
        return _without_controls(name.decode())
    first, *rest = name.split(b"&")
    pieces = [first.decode()]
    for piece in rest:
        shifted, dash, plain = piece.partition(b"-")
        if not dash:
            raise NameSyntax("Mailbox name has an unended shift")
        pieces += [_unshift(shifted) if shifted else "&", plain.decode()]
    text = "".join(pieces)
    if encode(text) != name:
        raise NameSyntax("Mailbox name is not in canonical modified UTF-7")
    return _without_controls(text)


def _without_controls(text: str) -> str:
    # C0 and C1 controls and the separators that RFC 5198 2 forbids too.
    if not text.isprintable() and any(c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029" for c in text):
        raise NameSyntax("Mailbox name holds a control character")
    return text


def _shift(text: str) -> bytes:
    encoded = b2a_base64(text.encode("utf-16-be"), newline=False)
    return b"&" + encoded.rstrip(b"=").replace(b"/", b",") + b"-"


def _unshift(shifted: bytes) -> str:
    if b"/" in shifted:
        raise NameSyntax("Mailbox name is not in modified UTF-7")
    padded = shifted.replace(b",", b"/") + b"=" * (-len(shifted) % 4)
    try:
        return a2b_base64(padded, strict_mode=True).decode("utf-16-be")
    except (Base64Error, UnicodeDecodeError):
        raise NameSyntax("Mailbox name is not in modified UTF-7") from None
