"""A private Debian Postfix: virtual(8) to Maildir on the bench's file system.

Default limits but for in_flow_delay=0; every setting that is not default is in
SETTINGS and printed with the results. Needs root, as Postfix does.
"""

import os
import pwd
import shutil
import subprocess
import time
from pathlib import Path

MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


class Postfix:
    """One Postfix under a directory; `new` is where its deliveries are counted."""

    def __init__(self, directory: Path, *, port: int, more: dict[str, str] | None = None) -> None:
        self._configuration = directory / "etc"
        self.port = port
        self._pid_file = directory / "queue" / "pid" / "master.pid"
        self.new = directory / "mail" / "bench.test" / "user" / "new"
        owner = pwd.getpwnam("nobody")
        self.settings = {
            "in_flow_delay": "0",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "mydestination": "",
            "myhostname": "postfix.bench.test",
            "virtual_mailbox_domains": "bench.test",
            "virtual_mailbox_base": str(directory / "mail"),
            "virtual_mailbox_maps": "inline:{user@bench.test=bench.test/user/}",
            "virtual_uid_maps": f"static:{owner.pw_uid}",
            "virtual_gid_maps": f"static:{owner.pw_gid}",
            "maillog_file": str(directory / "log"),
            "maillog_file_prefixes": str(directory),
            **(more or {}),
        }
        self._prepare(directory, owner)

    def _prepare(self, directory: Path, owner: pwd.struct_passwd) -> None:
        directory.mkdir(mode=0o755)
        for name in ("etc", "queue", "data"):
            (directory / name).mkdir(mode=0o755)
        shutil.chown(directory / "data", "postfix", "postfix")
        (directory / "mail" / "bench.test").mkdir(parents=True)
        for path in (directory / "mail", directory / "mail" / "bench.test"):
            os.chown(path, owner.pw_uid, owner.pw_gid)
        lines = {
            "compatibility_level": "3.6",
            "queue_directory": str(directory / "queue"),
            "data_directory": str(directory / "data"),
            "command_directory": "/usr/sbin",
            "daemon_directory": "/usr/lib/postfix/sbin",
            "mail_owner": "postfix",
            "setgid_group": "postdrop",
            **self.settings,
        }
        text = "".join(f"{name} = {value}\n" for name, value in lines.items())
        (self._configuration / "main.cf").write_text(text)
        (self._configuration / "master.cf").write_text(MASTER.format(port=self.port))

    def _run(self, command: str) -> None:
        done = subprocess.run(
            ["postfix", "-c", str(self._configuration), command], check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"postfix {command}: {done.stderr.strip() or done.stdout.strip()}")

    @property
    def pid(self) -> int:
        """The master's process id."""
        return int(self._pid_file.read_text())

    def start(self) -> None:
        """Start and wait until the port answers."""
        self._run("start")
        wait_for_port(self.port)

    def stop(self) -> None:
        """Stop all its processes."""
        subprocess.run(["postfix", "-c", str(self._configuration), "stop"], check=False, capture_output=True)


def wait_for_port(port: int, *, seconds: float = 30.0) -> None:
    """Return once a greeting came from the port; raises TimeoutError."""
    import socket

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                if connection.recv(4).startswith(b"220"):
                    connection.sendall(b"QUIT\r\n")
                    return
        except OSError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"nothing greets on port {port}")


def version() -> str:
    """Return Postfix's version."""
    shown = subprocess.run(
        ["postconf", "-d", "-h", "mail_version"], check=True, capture_output=True, text=True
    )
    return shown.stdout.strip()
