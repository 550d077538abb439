"""A small mutation engine: seeds, mutators and a dictionary; new behaviour earns a seed its place.

A target is a function of octets that asserts its own invariant. The engine adds
one of its own: no input, OCTETS_LIMIT long at most, may take longer than STALL_SECONDS of
processor time, and one that never ends is stopped after ENDLESS_SECONDS.
"""

import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

STALL_SECONDS = 1.0
ENDLESS_SECONDS = 20.0
POOL_LIMIT = 2000
OCTETS_LIMIT = 65_536

Target = Callable[[bytes], None]


class Engine:
    """One run over one target; the same number gives the same inputs."""

    def __init__(
        self,
        target: Target,
        seeds: Sequence[bytes],
        words: Sequence[bytes],
        number: int,
        *,
        octets_limit: int = OCTETS_LIMIT,
    ) -> None:
        self._target = target
        self._octets_limit = octets_limit
        self._pool = list(seeds)
        self._words = list(words)
        self._dice = random.Random(number)
        self._lines: set[tuple[str, int]] = set()

    def run(self, *, seconds: float = 0.0, rounds: int = 0) -> int:
        """Feed the target for some seconds, or for a number of rounds; returns how many inputs it saw."""
        end = time.monotonic() + seconds
        before = signal.signal(signal.SIGVTALRM, _stop)
        try:
            return self._run(end, rounds)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)

    def _run(self, end: float, rounds: int) -> int:
        done = 0
        for seed in list(self._pool):
            self._feed(seed)
        while (done < rounds) if rounds else (time.monotonic() < end):
            # Tracing tells new lines and costs much: one input in sixteen is traced.
            data = self._mutated()
            if done % 16 == 0 and self._is_new(data):
                self._pool.append(data)
                del self._pool[:-POOL_LIMIT]
            elif done % 16:
                self._feed(data)
            done += 1
        return done

    def _feed(self, data: bytes) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, ENDLESS_SECONDS)
        begin = time.thread_time()
        try:
            self._target(data)
        except BaseException:
            print(f"the input was {data!r}", file=sys.stderr)
            raise
        assert time.thread_time() - begin < STALL_SECONDS, f"a stall of the input {data!r}"

    def _is_new(self, data: bytes) -> bool:
        before = len(self._lines)

        def trace(frame: FrameType, event: str, _argument: object) -> object:
            if event == "line":
                self._lines.add((frame.f_code.co_filename, frame.f_lineno))
            return trace

        signal.setitimer(signal.ITIMER_VIRTUAL, 10 * ENDLESS_SECONDS)
        sys.settrace(trace)
        try:
            self._target(data)
        except BaseException:
            print(f"the input was {data!r}", file=sys.stderr)
            raise
        finally:
            sys.settrace(None)
        return len(self._lines) > before

    def _mutated(self) -> bytes:
        dice = self._dice
        data = dice.choice(self._pool)
        for _ in range(dice.randrange(1, 5)):
            data = dice.choice(_MUTATORS)(self, data)
        return data[: self._octets_limit]

    def _place(self, data: bytes) -> int:
        return self._dice.randrange(len(data) + 1)

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return data
        at = self._dice.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._dice.randrange(8)]) + data[at + 1 :]

    def _insert_word(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + self._dice.choice(self._words) + data[at:]

    def _insert_octet(self, data: bytes) -> bytes:
        at = self._place(data)
        return data[:at] + bytes([self._dice.randrange(256)]) + data[at:]

    def _cut(self, data: bytes) -> bytes:
        begin, end = sorted((self._place(data), self._place(data)))
        return data[:begin] + data[end:]

    def _repeat(self, data: bytes) -> bytes:
        begin, end = sorted((self._place(data), self._place(data)))
        return data[:end] + data[begin:end] * self._dice.randrange(1, 40) + data[end:]

    def _splice(self, data: bytes) -> bytes:
        other = self._dice.choice(self._pool)
        return data[: self._place(data)] + other[self._place(other) :]

    def _break_lines(self, data: bytes) -> bytes:
        old, new = self._dice.sample([b"\r\n", b"\n", b"\r", b"\r\n ", b"\0"], 2)
        return data.replace(old, new, self._dice.randrange(1, 4))


def _stop(_number: int, _frame: object) -> None:
    raise AssertionError("an input without end")


_MUTATORS = (
    Engine._flip,
    Engine._insert_word,
    Engine._insert_octet,
    Engine._cut,
    Engine._repeat,
    Engine._splice,
    Engine._break_lines,
)
