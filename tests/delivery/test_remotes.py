"""Debian's Exim and Postfix as the servers that mail goes to, with what they refuse at each command."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.postfix import Postfix
from server.tls import make_self_signed, opportunistic_context
from storage.records import Envelope, Recipient
from tests.daemon.running import free_ports
from tests.delivery.test_scheduler import MakeWorld, run
from tests.delivery.world import World
from tests.interop.programs import program
from tests.storage.queued import message_values

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(os.geteuid() != 0, reason="both servers need root"),
]
USER = "Debian-exim"
# A recipient's local part, or a port for what comes before recipients, chooses what is refused and where.
EXIM = """
primary_hostname = exim.test
exim_path = {exim}
keep_environment =
spool_directory = {place}/spool
log_file_path = {place}/log/%slog
pid_file_path = {place}/exim.pid
exim_user = {USER}
never_users =
local_interfaces = 127.0.0.1
daemon_smtp_ports = {ports}
tls_advertise_hosts = ${{if eq{{$received_port}}{{{tls}}}{{*}}}}
tls_certificate = {place}/certificate.pem
tls_privatekey = {place}/key.pem
host_lookup =
rfc1413_query_timeout = 0s
message_size_limit = 1M
acl_smtp_connect = connect
acl_smtp_helo = helo
acl_smtp_mail = sender
acl_smtp_rcpt = recipient
acl_smtp_data = content
begin acl
connect:
  deny condition = ${{if eq{{$received_port}}{{{deny_connect}}}}}
       message = 554 5.7.1 no connections from you
  defer condition = ${{if eq{{$received_port}}{{{defer_connect}}}}}
       message = 421 4.3.2 not now
  accept
helo:
  deny condition = ${{if eq{{$received_port}}{{{deny_helo}}}}}
       message = 550 5.7.1 what a name
  accept
sender:
  deny condition = ${{if eq{{$received_port}}{{{deny_mail}}}}}
       message = 550 5.1.8 sender refused
  defer condition = ${{if eq{{$received_port}}{{{defer_mail}}}}}
       message = 451 4.1.8 sender not looked up
  accept
recipient:
  deny local_parts = deny-rcpt
       message = 550 5.1.1 no such user
  defer local_parts = defer-rcpt
       message = 450 4.2.0 greylisted, come back
  drop local_parts = drop-rcpt
       message = 550 5.7.1 go away
  accept
content:
  deny condition = ${{if match{{$recipients}}{{deny-data}}}}
       message = 550 5.7.1 this is spam
  defer condition = ${{if match{{$recipients}}{{defer-data}}}}
       message = 451 4.3.0 cannot look at it now
  accept
begin routers
everything:
  driver = redirect
  data = :blackhole:
