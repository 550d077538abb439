"""Packed files from strangers: gzip and zip, unpacked within limits.

Owns the telling of what a file is by its first octets, and the limits of what may come
out of it: octets, ratio, entries. Reads a zip archive's members in the order of their
local headers by the standard library; what is encrypted, or packed by other ways than
deflate, is refused. RFC 1952 (gzip), RFC 1951 (deflate).
"""

import struct
import zipfile
import zlib
from io import BytesIO

MAX_RATIO = 300
RATIO_FROM_OCTETS = 1 << 20  # what is smaller unpacked may be of any ratio
MAX_ENTRIES = 100
_CHUNK = 1 << 16
_ENTRY_MARK = b"PK\x01\x02"
# What the library raises at octets that were made to confuse it.
_ZIP_FAULTS = (
    zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, zlib.error, struct.error,
    EOFError, OSError, ValueError, OverflowError, LookupError,
)  # fmt: skip


class Unpackable(ValueError):
    """What cannot be unpacked, or is more than the limits; the text says why."""


def unpack(octets: bytes, *, limit: int, suffix: str) -> bytes:
    """Return what a gzip file or the one fitting member of a zip archive holds; other octets as they are.

    suffix: which member of an archive is wanted, where it has several. Raises Unpackable.
    """
    if octets[:2] == b"\x1f\x8b":
        return _gunzip(octets, limit)
    if octets[:4] == b"PK\x03\x04":
        return _unzip(octets, limit, suffix)
    if len(octets) > limit:
        raise Unpackable(f"larger than {limit} octets")
    return octets


def _gunzip(octets: bytes, limit: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    left = octets
    while left[:2] == b"\x1f\x8b" and len(parts) < MAX_ENTRIES:
        # RFC 1952 2.2: a file may be several members, one behind the other.
        stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        try:
            part = stream.decompress(left, limit - total + 1)
        except zlib.error as error:
            raise Unpackable(f"the gzip file is damaged: {error}") from None
        total += len(part)
        _check(total, len(octets), limit)
        if not stream.eof:
            raise Unpackable("the gzip file ends early")
        parts.append(part)
        left = stream.unused_data
    return b"".join(parts)


def _unzip(octets: bytes, limit: int, suffix: str) -> bytes:
    if octets.count(_ENTRY_MARK) > MAX_ENTRIES:
        raise Unpackable(f"the archive has more than {MAX_ENTRIES} entries")
    try:
        with zipfile.ZipFile(BytesIO(octets)) as archive:
            member = _choose(archive, suffix)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Unpackable("the archive is packed in a way that is not read here")
            if member.flag_bits & 1:
                raise Unpackable("the archive is encrypted")
            return _member(archive, member, len(octets), limit)
    except Unpackable:
        raise
    except _ZIP_FAULTS:
        raise Unpackable("the zip archive is damaged") from None  # the library repeats what stands in it


def _choose(archive: zipfile.ZipFile, suffix: str) -> zipfile.ZipInfo:
    members = [one for one in archive.infolist() if not one.is_dir()]
    fitting = [one for one in members if one.filename.lower().endswith(suffix)]
    if len(fitting) != 1 and len(members) != 1:
        raise Unpackable(f"the archive holds {len(fitting)} files {suffix}, not one")
    return (fitting if len(fitting) == 1 else members)[0]


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, packed: int, limit: int) -> bytes:
    made = bytearray()
    with archive.open(member) as file:
        while chunk := file.read(_CHUNK):
            made += chunk
            _check(len(made), packed, limit)
    return bytes(made)


def _check(total: int, packed: int, limit: int) -> None:
    if total > limit:
        raise Unpackable(f"it unpacks to more than {limit} octets")
    if total > RATIO_FROM_OCTETS and total > packed * MAX_RATIO:
        raise Unpackable(f"it unpacks to more than {MAX_RATIO} times its size")
