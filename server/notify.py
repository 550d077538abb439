"""sd_notify and sd_listen_fds, by hand: the service manager's two small protocols.

Owns the datagrams to NOTIFY_SOCKET (ready, reloading, stopping, watchdog) and
the sockets inherited by name. Does nothing where no manager asks for it.
"""

from __future__ import annotations

import os
import socket
import time

LISTEN_FDS_START = 3


def notify(*lines: str) -> None:
    """Send state lines to the service manager; silent where there is none."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place:
        return
    address = "\0" + place[1:] if place.startswith("@") else place
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(address)
            channel.sendall("\n".join(lines).encode())
        except OSError:
            return  # a manager that is gone can't be told


def ready(text: str) -> None:
    """Tell that the daemon serves."""
    notify("READY=1", f"STATUS={text}")


def reloading() -> None:
    """Tell that a reload has begun; `ready` ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Tell that the daemon drains."""
    notify("STOPPING=1")


def watchdog_seconds() -> float | None:
    """Return how often the manager wants a sign of life, halved; None where it does not."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or pid != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000


def alive() -> None:
    """Give the sign of life."""
    notify("WATCHDOG=1")


def inherited_sockets() -> dict[str, list[socket.socket]]:
    """Return the sockets that the manager opened, by FileDescriptorName."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return {}
    count = int(os.environ.get("LISTEN_FDS", "0"))
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[socket.socket]] = {}
    for offset in range(count):
        name = names[offset] if offset < len(names) else "unknown"
        made = socket.socket(fileno=LISTEN_FDS_START + offset)
        made.setblocking(False)
        os.set_inheritable(made.fileno(), False)
        found.setdefault(name, []).append(made)
    return found
