"""Exim in front of us: it hands over by LMTP, over TCP and a Unix socket, and is told of each recipient.

Debian's Exim and Postfix exclude each other: MAILAGENTS_EXIM names one that was only unpacked
(dpkg-deb -x exim4-daemon-light), and that its user is missing is mended in a mount namespace of its own.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.letters import DOMAIN
from tests.daemon.running import Daemon, free_ports
from tests.interop.programs import program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="Exim needs root")
USER = "Debian-exim"
CONFIGURATION = """
primary_hostname = front.test
exim_path = {exim}
keep_environment =
spool_directory = {place}/spool
log_file_path = {place}/log/%slog
exim_user = {USER}
never_users =
trusted_users = root
begin routers
ours:
  driver = manualroute
  route_list = * 127.0.0.1
  self = send
  transport = lmtp_{way}
begin transports
lmtp_tcp:
  driver = smtp
  protocol = lmtp
  port = {port}
  hosts_try_fastopen =
lmtp_unix:
  driver = lmtp
  socket = {socket}
  batch_max = 100
  user = {USER}
begin retry
* * F,1h,15m
"""


@pytest.fixture(scope="module")
def house(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with LMTP over TCP and a Unix socket that everybody may use."""
    (port,) = free_ports(1)
    sockets = Path(tempfile.mkdtemp(prefix="lmtp-"))
    sockets.chmod(0o755)
    places = [f"tcp:127.0.0.1:{port}", f"unix:{sockets}/lmtp,mode=0666"]
    with Daemon(
        tmp_path_factory.mktemp("exim") / "daemon", template=template, smtp={"listen_lmtp": places}
    ) as running:
        running.ports["lmtp"] = port
        running.lmtp_socket = sockets / "lmtp"
        yield running.start()
    shutil.rmtree(sockets)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that Exim's own user may enter, with the accounts of this machine and its own."""
    made = Path(tempfile.mkdtemp(prefix="exim-"))
    made.chmod(0o755)
    for name, line in (("passwd", f"{USER}:x:64999:64999::/:/bin/false"), ("group", f"{USER}:x:64999:")):
        others = [one for one in Path("/etc", name).read_text().splitlines() if not one.startswith(USER)]
        (made / name).write_text("\n".join([*others, line]) + "\n")
    for name in ("spool", "log"):
        (made / name).mkdir()
        os.chown(made / name, 64999, 64999)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_exim_delivers_by_lmtp_and_is_told_of_each_recipient(house: Daemon, place: Path, way: str) -> None:
    exim = os.environ.get("MAILAGENTS_EXIM")
    if exim is None:
        exim = program("exim4")
    elif not exim:
        pytest.skip("Exim could not be fetched")
    text = CONFIGURATION.format(
        exim=exim, place=place, way=way, port=house.ports["lmtp"], socket=house.lmtp_socket, USER=USER
    )
    (place / "exim.conf").write_text(text)
    one, two = house.new_inbox(), house.new_inbox()
    recipients = [one.address, f"nobody@{DOMAIN}", two.address]
    command = [exim, "-C", f"{place}/exim.conf", "-odf", "-f", "a@partner.test", *recipients]
    bind = 'for name in passwd group; do mount --bind "$0/$name" "/etc/$name" || exit 99; done; exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", bind, str(place), *command],
        input=f"From: a@partner.test\nTo: {one.address}\nSubject: exim {way}\n\nHello.\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{done.returncode}, 99 for no mount namespace: {done.stderr}"
    log = (place / "log/mainlog").read_text()
    for inbox in (one, two):
        # Over TCP it takes the STARTTLS that it is offered.
        protocol = "LMTPS" if way == "tcp" else "LMTP"
        assert f"with {protocol} id" in house.find(inbox, f"exim {way}")["Received"]
        (said,) = [line for line in log.splitlines() if f" {inbox.address} " in line]
        assert " => " in said or " -> " in said
    (refused,) = [line for line in log.splitlines() if f" ** nobody@{DOMAIN} " in line]
    assert "550 5.1.1" in refused
