"""Starts that must fail do so with a sentence for the operator; those that go well tell who waits."""

import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.daemon.running import Daemon, Trouble, run_cli, until

EXIT_UNREACHABLE = 3
EXIT_CONFIGURATION = 4


@pytest.fixture
def fresh(template: Path, tmp_path: Path) -> Daemon:
    """A provisioned daemon that is not running."""
    with Daemon(tmp_path / "fresh", template=template) as made:
        yield made


def refusal(daemon: Daemon) -> tuple[int, str]:
    """Start a daemon that must not start; its exit status and what it wrote."""
    before = len(daemon.log)
    process = daemon.spawn()
    try:
        status = process.wait(30)
    except subprocess.TimeoutExpired:
        raise Trouble(f"it started:\n{daemon.log}") from None
    text = daemon.log[before:]
    assert "Traceback" not in text, text
    return status, text


def only_sentence(text: str) -> str:
    """The operator's sentence; nothing else of weight was written."""
    lines = [line for line in text.splitlines() if line.startswith("mailagents: ")]
    assert len(lines) == 1, text
    return lines[0]


def overwrite(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:100] = b"This is no database. " * 4 + b"." * 16
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def scramble(path: Path) -> None:
    """Garbage in the middle: the header says SQLite, its tables say nothing."""
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 4096] = bytes((7 * at) & 0xFF for at in range(len(content) - 8192))
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [overwrite, cut, scramble])
def test_a_broken_database_stops_the_start_with_a_sentence(
    fresh: Daemon, damage: Callable[[Path], None]
) -> None:
    database = fresh.data / "mailagents.sqlite"
    damage(database)
    broken = database.read_bytes()
    status, text = refusal(fresh)
    assert status == EXIT_UNREACHABLE
    assert "mailagents.sqlite" in only_sentence(text)
    assert database.read_bytes() == broken, "the evidence was changed"
    asked = run_cli("status", "--config", fresh.configuration)
    assert asked.returncode == EXIT_UNREACHABLE
    assert "mailagents.sqlite" in asked.stderr and "Traceback" not in asked.stderr


def test_a_database_of_another_installation_is_refused(fresh: Daemon, tmp_path: Path) -> None:
    with Daemon(tmp_path / "other") as other:
        other.cli("status")
        shutil.copy(other.data / "mailagents.sqlite", fresh.data / "mailagents.sqlite")
    status, text = refusal(fresh)
    assert status == EXIT_UNREACHABLE
    assert str(fresh.data) in only_sentence(text)


def test_a_second_daemon_on_the_same_data_is_refused(fresh: Daemon, tmp_path: Path) -> None:
    fresh.start()
    second_settings = {"server": {"data_directory": str(fresh.data)}}
    with Daemon(tmp_path / "second", **second_settings) as second:
        status, text = refusal(second)
    assert status == EXIT_UNREACHABLE
    sentence = only_sentence(text)
    assert "in use" in sentence and str(fresh.pid) in sentence
    assert fresh.ask("status")["journal_backlog_octets"] == 0


def test_a_port_in_use_is_named(fresh: Daemon) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", fresh.ports["imaps"]))
        squatter.listen()
        status, text = refusal(fresh)
    assert status == EXIT_UNREACHABLE
    sentence = only_sentence(text)
    assert f"127.0.0.1:{fresh.ports['imaps']}" in sentence and "in use" in sentence
    fresh.start()


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ("server", {"data_directory": "/proc/mailagents"}, "/proc/mailagents"),
        ("tls", {"certificate_file": "/nowhere/c.pem", "key_file": "/nowhere/k.pem"}, "/nowhere/c.pem"),
        ("tls", {"certificate_file": "credential:c", "key_file": "credential:k"}, "credential"),
        ("policy", {"directory": "/nowhere/rules"}, "/nowhere/rules"),
        (
            "store",
            {
                "database_url": "postgresql+psycopg://u@127.0.0.1:1/m",
                "database_password_file": "credential:p",
            },
            "database_password_file",
        ),
        ("control", {"socket": "/proc/mailagents/control"}, "/proc/mailagents"),
        ("smtp", {"listen_mx": ["tcp:192.0.2.1:25"]}, "192.0.2.1:25"),
        ("smtp", {"listen_mx": ["systemd:mx"]}, "systemd"),
    ],
)
def test_what_cannot_be_used_is_named(
    template: Path, tmp_path: Path, section: str, values: dict[str, object], words: str
) -> None:
    with Daemon(tmp_path / "daemon", template=template, **{section: values}) as made:
        status, text = refusal(made)
    assert status == EXIT_UNREACHABLE
    assert words in only_sentence(text)


