"""Large blocks stay out of the heap, whatever was freed before."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Two blocks as uvloop makes them for a TLS connection, the second after the first was freed;
# prints how many blocks are mapped by themselves then.
PROGRAM = """
import ctypes, sys
from server.__main__ import keep_large_blocks_apart
if sys.argv[1] == "set":
    keep_large_blocks_apart()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
libc.free(libc.malloc(262144))
before = libc.mallinfo2().hblks
kept = libc.malloc(262144)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has this threshold")
@pytest.mark.parametrize(("setting", "mapped"), [("set", "1"), ("unset", "0")])
def test_a_large_block_is_mapped_though_another_was_freed(setting: str, mapped: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, setting], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == mapped
