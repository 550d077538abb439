"""What the SMTP server is told: limits and times, each with its unit.

Owns defaults for tests and benches; the daemon fills it from the configuration.
RFC 5321 4.5.3.1 (sizes) and 4.5.3.2 (times).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.smtp.strangers import StrangerLimits

MEBI = 1024 * 1024


@dataclass(frozen=True, slots=True)
class SmtpSettings:
    """Limits of the listeners, of one session and of one message.

    spool_threshold_octets: content beyond it goes to a file. max_memory_octets: what
    all sessions together keep of unfinished content in memory; beyond it each goes to
    a file early. max_idle_commands: NOOP, RSET, HELP, VRFY, empty BDAT and the like that a session
    may send between two transactions before each counts as an error.
    max_refused_recipients: refusals of MAIL and RCPT before the session is closed.
    max_hold_seconds: longest wait that FUTURERELEASE takes, 0 for none. mend_line_ends_of: networks
    whose bare CR and LF become CRLF. lmtp_networks: who may hand over by LMTP over TCP.
    xclient_networks: who may say by XCLIENT to be another client. submission_hosts: network to the
    inbox that its clients submit as without AUTH. least_octets_per_second: content
    that comes more slowly, after data_timeout_seconds, ends the session. message_timeout_seconds: how
    long a client that has not logged in may talk without a message.
    """

    max_message_octets: int = 50 * MEBI
    max_recipients: int = 1000
    max_connections: int = 2000
    max_connections_per_address: int = 100
    command_timeout_seconds: float = 300
    data_timeout_seconds: float = 180
    message_timeout_seconds: float = 1800
    handshake_timeout_seconds: float = 30
    least_octets_per_second: int = 100
    max_errors: int = 20
    max_refused_recipients: int = 200
    max_idle_commands: int = 100
    max_login_failures: int = 3
    max_received: int = 50
    max_header_line_octets: int = 16_384
    max_header_octets: int = MEBI
    max_hold_seconds: int = 30 * 24 * 3600
    mend_line_ends_of: tuple[str, ...] = ()
    lmtp_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    xclient_networks: tuple[str, ...] = ()
    submission_hosts: Mapping[str, str] = field(default_factory=dict)
    spool_threshold_octets: int = 256 * 1024
    max_memory_octets: int = 64 * MEBI
    strangers: StrangerLimits = field(default_factory=StrangerLimits)

    def content_deadline(self, *, since: float, octets: int) -> float:
        """The latest moment for the next of a message's content, of which so much came since it began."""
        return since + octets / self.least_octets_per_second + self.data_timeout_seconds
