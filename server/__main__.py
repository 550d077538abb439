"""The program's entry: install the loop and the reactor, then hand over to the command line.

Twisted's asyncio reactor must be installed on a uvloop loop before anything
else imports the reactor; commands that run no loop are spared the cost.
"""

import sys

NEEDS_LOOP = frozenset({"serve", "dev"})
# The loop shares the interpreter with the journal, apply and the writer: at Python's 5 ms a thread that
# wakes from a sync waits longer for its turn than the sync took. Measured in docs/benchmarks.md.
SWITCH_SECONDS = 0.002
# uvloop gives each TLS connection a buffer of 256 KiB, of which few pages are ever touched. glibc maps such
# blocks by themselves until the first is freed; from then on they lie in the heap between small ones, and an
# idle TLS connection costs 46 KiB instead of 24. Setting the limit, here to its own size, keeps it.
MAPPED_OCTETS = 256 * 1024
# Setting it ends glibc's raising of another limit beside it: what is freed at the heap's end would go back
# to the kernel and be asked for again with every block of a message.
KEPT_OCTETS = 16 * 1024 * 1024
M_TRIM_THRESHOLD = -1  # malloc.h
M_MMAP_THRESHOLD = -3


def keep_large_blocks_apart() -> None:
    """Have glibc's allocator go on mapping large blocks by themselves; elsewhere nothing happens."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAPPED_OCTETS)
        mallopt(M_TRIM_THRESHOLD, KEPT_OCTETS)


def install_loop() -> None:
    """Make a uvloop loop the process's loop and Twisted's reactor run on it."""
    import asyncio

    import uvloop
    from twisted.internet import asyncioreactor

    sys.setswitchinterval(SWITCH_SECONDS)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    asyncioreactor.install(loop)  # type: ignore[no-untyped-call]  # Twisted's


def main() -> None:
    """Run `mailagents`."""
    if NEEDS_LOOP.intersection(sys.argv[1:]):
        keep_large_blocks_apart()
        install_loop()
    from server.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
