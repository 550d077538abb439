"""Identifiers: a prefix that names the kind, then 26 characters that sort by time.

Owns their form: 48 bits of milliseconds since 1970 and 80 random bits, in
Crockford's base 32, lower case. Refuses prefixes that are not short lower-case
letters, so that an id can go into file names and URLs as it is.
"""

import os
import time
from collections import deque
from functools import lru_cache
from hashlib import blake2b

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Ten bits at a time: five look-ups write a time, where ten would.
_PAIRS = tuple(high + low for high in _ALPHABET for low in _ALPHABET)
_TIME_SHIFTS = tuple(range(40, -1, -10))
_TAIL_SHIFTS = tuple(range(70, -1, -10))
_TAIL_CHARACTERS = 16  # five bits each
_TAIL_OCTETS = 10
_REFILL = 512
# An octet's low five bits as a character: of random octets, random characters.
_CHARACTERS = bytes(ord(_ALPHABET[octet & 31]) for octet in range(256))

# Each call of the system's generator gives up the interpreter's lock, and a busy daemon waits to get
# it back: random ends are made for many ids at once. A deque's ends are safe between threads.
_pool: deque[str] = deque()


def _forget_pool() -> None:
    _pool.clear()


# A child of fork would give out the ids of its parent.
os.register_at_fork(after_in_child=_forget_pool)


def _random_tail() -> str:
    try:
        return _pool.pop()
    except IndexError:
        text = os.urandom(_TAIL_CHARACTERS * _REFILL).translate(_CHARACTERS).decode("ascii")
        parts = [text[at : at + _TAIL_CHARACTERS] for at in range(0, len(text), _TAIL_CHARACTERS)]
        _pool.extend(parts[1:])
        return parts[0]


def of(prefix: str, other: str) -> str:
    """Return the id of another kind that belongs to an id: the same characters behind another prefix."""
    return prefix + other[other.index("_") :]


def new(prefix: str) -> str:
    """Return a fresh id such as `msg_01jd…`; ids of different milliseconds sort by age."""
    if not (prefix.isascii() and prefix.isalpha() and prefix.islower()):
        raise ValueError(f"not an id prefix: {prefix!r}")
    return f"{prefix}_{_time(time.time_ns() // 1_000_000)}{_random_tail()}"


def derived(prefix: str, key: bytes, *, at: int) -> str:
    """Return the id that follows from a key, always the same; at: the microseconds it sorts by."""
    number = int.from_bytes(blake2b(key, digest_size=_TAIL_OCTETS).digest(), "big")
    tail = "".join([_PAIRS[number >> shift & 1023] for shift in _TAIL_SHIFTS])
    return f"{prefix}_{_time(at // 1000)}{tail}"


@lru_cache(maxsize=16)  # a busy daemon makes several ids in a millisecond
def _time(milliseconds: int) -> str:
    number = milliseconds & (1 << 48) - 1
    return "".join([_PAIRS[number >> shift & 1023] for shift in _TIME_SHIFTS])
