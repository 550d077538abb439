"""Identifiers: a prefix that names the kind, then 26 characters that sort by time.

Owns their form: 48 bits of milliseconds since 1970 and 80 random bits, in
Crockford's base 32, lower case. Refuses prefixes that are not short lower-case
letters, so that an id can go into file names and URLs as it is.
"""

import os
import time
from collections import deque
from hashlib import blake2b

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Ten bits at a time: thirteen look-ups make an id, where 26 would.
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_SHIFTS = tuple(range(120, -1, -10))
_RANDOM_OCTETS = 10
_REFILL = 512

# Each call of the system's generator gives up the interpreter's lock, and a busy daemon waits to get
# it back: random octets are fetched for many ids at once. A deque's ends are safe between threads.
_pool: deque[bytes] = deque()


def _forget_pool() -> None:
    _pool.clear()


# A child of fork would give out the ids of its parent.
os.register_at_fork(after_in_child=_forget_pool)


def _random() -> bytes:
    try:
        return _pool.pop()
    except IndexError:
        octets = os.urandom(_RANDOM_OCTETS * _REFILL)
        parts = [octets[at : at + _RANDOM_OCTETS] for at in range(0, len(octets), _RANDOM_OCTETS)]
        _pool.extend(parts[1:])
        return parts[0]


def of(prefix: str, other: str) -> str:
    """Return the id of another kind that belongs to an id: the same characters behind another prefix."""
    return prefix + other[other.index("_") :]


def new(prefix: str) -> str:
    """Return a fresh id such as `msg_01jd…`; ids of different milliseconds sort by age."""
    if not (prefix.isascii() and prefix.isalpha() and prefix.islower()):
        raise ValueError(f"not an id prefix: {prefix!r}")
    return _written(prefix, time.time_ns() // 1_000_000, _random())


def derived(prefix: str, key: bytes, *, at: int) -> str:
    """Return the id that follows from a key, always the same; at: the microseconds it sorts by."""
    return _written(prefix, at // 1000, blake2b(key, digest_size=_RANDOM_OCTETS).digest())


def _written(prefix: str, milliseconds: int, octets: bytes) -> str:
    number = (milliseconds & (1 << 48) - 1) << 80 | int.from_bytes(octets, "big")
    return prefix + "_" + "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])