begin retry
* * F,1h,15m
"""
PORTS = ("plain", "tls", "deny_connect", "defer_connect", "deny_helo", "deny_mail", "defer_mail")


@dataclass(frozen=True)
class Exim:
    """A running Exim: its ports by what it does there, and its log."""

    ports: dict[str, int]
    log: Path


@pytest.fixture(scope="module")
def exim() -> Iterator[Exim]:
    """Exim in a mount namespace in which its user is known."""
    binary = os.environ.get("MAILAGENTS_EXIM")
    if binary == "":
        pytest.skip("Exim could not be fetched")
    binary = binary or program("exim4")
    place = Path(tempfile.mkdtemp(prefix="exim-remote-"))
    place.chmod(0o755)
    for name, line in (("passwd", f"{USER}:x:64999:64999::/:/bin/false"), ("group", f"{USER}:x:64999:")):
        others = [one for one in Path("/etc", name).read_text().splitlines() if not one.startswith(USER)]
        (place / name).write_text("\n".join([*others, line]) + "\n")
    for name in ("spool", "log"):
        (place / name).mkdir()
        os.chown(place / name, 64999, 64999)
    for made, name in zip(make_self_signed(place, names=["other.test"]), ("certificate", "key"), strict=True):
        made.rename(place / f"{name}.pem")
        os.chown(place / f"{name}.pem", 64999, 64999)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    listed = " : ".join(map(str, ports.values()))
    (place / "exim.conf").write_text(
        EXIM.format(exim=binary, place=place, USER=USER, **{**ports, "ports": listed})
    )
    bind = 'for name in passwd group; do mount --bind "$0/$name" "/etc/$name" || exit 99; done; exec "$@"'
    command = [binary, "-C", f"{place}/exim.conf", "-bdf"]
    running = subprocess.Popen(["unshare", "--mount", "sh", "-c", bind, str(place), *command])
    try:
        _await_port(running, ports["plain"])
        yield Exim(ports, place / "log")
    finally:
        running.terminate()
        running.wait()
        shutil.rmtree(place)


def _await_port(running: subprocess.Popen[bytes], port: int) -> None:
    import socket

    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert running.poll() is None, f"it ended with {running.returncode}, 99 for no mount namespace"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError("it does not listen")


def queued(world: World, *recipients: str, content: bytes = b"Subject: x\r\n\r\nhello\r\n") -> None:
    """One message to recipients at peer.test, whose ids are dlv_1 and on."""
    addresses = tuple(Recipient(f"{one}@peer.test") for one in recipients)
    for number, one in enumerate(addresses, 1):
        world.queue(f"dlv_{number}", message_id="msg_1", content=content, recipient=one.address)
    values = message_values("msg_1", envelope=Envelope("s@ours.test", addresses))
    from storage.schema import messages

    world.database.write(lambda c: c.execute(messages.update().values(envelope=values["envelope"])))


def told(world: World, kind: str) -> dict[str, Any]:
    (found,) = world.data(f"message.{kind}")
    return dict(found)


@pytest.mark.parametrize(
    ("where", "recipient", "state", "code", "phase"),
    [
        ("deny_connect", "a", "deferred", 554, "connect"),
        ("defer_connect", "a", "deferred", 421, "connect"),
        ("deny_helo", "a", "deferred", 550, "ehlo"),
        ("deny_mail", "a", "bounced", 550, "mail"),
        ("defer_mail", "a", "deferred", 451, "mail"),
        ("plain", "deny-rcpt", "bounced", 550, "rcpt"),
        ("plain", "defer-rcpt", "deferred", 450, "rcpt"),
        ("plain", "drop-rcpt", "bounced", 550, "rcpt"),
        ("plain", "deny-data", "bounced", 550, "final"),
        ("plain", "defer-data", "deferred", 451, "final"),
    ],
)
def test_what_exim_refuses_at_each_command(  # noqa: PLR0917 - pytest's own way
    exim: Exim, make_world: MakeWorld, where: str, recipient: str, state: str, code: int, phase: str
) -> None:
    async def test() -> None:
        world = make_world(routes={"peer.test": f"smtp:127.0.0.1:{exim.ports[where]}"})
        queued(world, recipient)
        async with world.running():
            await world.until(dlv_1=state)
        found = told(world, state)
        assert (found["code"], found["phase"]) == (code, phase)
        assert any(line.startswith(f"S: {code}") for line in found["dialogue"])

    run(test())


def test_exim_takes_one_and_refuses_another(exim: Exim, make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(routes={"peer.test": f"smtp:127.0.0.1:{exim.ports['plain']}"})
        queued(world, "good", "deny-rcpt", "defer-rcpt")
        async with world.running():
            await world.until(dlv_1="delivered", dlv_2="bounced", dlv_3="deferred")
        assert "deny-rcpt" in " ".join(told(world, "bounced")["dialogue"])
        assert "defer-rcpt" not in " ".join(told(world, "bounced")["dialogue"])
        # So Exim marks what came by BDAT.
        assert " K " in (exim.log / "mainlog").read_text()

    run(test())


def test_exim_names_a_limit_and_is_sent_nothing_beyond_it(exim: Exim, make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(routes={"peer.test": f"smtp:127.0.0.1:{exim.ports['plain']}"})
        queued(world, "good", content=b"Subject: x\r\n\r\n" + b"y" * 78 * 20_000 + b"\r\n")
        async with world.running():
            await world.until(dlv_1="bounced")
        assert (told(world, "bounced")["enhanced"], told(world, "bounced")["phase"]) == ("5.3.4", "policy")

    run(test())


def test_a_certificate_for_another_name_will_do_where_nothing_asks_for_more(
    exim: Exim, make_world: MakeWorld
) -> None:
    async def test() -> None:
        world = make_world(routes={"peer.test": f"smtp:127.0.0.1:{exim.ports['tls']}"})
        queued(world, "good")
        async with world.running(tls=opportunistic_context()):
            await world.until(dlv_1="delivered")
        assert told(world, "delivered")["tls_version"] == "TLSv1.3"

    run(test())


def test_a_smart_host_with_a_certificate_for_another_name_gets_nothing(
    exim: Exim, make_world: MakeWorld
) -> None:
    async def test() -> None:
        world = make_world(routes={"peer.test": f"smtp+tls:127.0.0.1:{exim.ports['tls']}"})
        queued(world, "good")
        async with world.running(tls=opportunistic_context()):
            await world.until(dlv_1="deferred")
        assert told(world, "deferred")["phase"] == "tls"

    run(test())


@pytest.fixture(scope="module")
def postfix() -> Iterator[int]:
    """Postfix with a table of what it says to whom."""
    program("postfix")
    (port,) = free_ports(1)
    place = Path(tempfile.mkdtemp(prefix="postfix-remote-"))
    place.chmod(0o755)
    access = {
        "deny@peer.test": "550 5.1.1 no such user",
        "grey@peer.test": "450 4.2.0 greylisted",
    }
    table = "inline:{" + ", ".join(f"{{{who} = {what}}}" for who, what in access.items()) + "}"
    server = Postfix(
        place / "postfix",
        port=port,
        more={
            "mydestination": "peer.test",
            "local_recipient_maps": "",
            "local_transport": "discard:",
            "smtpd_recipient_restrictions": f"check_recipient_access {table}, permit_mynetworks, "
            "reject_unauth_destination",
            "smtpd_delay_reject": "no",
            "message_size_limit": "100000",
            "smtpd_client_restrictions": "permit",
        },
    )
    server.start()
    yield port
    server.stop()
    shutil.rmtree(place)


def test_postfix_takes_one_refuses_another_and_greylists_a_third(postfix: int, make_world: MakeWorld) -> None:
    async def test() -> None:
        world = make_world(routes={"peer.test": f"smtp:127.0.0.1:{postfix}"})
        queued(world, "good", "deny", "grey")
        async with world.running():
            await world.until(dlv_1="delivered", dlv_2="bounced", dlv_3="deferred")
        assert (told(world, "bounced")["code"], told(world, "deferred")["enhanced"]) == (550, "4.2.0")
        assert "queued as" in told(world, "delivered")["text"]

    run(test())
