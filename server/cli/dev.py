"""`mailagents dev`: the whole appliance on loopback, tried before the user's eyes.

Owns a configuration, an organization, a domain, two inboxes and a key under one
folder, and the demonstration: a foreign client's message in, read over IMAP and
API, a signed reply out to a second server. Nothing leaves the machine: all
other mail goes into the outbox folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from server.cli import demonstration
from server.config import Settings
from server.operations import Context, perform

DOMAIN = "agents.test"
PARTNER = "partner.test"
INBOXES = (f"support@{DOMAIN}", f"billing@{DOMAIN}")
# Offsets from the first port, in the manner of the well-known ones.
OFFSETS = {"mx": 25, "submission": 87, "submissions": 65, "imap": 43, "imaps": 93, "http": 80, "partner": 26}
RULES = Path(__file__).resolve().parent.parent.parent / "conf" / "policies"

TEMPLATE = """\
# Made by `mailagents dev`. Everything stays on loopback.
[server]
hostname = "localhost"
development = true
data_directory = "{directory}/data"
log_level = "warning"

[smtp]
listen_mx = ["tcp:127.0.0.1:{mx}"]
listen_submission = ["tcp:127.0.0.1:{submission}"]
listen_submissions = ["tls:127.0.0.1:{submissions}"]

[imap]
listen = ["tcp:127.0.0.1:{imap}"]
listen_tls = ["tls:127.0.0.1:{imaps}"]

[http]
listen = ["tcp:127.0.0.1:{http}"]

[dkim]
watch_records = false

[authentication]
# There is no DNS to ask in this mode.
enabled = false

[policy]
directory = "{rules}"

[delivery]
# The second server of the demonstration; all other mail is captured, none leaves the machine.
routes = {{ "{partner_domain}" = "smtp:127.0.0.1:{partner}" }}
default_route = "capture"

[control]
socket = "{socket}"
"""


def run(directory: Path, *, once: bool, port_base: int) -> int:
    """Set up, serve, demonstrate; returns the exit status once the daemon has stopped."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        configuration = prepare(directory, port_base)
    except OSError as error:
        print(f"mailagents dev: {error}", file=sys.stderr)
        return 3
    from server import app as appliance
    from storage.errors import StorageError

    settings = Settings.load(configuration)
    try:
        known = provision(directory, settings)
    except (StorageError, OSError) as error:
        print(f"mailagents: {error}", file=sys.stderr)
        return 1
    outcome: list[bool] = []

    async def when_ready(context: Context, stop: Callable[[], None]) -> None:
        try:
            outcome.append(await _show(directory, configuration, known, context))
        except Exception as error:  # noqa: BLE001  a failed demonstration must say so and not leave the user waiting
            print(f"mailagents dev: the demonstration failed: {error!r}", file=sys.stderr)
            outcome.append(False)
        if once or not outcome[-1]:
            stop()

    status = appliance.run(settings, when_ready=when_ready)
    return status or (0 if outcome and outcome[-1] else 1)


def prepare(directory: Path, port_base: int) -> Path:
    """Write the configuration with ports that are free now, or keep the one that is there."""
    configuration = directory / "mailagents.toml"
    ports = _kept_ports(directory)
    if not ports or not configuration.exists() or not all(_is_free(port) for port in ports.values()):
        ports = {name: _free_port(port_base + offset) for name, offset in OFFSETS.items()}
        (directory / "ports.json").write_text(json.dumps(ports))
    configuration.write_text(
        TEMPLATE.format(
            directory=directory,
            rules=RULES,
            partner_domain=PARTNER,
            socket=_socket_path(directory),
            **ports,
        )
    )
    return configuration


def _socket_path(directory: Path) -> Path:
    path = directory / "control.sock"
    if len(str(path).encode()) <= 107:  # sun_path
        return path
    return Path(f"/tmp/mailagents-dev-{os.getuid()}-{abs(hash(str(directory))) % 10**8}.sock")  # noqa: S108


def _kept_ports(directory: Path) -> dict[str, int]:
    try:
        ports: dict[str, int] = json.loads((directory / "ports.json").read_text())
    except (OSError, ValueError):
        return {}
    return ports if ports.keys() == OFFSETS.keys() else {}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return True
    return False


def _free_port(wanted: int) -> int:
    if _is_free(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _show(directory: Path, configuration: Path, known: dict[str, Any], context: Context) -> bool:
    ports = _kept_ports(directory)
    partner = demonstration.Partner(directory / "partner", ports["partner"], PARTNER)
    await partner.start()
    try:
        scene = demonstration.Scene(ports=ports, known=known, partner=partner, context=context)
        passed = await demonstration.play(scene)
    finally:
        await partner.stop()
    _reach(ports, known, directory, configuration)
    return passed


def provision(directory: Path, settings: Settings) -> dict[str, Any]:
    """Make organization, domain, inboxes and key once; returns what was made, secrets included.

    Before the daemon starts, which would find nobody to read the operator's mail. StorageError, OSError.
    """
    path = directory / "credentials.json"
    try:
        known: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if known:
        return known
    from server.clock import SystemClock
    from server.parts import open_store

    store = open_store(settings)
    try:
        known = _make_accounts(Context(store, SystemClock(), settings.server.hostname, actor="cli:dev"))
    finally:
        store.close()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(known, file)
    return known


def _make_accounts(context: Context) -> dict[str, Any]:
    perform(context, "organization-add", {"name": "Dev"})
    domain = perform(context, "domain-add", {"name": DOMAIN})
    inboxes = [perform(context, "inbox-add", {"address": address}) for address in INBOXES]
    key = perform(context, "key-add", {"inbox": INBOXES[0], "name": "dev"})
    console = perform(
        context,
        "key-add",
        {"organization": "Dev", "name": "console", "scopes": ["operator", "org:admin", "event:read"]},
    )
    return {"domain": domain, "inboxes": inboxes, "key": key, "console": console}


def _reach(ports: dict[str, int], known: dict[str, Any], directory: Path, configuration: Path) -> None:
    first = known["inboxes"][0]
    print("\nHow to reach it, all on 127.0.0.1:")
    print(f"  SMTP (MX)    {ports['mx']}")
    print(f"  Submission   {ports['submission']} (STARTTLS), {ports['submissions']} (TLS)")
    print(f"  IMAP         {ports['imap']} (STARTTLS), {ports['imaps']} (TLS)")
    print(f"  API          http://127.0.0.1:{ports['http']}/v1, described in /v1/openapi.json")
    print(f"  Console      http://127.0.0.1:{ports['http']}/console, key {known['console']['key']}")
    for inbox in known["inboxes"]:
        print(f"  Inbox        {inbox['address']}, password {inbox['password']}, {inbox['id']}")
    print(f"  API key      {known['key']['key']} (of {first['address']})")
    print(f"  Outbox       {directory}/data/outbox, a Maildir with all mail for other domains")
    print(f"  Command line ./mailagents status --config {configuration}")
    sys.stdout.flush()
