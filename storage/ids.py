"""Identifiers: a prefix that names the kind, then 26 characters that sort by time.

Owns their form: 48 bits of milliseconds since 1970 and 80 random bits, in
Crockford's base 32, lower case. Refuses prefixes that are not short lower-case
letters, so that an id can go into file names and URLs as it is.
"""

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Ten bits at a time: thirteen look-ups make an id, where 26 would.
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_SHIFTS = tuple(range(120, -1, -10))


def new(prefix: str) -> str:
    """Return a fresh id such as `msg_01jd…`; ids of different milliseconds sort by age."""
    if not (prefix.isascii() and prefix.isalpha() and prefix.islower()):
        raise ValueError(f"not an id prefix: {prefix!r}")
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    return prefix + "_" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