@pytest.mark.parametrize(
    "rules",
    [
        b"[[rule]]\nname = 'x'\nstage = 'mail'\nwhen = 'dmarc == \"fail\"'\naction = 'reject'\n",
        b"[[rule]\n",
        b"# caf\xe9\n",
    ],
    ids=["too early", "no TOML", "no UTF-8"],
)
def test_a_faulty_rule_stops_the_start_and_the_check(template: Path, tmp_path: Path, rules: bytes) -> None:
    directory = tmp_path / "rules"
    directory.mkdir()
    (directory / "10-mine.toml").write_bytes(rules)
    with Daemon(tmp_path / "daemon", template=template, policy={"directory": str(directory)}) as made:
        status, text = refusal(made)
        checked = run_cli("config", "check", "--config", made.configuration)
    assert status == EXIT_UNREACHABLE
    assert "10-mine.toml" in text
    assert checked.returncode == EXIT_CONFIGURATION
    assert "10-mine.toml" in checked.stderr and "Traceback" not in checked.stderr


def test_config_check_says_good_or_names_the_faults(fresh: Daemon) -> None:
    good = run_cli("config", "check", "--config", fresh.configuration, "--json")
    assert (good.returncode, good.stderr) == (0, "")
    fresh.configuration.write_text(fresh.configuration.read_text().replace("hostname", "hostnam"))
    bad = run_cli("config", "check", "--config", fresh.configuration)
    assert (bad.returncode, bad.stdout) == (EXIT_CONFIGURATION, "")
    for words in (str(fresh.configuration), "hostnam", "hostname"):
        assert words in bad.stderr
    status, text = refusal(fresh)
    assert status == EXIT_CONFIGURATION
    assert "hostnam" in text
    absent = run_cli("config", "check", "--config", fresh.directory / "absent.toml")
    assert absent.returncode == EXIT_CONFIGURATION and "Traceback" not in absent.stderr


def test_the_service_manager_hears_of_readiness_and_of_life(fresh: Daemon) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        place = fresh.directory / "manager"
        manager.bind(str(place))
        manager.settimeout(30)
        process = fresh.spawn(NOTIFY_SOCKET=str(place), WATCHDOG_USEC="400000")
        said = [manager.recv(4096).decode() for _ in range(3)]
        assert said[0].splitlines()[0] == "READY=1"
        assert said[1:] == ["WATCHDOG=1", "WATCHDOG=1"]
        with fresh.mx() as client:  # ready means that it serves
            assert client.noop()[0] == 250
        process.terminate()
        while (notice := manager.recv(4096).decode()) == "WATCHDOG=1":
            pass
        assert notice == "STOPPING=1"
        assert process.wait(30) == 0


def test_a_failed_start_leaves_nothing_running(fresh: Daemon) -> None:
    """The lock is free and the sockets are closed, so that the next start can go well."""
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", fresh.ports["http"]))
        squatter.listen()
        refusal(fresh)
    assert run_cli("status", "--config", fresh.configuration).returncode == 0
    until(lambda: all(_is_closed(port) for port in fresh.ports.values()), "a port is still served")


def _is_closed(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
