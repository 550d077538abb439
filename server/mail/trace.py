"""Trace fields: what a server writes on top of a message that passes.

Owns Received, Return-Path and Delivered-To with their line ends, and counting
Received fields. What a stranger said of himself is written so that it can end
neither a line nor a comment. Reads no clock: the time is an argument.

RFC 5321 4.4 and 6.3, RFC 3848 and RFC 6531 4.3 ('with' keywords), RFC 8314 4.3 ('tls').
"""

import re
from functools import lru_cache

from server.mail.dates import format_date
from server.mail.header import FOLD_COLUMN
from storage.records import Peer

MAX_WORD_OCTETS = 255

_EXTENDED_DOMAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[A-Za-z0-9.:]+\]")
# RFC 8314 4.3 wants IANA's names; those of TLS 1.3 are IANA's already.
_SUITES = {
    f"ECDHE-{key}-{ours}": f"TLS_ECDHE_{key}_WITH_{theirs}"
    for key in ("ECDSA", "RSA")
    for ours, theirs in (
        ("AES128-GCM-SHA256", "AES_128_GCM_SHA256"),
        ("AES256-GCM-SHA384", "AES_256_GCM_SHA384"),
        ("CHACHA20-POLY1305", "CHACHA20_POLY1305_SHA256"),
    )
}
_NOT_A_WORD = re.compile(r"[^A-Za-z0-9._:\[\]-]")
_NOT_IN_A_PATH = re.compile("[\x00-\x20\x7f-\x9f<>\u2028\u2029\ud800-\udfff]")
_SPACED = re.compile(rb"\nreceived[ \t]+:")  # RFC 5322 4.5 allows white space there


def transmission(peer: Peer, *, smtputf8: bool = False, lmtp: bool = False) -> str:
    """The 'with' keyword: ESMTPSA, UTF8LMTPS and so on; plain SMTP has no variants (RFC 3848)."""
    if lmtp:
        name = "UTF8LMTP" if smtputf8 else "LMTP"
    elif not peer.extended:
        return "SMTP"
    else:
        name = "UTF8SMTP" if smtputf8 else "ESMTP"
    return f"{name}{'S' if peer.tls_version else ''}{'A' if peer.identity else ''}"


def received(
    peer: Peer, *, host: str, protocol: str, id: str, at: int, recipient: str | None = None
) -> bytes:
    """One Received field, folded under 78 octets where its words allow.

    host: our own name. protocol: the 'with' keyword. id: the message's. at:
    microseconds. recipient: the only one, or None, so that no recipient learns of another.
    """
    clauses = [*_session(peer, host, protocol)]
    clauses[-1] += f" id {_word(id)}"
    if recipient is not None:
        clauses.append(f"for <{_path(recipient)}>")
    if peer.tls_cipher and (suite := _suite(peer.tls_cipher)):
        clauses.append(f"tls {suite}")
    clauses[-1] += ";"
    clauses.append(format_date(at))
    return _fold("Received:", clauses)


@lru_cache(maxsize=256)  # one session brings many messages
def _session(peer: Peer, host: str, protocol: str) -> tuple[str, ...]:
    who = f"from {_domain(peer.helo)} ({_tcp_information(peer)})"
    how = f"by {_word(host)} with {_word(protocol)}"
    return (who, f"({_tls(peer)})", how) if peer.tls_version else (who, how)


def return_path(reverse_path: str | None) -> bytes:
    """The Return-Path field; None is the null reverse-path."""
    return f"Return-Path: <{_path(reverse_path or '')}>\r\n".encode("utf-8", "replace")


def delivered_to(address: str) -> bytes:
    """The Delivered-To field, by which a mailbox knows a message that comes back to it."""
    return f"Delivered-To: {_path(address)}\r\n".encode("utf-8", "replace")


def count_received(header: bytes) -> int:
    """How many Received fields a header has: hops so far (RFC 5321 6.3)."""
    lowered = b"\n" + header.lower()
    return lowered.count(b"\nreceived:") + len(_SPACED.findall(lowered))


def _domain(helo: str) -> str:
    """The EHLO argument as it may stand behind 'from'; 'unknown' where nothing was said."""
    if _EXTENDED_DOMAIN.fullmatch(helo[:MAX_WORD_OCTETS]):
        return helo[:MAX_WORD_OCTETS]
    return _word(helo) or "unknown"


def _tcp_information(peer: Peer) -> str:
    # RFC 5321 4.4 TCP-info: a name, if it is known, and the address as a literal.
    if not peer.address:
        return "local"
    literal = f"[IPv6:{_word(peer.address)}]" if ":" in peer.address else f"[{_word(peer.address)}]"
    return f"{_word(peer.reverse_name)} {literal}" if peer.reverse_name else literal


def _tls(peer: Peer) -> str:
    version, cipher = _word(peer.tls_version or ""), _word(peer.tls_cipher or "")
    return f"using {version} with cipher {cipher}" if cipher else f"using {version}"


def _suite(cipher: str) -> str:
    """The registered name of a cipher suite that OpenSSL names, '' where it is none of those we offer."""
    return _word(cipher) if cipher.startswith("TLS_") else _SUITES.get(cipher, "")


def _word(text: str) -> str:
    return _NOT_A_WORD.sub("?", text[:MAX_WORD_OCTETS])


def _path(address: str) -> str:
    return _NOT_IN_A_PATH.sub("?", address)


def _fold(name: str, clauses: list[str]) -> bytes:
    lines = [name]
    for clause in clauses:
        if len(lines[-1]) + 1 + len(clause) > FOLD_COLUMN and lines[-1] != name:
            lines.append(f"\t{clause}")
        else:
            lines[-1] += f" {clause}"
    return ("\r\n".join(lines) + "\r\n").encode("utf-8", "replace")
