"""Run inside a network and mount namespace: two daemons, unbound at port 53, and Postfix's own judge of DANE.

Prints what `posttls-finger -l dane-only` says of the daemon whose TLSA record unbound proves.
"""

import subprocess
import sys
from pathlib import Path

from tests.daemon import test_transport as transport
from tests.daemon.running import Daemon
from tests.transport.authority import make


def main(directory: Path) -> int:
    """Return 0 where Postfix verifies the server."""
    with Daemon(directory / "template") as template:
        template.provision()
    both = transport.pair(
        directory / "pair",
        directory / "template",
        signed=True,
        certificate=make("self"),
        root=make("root", ca=True),
        port=53,
    )
    with both:
        command = ["posttls-finger", "-c", "-l", "dane-only", "-L", "summary,verbose", transport.THEIRS]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    print(done.stdout + done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
