"""What the daemon costs at rest: seconds to readiness, memory idle and per idle connection."""

import argparse
import socket
import sys
from statistics import median

from bench import disk, report
from bench.appliance import Appliance

CONNECTIONS = 1000
GOALS = {"start": 2.0, "idle-daemon": 120.0, "idle-smtp": 30.0}


def main() -> int:
    """Run the bench; 0 when every cell is within its limit."""
    parser = argparse.ArgumentParser(prog="bench/footprint", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one start instead of five")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    options = parser.parse_args()
    with disk.workplace() as (place, described):
        daemon = Appliance(place / "mailagents", port=2600)
        starts = []
        for _ in range(1 if options.quick else 5):
            starts.append(daemon.start())
            daemon.stop()
        daemon.start()
        try:
            idle = daemon.rss_octets()
            per_connection = idle_connection_octets(daemon)
        finally:
            daemon.stop()
    cells = [
        _cell("start", median(starts), "s to the first greeting"),
        _cell("idle-daemon", idle / (1 << 20), "MiB resident, all roles"),
        _cell("idle-smtp", per_connection / 1024, f"KiB a connection, {CONNECTIONS} idle"),
    ]
    report.show(cells, report.machine(**{"file system": described}), as_json=options.json)
    over = [cell.name for cell in cells if cell.ratio is not None and cell.ratio > 1]
    if over:
        print(f"over the limit: {', '.join(over)}", file=sys.stderr)
    return 1 if over else 0


def _cell(name: str, value: float, unit: str) -> report.Cell:
    # There is no other server here: theirs is the limit that the figure is held to.
    return report.Cell(name, value, GOALS[name], value / GOALS[name], unit)


def idle_connection_octets(daemon: Appliance) -> float:
    """Open connections that greet and wait; returns the memory each costs, all being served after."""
    before = daemon.rss_octets()
    connections = [_greeted(daemon.port) for _ in range(CONNECTIONS)]
    cost = (daemon.rss_octets() - before) / CONNECTIONS
    for connection in connections:
        connection.sendall(b"NOOP\r\n")
    for connection in connections:
        answer = connection.recv(512)
        if not answer.startswith(b"250"):
            raise RuntimeError(f"an idle connection answered {answer!r}")
        connection.close()
    return cost


def _greeted(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    if not connection.recv(512).startswith(b"220"):
        raise RuntimeError("no greeting")
    connection.sendall(b"EHLO idle.test\r\n")
    received = b""
    while b"250 " not in received:
        received += connection.recv(4096)
    return connection


if __name__ == "__main__":
    sys.exit(main())
