"""ClamAV and rspamd of the tests' own, from Debian's packages: private processes, gone with the test.

Neither reaches the internet: clamd has two signatures of our own, rspamd no DNS and no Redis.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.interop.programs import program
from tests.postgres import _end_with_parent as end_with_parent

START_SECONDS = 60
# Written in two pieces, so that no scanner takes this file for what it describes.
EICAR = b"X5O!P%@AP[4\\PZX54(P^)7CC)7}$EICAR-" + b"STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"
GTUBE = b"XJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
ADD_HEADER_GTUBE = b"YJS*C4JDBQADN1.NSBN3*2IDNEN*" + b"GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"
VIRUS = "Test.Eicar.UNOFFICIAL"


@dataclass(frozen=True)
class Running:
    """A scanner that answers. address: as the settings write it; process: to be stopped and hit."""

    address: str
    process: "subprocess.Popen[bytes]"
    directory: Path


def _wait(knock: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path) -> None:
    pause = threading.Event()
    for _ in range(START_SECONDS * 20):
        if process.poll() is not None:
            break
        try:
            if knock():
                return
        except OSError:
            pass
        pause.wait(0.05)
    raise AssertionError(f"{process.args} did not start: {log.read_text(errors='replace')}")


@contextmanager
def _running(
    directory: Path, command: list[object], address: str, knock: Callable[[], bool]
) -> Iterator[Running]:
    log = directory / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=output,
            cwd=directory,
            preexec_fn=end_with_parent,
            start_new_session=True,
        )
    try:
        _wait(knock, process, log)
        yield Running(address, process, directory)
    finally:
        # rspamd's workers are of its group, and a stopped or killed parent would leave them behind.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(START_SECONDS)
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def clamd(**settings: object) -> Iterator[Running]:
    """A clamd on a Unix socket that knows EICAR alone. settings: more lines of its configuration."""
    binary = program("clamd")
    directory = Path(tempfile.mkdtemp(prefix="clamd-"))
    signatures = directory / "signatures"
    signatures.mkdir()
    (signatures / "test.ndb").write_text(f"Test.Eicar:0:*:{EICAR.hex()}\n")
    place = directory / "socket"
    lines = {
        "LocalSocket": place,
        "DatabaseDirectory": signatures,
        "Foreground": "yes",
        "LogFile": directory / "log",
        "TemporaryDirectory": directory,
        "MaxThreads": 4,
        **settings,
    }
    configuration = directory / "clamd.conf"
    configuration.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))

    def knock() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(place))
            client.sendall(b"zPING\0")
            return client.recv(100) == b"PONG\0"

    command: list[object] = [binary, "--config-file", configuration]
    with _running(directory, command, f"unix:{place}", knock) as running:
        yield running


RSPAMD = """
options {{
  pidfile = "{directory}/pid";
  tempdir = "{directory}";
  hs_cache_dir = "{directory}";
  enable_test_patterns = true;
  disable_hyperscan = true;
  url_tld = "{directory}/domains";
  filters = "";
  dns {{ nameserver = ["127.0.0.1:9"]; timeout = 0.1s; retransmits = 1; }}
}}
logging {{ type = "console"; level = "info"; }}
worker "normal" {{ bind_socket = "{place} mode=0666"; count = 1; }}
actions {{ reject = 15; add_header = 6; }}
"""


@contextmanager
def rspamd() -> Iterator[Running]:
    """An rspamd with a normal worker on a Unix socket, without rules, DNS and Redis; it knows GTUBE."""
    binary = program("rspamd")
    directory = Path(tempfile.mkdtemp(prefix="rspamd-"))
    directory.chmod(0o777)
    place = directory / "socket"
    # Debian's list of ten thousand suffixes takes half a minute to be compiled.
    (directory / "domains").write_text("test\nexample\n")
    configuration = directory / "rspamd.conf"
    configuration.write_text(RSPAMD.format(directory=directory, place=place))

    def knock() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(place))
            client.sendall(b"GET /ping HTTP/1.0\r\n\r\n")
            return b"200" in client.recv(100)

    command: list[object] = [binary, "--no-fork", "--insecure", "-c", configuration]
    with _running(directory, command, f"unix:{place}", knock) as running:
        yield running
