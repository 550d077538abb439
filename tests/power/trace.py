"""What a process asked of the kernel, as strace wrote it down: calls with their times, paths and octets.

Pure parsing of `strace -ff -y -xx` with nanosecond times. Only calls on paths below one directory
count, and what went out on sockets.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "openat,write,pwrite64,writev,pwritev,pwritev2,link,linkat,rename,renameat,renameat2,unlink,unlinkat,"
    "rmdir,fsync,fdatasync,syncfs,ftruncate,fallocate,mkdir,mkdirat,copy_file_range,sendto,sendmsg"
)
TEXT_OCTETS = 1 << 21


def command(output: Path) -> list[str]:
    """Return what stands before a command to have it recorded into files that begin with output."""
    return [
        *("strace", "-ff", "-o", str(output), "-y", "-xx", "-s", str(TEXT_OCTETS), "--seccomp-bpf"),
        *("--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns"),
        *("-e", "trace=" + CALLS, "-e", "signal=none"),
    ]


@dataclass(frozen=True)
class Call:
    """One call that succeeded. start, end: nanoseconds; paths: of its descriptors, then its names."""

    start: int
    end: int
    name: str
    descriptors: tuple[str, ...]
    names: tuple[str, ...]
    octets: bytes
    numbers: tuple[int, ...]
    flags: str
    result: int
    opened: str

    @property
    def path(self) -> str:
        """What a call on one descriptor is about."""
        return self.descriptors[0]


_LINE = re.compile(r"^(\d+)\.(\d{9}) (\w+)\((.*)\) += (\d+)(?:<((?:\\x..)*)>)? <(\d+)\.(\d{9})>$", re.DOTALL)
_DESCRIPTOR = re.compile(r"(?:\bAT_FDCWD|\b\d+)<((?:\\x..|[^>])*)>")
_TEXT = re.compile(r'"((?:\\x..)*)"')
_NUMBER = re.compile(r"(?:^|, )(-?(?:0x[0-9a-f]+|\d+))(?=,|$)")
_WITH_NAMES = frozenset({"link", "linkat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"})


def read(output: Path) -> list[Call]:
    """Return the calls of all recorded threads, in the order in which they ended."""
    found = [call for path in output.parent.glob(output.name + ".*") for call in parse(path.open())]
    return sorted(found, key=lambda call: call.end)


def parse(lines: Iterable[str]) -> Iterator[Call]:
    """Yield the calls of one thread; those that failed or never ended are left out."""
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        seconds, fraction, name, given, result, opened, took, took_fraction = match.groups()
        start = int(seconds) * 1_000_000_000 + int(fraction)
        texts = [_octets(text) for text in _TEXT.findall(given)]
        has_names = name in _WITH_NAMES or name in ("openat", "mkdir", "mkdirat")
        bare = _TEXT.sub('""', _DESCRIPTOR.sub("@", given))
        yield Call(
            start=start,
            end=start + int(took) * 1_000_000_000 + int(took_fraction),
            name=name,
            descriptors=tuple(_decode(one) for one in _DESCRIPTOR.findall(given)),
            names=tuple(text.decode("utf-8", "surrogateescape") for text in texts) if has_names else (),
            octets=b"" if has_names else b"".join(texts),
            numbers=tuple(int(one, 16 if "x" in one else 10) for one in _NUMBER.findall(bare)),
            flags=bare,
            result=int(result),
            opened=_decode(opened or ""),
        )


def _octets(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _decode(text: str) -> str:
    return _octets(text).decode("utf-8", "surrogateescape") if text.startswith("\\x") else text
