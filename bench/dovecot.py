"""A private Debian Dovecot: LMTP into Maildir, IMAP over TLS, one user.

Default limits and fsync; what is not default is in CONFIGURATION. Needs root, as
Dovecot does, and the packages dovecot-imapd and dovecot-lmtpd.
"""

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path

from bench.postfix import wait_for_port

OWNER = "mail"

CONFIGURATION = """\
protocols = imap lmtp
base_dir = {place}/run
state_dir = {place}/state
log_path = {place}/log
ssl = yes
ssl_cert = <{certificate}
ssl_key = <{key}
disable_plaintext_auth = no
listen = 127.0.0.1
mail_location = maildir:{place}/mail/%u
mail_uid = {uid}
mail_gid = {gid}
first_valid_uid = 1
first_valid_gid = 1
postmaster_address = postmaster@bench.test
mail_max_userip_connections = 5000
passdb {{
  driver = static
  args = password=secret
}}
userdb {{
  driver = static
  args = uid={uid} gid={gid} home={place}/mail/%u
}}
namespace inbox {{
  inbox = yes
  separator = /
  mailbox Other {{
    auto = create
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
    ssl = yes
  }}
  process_limit = 1000
}}
service imap {{
  process_limit = 5000
}}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp_port}
  }}
}}
service stats {{
  client_limit = 10000
}}
service anvil {{
  client_limit = 20000
}}
service auth {{
  client_limit = 20000
}}
"""


class Dovecot:
    """One Dovecot under a directory; user@bench.test with the password 'secret'."""

    def __init__(self, directory: Path, *, port: int, certificate: Path, key: Path) -> None:
        directory.mkdir(mode=0o755, exist_ok=True)
        owner = pwd.getpwnam(OWNER)
        (directory / "mail").mkdir(exist_ok=True)
        os.chown(directory / "mail", owner.pw_uid, owner.pw_gid)
        self.port, self.tls_port, self.lmtp_port = port, port + 1, port + 2
        self.maildir = directory / "mail" / "user@bench.test"
        self._directory = directory
        self._configuration = directory / "dovecot.conf"
        self._configuration.write_text(
            CONFIGURATION.format(
                place=directory,
                certificate=certificate,
                key=key,
                uid=owner.pw_uid,
                gid=owner.pw_gid,
                port=port,
                tls_port=self.tls_port,
                lmtp_port=self.lmtp_port,
            )
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The master's process id."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it and wait for its greeting."""
        command = ["dovecot", "-F", "-c", str(self._configuration)]
        with open(self._directory / "out", "ab") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out)
        wait_for_port(self.lmtp_port)

    def stop(self) -> None:
        """Stop it and wait for its end."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGTERM)
            self._process.wait(timeout=60)
            self._process = None
            time.sleep(0.2)  # its children let the ports go

    def forget_indexes(self) -> None:
        """Remove what it knows of the mail beside the mail."""
        for path in self.maildir.rglob("dovecot*"):
            # The list of UIDs and of keywords is the mailbox, not a cache of it.
            if path.is_file() and path.name not in (
                "dovecot-uidlist",
                "dovecot-keywords",
                "dovecot-uidvalidity",
            ):
                path.unlink()

    def version(self) -> str:
        """Return its version."""
        found = subprocess.run(["dovecot", "--version"], capture_output=True, text=True, check=True)
        return found.stdout.split()[0]
