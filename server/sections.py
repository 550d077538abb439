"""Every setting, once: its type, unit, limits, default and documentation.

Owns the sections of conf/mailagents.toml. Refuses a value by itself alone: checks
that need more than one setting are in config, reading and rendering in
settings_file and settings_text. Secrets are never values here; a `_file` setting
names a file, or `credential:NAME` for a systemd credential.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from server.settings_kinds import (
    ANY_LISTENERS,
    DAY,
    FILE,
    HOUR,
    LISTENERS,
    MEBI,
    PATH,
    TLS_LISTENERS,
    UNIX_LISTENERS,
    Directory,
    Listeners,
    Network,
    Networks,
    SecretFile,
    Section,
    directory,
    mail_address,
    network,
    server_address,
)
from server.settings_text import setting

Role = Literal["smtp", "imap", "http", "delivery"]


class Server(Section):
    """The machine, its roles and its logs."""

    hostname: str = setting(
        "localhost",
        "Name of this server: its banner, EHLO, Received and Authentication-Results fields and Message-IDs. "
        "It must be in the DNS with the server's address, and the address must name it in return.",
        allowed="a fully qualified domain name; with development, a single label as well",
        example="mail.example.com",
    )
    postmaster: str = setting(
        "",
        "Who gets mail for postmaster and abuse of every domain that has no inbox or route of that name, and "
        "for postmaster without a domain (RFC 5321 4.5.1). Empty, or where that inbox is closed, it is the "
        "oldest inbox of the domain's organization, else of this server.",
        allowed="empty, the address of an inbox, or an address elsewhere",
    )
    development: bool = setting(
        False,
        "Permit what suits one machine alone: a hostname without a domain, and a certificate that the server "
        "signs for itself when tls.certificate_file is empty.",
    )
    data_directory: Directory = setting(
        Path("/var/lib/mailagents"),
        "Where the journal, the spool, the mail and the SQLite database lie: one file system, with barriers.",
        allowed=PATH,
    )
    roles: Annotated[tuple[Role, ...], Field(strict=False, min_length=1)] = setting(
        ("smtp", "imap", "http", "delivery"),
        "What this process does. On SQLite one process owns the store; several need PostgreSQL.",
        allowed="a list of smtp, imap, http, delivery",
    )
    proxy_networks: Networks = setting(
        (),
        "Load balancers: networks whose PROXY headers (versions 1 and 2) are believed on listeners that end "
        "in ,proxy. A connection to such a listener from elsewhere, or without a header, is closed; on a "
        "Unix socket everyone who can open it is believed.",
        allowed="a list of networks such as 192.0.2.0/24 or 2001:db8::/64",
    )
    drain_seconds: int = setting(
        30,
        "How long a stopping server finishes what it has begun before it cuts connections.",
        at_least=0,
        at_most=HOUR,
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting(
        "info", "The least severe line that is logged."
    )
    log_format: Literal["text", "json"] = setting("text", "Log lines for people or for programs, on stderr.")
    log_addresses: bool = setting(
        False, "Let mail addresses stand in the log. Without it lines carry ids alone."
    )


class Store(Section):
    """The journal, the database and the disk."""

    database_url: str = setting(
        "",
        "The database. Empty is SQLite in the data directory. A PostgreSQL address holds no password: "
        "that comes from database_password_file.",
        allowed="empty, sqlite:////ABSOLUTE/PATH or postgresql+psycopg://USER@HOST/NAME",
        masks="url",
    )
    database_password_file: SecretFile = setting(
        "",
        "File with the PostgreSQL password, the first line being taken.",
        allowed="empty, " + FILE,
        masks="file",
    )
    readers: int = setting(4, "Database connections that read.", unit="connections", at_least=1, at_most=64)
    journal_segment_octets: int = setting(
        64 * MEBI, "Size at which the journal begins a new segment.", at_least=MEBI, at_most=1024 * MEBI
    )
    spool_threshold_octets: int = setting(
        2 * MEBI,
        "A message larger than this goes to a spool file of its own instead of into the journal.",
        at_least=4096,
        at_most=16 * MEBI,
    )
    disk_reserve_octets: int = setting(
        256 * MEBI,
        "Free space that is kept: with less, new mail is answered 452 until there is room.",
        at_least=0,
        at_most=1 << 40,
    )
    checkpoint_seconds: int = setting(
        30,
        "How often the applied part of the journal is synced into the store and removed.",
        at_least=1,
        at_most=HOUR,
    )


class Tls(Section):
    """Certificate and key of every listener, read anew on reload."""

    certificate_file: SecretFile = setting(
        "",
        "PEM file with the certificate and its chain.",
        allowed="empty, " + FILE,
        masks="file",
        example="credential:certificate.pem",
    )
    key_file: SecretFile = setting(
        "",
        "PEM file with the private key of the certificate.",
        allowed="empty, " + FILE,
        masks="file",
        example="credential:key.pem",
    )
    domains_directory: Annotated[str, AfterValidator(directory)] = setting(
        "",
        "Directory with a subdirectory for each further certificate, in which lie fullchain.pem and "
        "privkey.pem, or certificate.pem and key.pem. A client gets the certificate whose own names fit the "
        "name that it asks for (SNI), and else that of certificate_file.",
        allowed="empty, or " + PATH,
    )
    minimum_version: Literal["1.2", "1.3"] = setting("1.2", "The oldest version of TLS that is spoken.")

    @property
    def domains(self) -> Path | None:
        """The directory of further certificates, None without one."""
        return Path(self.domains_directory) if self.domains_directory else None


class Smtp(Section):
    """Reception from other servers (MX) and submission by users."""

    listen_mx: Listeners = setting(
        ("tcp:0.0.0.0:25",), "Where other servers deliver. STARTTLS is offered.", allowed=LISTENERS
    )
    listen_submission: Listeners = setting(
        ("tcp:0.0.0.0:587",), "Where users submit after STARTTLS (RFC 6409).", allowed=LISTENERS
    )
    listen_submissions: Listeners = setting(
        ("tls:0.0.0.0:465",),
        "Where users submit with TLS from the first octet (RFC 8314).",
        allowed=TLS_LISTENERS,
    )
    listen_lmtp: Listeners = setting(
        (),
        "Where mail servers of this house hand over by LMTP (RFC 2033), never on port 25. They are trusted: "
        "the senders of what they bring are not checked again. A Unix socket's mode, owner and group decide "
        "who may.",
        allowed=UNIX_LISTENERS,
    )
    lmtp_networks: Networks = setting(
        ("127.0.0.0/8", "::1/128"),
        "Who may connect to listen_lmtp over TCP; all others are turned away with 554.",
        allowed="a list of networks such as 192.0.2.0/24 or 2001:db8::/64",
    )
    xclient_networks: Networks = setting(
        (),
        "For tests of policy only: clients that may say by XCLIENT (Postfix's protocol) whom they stand for, "
        "on listen_mx and listen_lmtp. Whoever may, can pass for anybody.",
        allowed="a list of networks such as 192.0.2.0/24 or 2001:db8::/64",
    )
    submission_hosts: Annotated[
        dict[
            Annotated[str, AfterValidator(network)],
            Annotated[str, AfterValidator(mail_address), Field(min_length=3)],
        ],
        Field(max_length=1000),
    ] = setting(
        {},
        'Hosts of this house that cannot log in, as a table: "192.0.2.7" = "shop@example.com". A client '
        "from that address or network submits as that inbox, on the submission listeners, without AUTH and "
        "without TLS; the narrowest network that fits counts. Name only what nobody else can send from.",
        allowed="a table of network = address of an inbox",
    )
    max_message_octets: int = setting(
        50 * MEBI, "Largest message, announced by SIZE.", at_least=64 * 1024, at_most=1024 * MEBI
    )
    max_recipients: int = setting(
        1000,
        "Recipients of one message; RFC 5321 4.5.3.1.8 asks for 100 at least.",
        unit="recipients",
        at_least=100,
        at_most=50_000,
    )
    max_connections: int = setting(
        2000, "Connections at once, over all SMTP listeners.", unit="connections", at_least=1, at_most=100_000
    )
    max_connections_per_address: int = setting(
        100,
        "Connections at once from one IPv4 address or one IPv6 /64.",
        unit="connections",
        at_least=1,
        at_most=100_000,
    )
    command_timeout_seconds: int = setting(
        300, "Wait for a command; RFC 5321 4.5.3.2.7 asks for 5 minutes.", at_least=1, at_most=HOUR
    )
    data_timeout_seconds: int = setting(
        180,
        "Wait for the next octets of a message; RFC 5321 4.5.3.2.5 has 3 minutes.",
        at_least=1,
        at_most=HOUR,
    )
    message_timeout_seconds: int = setting(
        1800,
        "How long a client that has not logged in may give commands that bring no message, before 421.",
        at_least=60,
        at_most=24 * HOUR,
    )
    max_errors: int = setting(
        20,
        "Refused commands after which a session is closed with 421.",
        unit="commands",
        at_least=1,
        at_most=10_000,
    )
    max_received: int = setting(
        50,
        "Received fields at which a message is taken to loop. RFC 5321 6.3 asks for 100 at least; no honest "
        "way of mail has half as many hops.",
        unit="fields",
        at_least=10,
        at_most=1000,
    )
    mend_line_ends_of: Annotated[tuple[Network, ...], Field(strict=False, max_length=1000)] = setting(
        (),
        "Clients whose messages may hold a bare CR, a bare LF or NUL: each bare one becomes CRLF, NUL is "
        "left out. From all others such a message is refused with 550 5.5.2. A message ends at CRLF.CRLF "
        "alone, whoever sends it.",
        allowed="a list of IP addresses and networks",
    )
    max_hold_seconds: int = setting(
        30 * DAY,
        "Longest time that submission holds a message before its delivery begins (FUTURERELEASE, RFC 4865). "
        "0: not offered.",
        at_least=0,
        at_most=366 * DAY,
    )


class Imap(Section):
    """Retrieval over IMAP."""

    listen: Listeners = setting(
        ("tcp:0.0.0.0:143",), "Where clients connect and use STARTTLS.", allowed=LISTENERS
    )
    listen_tls: Listeners = setting(
        ("tls:0.0.0.0:993",),
        "Where clients connect with TLS from the first octet (RFC 8314).",
        allowed=TLS_LISTENERS,
    )
    max_connections: int = setting(
        10_000,
        "Connections at once, over all IMAP listeners.",
        unit="connections",
        at_least=1,
        at_most=1_000_000,
    )
    max_connections_per_inbox: int = setting(
        200,
        "Sessions of one inbox at once; one more is told [LIMIT] when it logs in.",
        unit="connections",
        at_least=1,
        at_most=100_000,
    )
    login_timeout_seconds: int = setting(60, "Wait for a command before the login.", at_least=1, at_most=HOUR)
    idle_timeout_seconds: int = setting(
        1800,
        "Wait for a command after the login; RFC 9051 5.4 asks for 30 minutes.",
        at_least=60,
        at_most=DAY,
    )
    max_literal_octets: int = setting(
        50 * MEBI,
        "Largest message that APPEND takes, announced by APPENDLIMIT.",
        at_least=64 * 1024,
        at_most=1024 * MEBI,
    )


class Http(Section):
    """The API, the console, health and metrics."""

    listen: Listeners = setting(
        ("tcp:127.0.0.1:8080",),
        "Where HTTP is spoken. Beyond this machine use tls:, or a proxy that does TLS.",
        allowed=ANY_LISTENERS,
    )
    max_body_octets: int = setting(
        70 * MEBI,
        "Largest request body; attachments arrive in base64, a third larger than they are.",
        at_least=64 * 1024,
        at_most=1536 * MEBI,
    )
    max_connections: int = setting(
        1000, "Connections at once, over all HTTP listeners.", unit="connections", at_least=1, at_most=100_000
    )


class Dns(Section):
    """The resolver that is asked."""

    servers: Annotated[
        tuple[Annotated[str, AfterValidator(server_address)], ...], Field(strict=False, max_length=16)
    ] = setting(
        (),
        "Recursive resolvers to ask, best one on this machine. Empty takes /etc/resolv.conf.",
        allowed="a list of IP addresses, each with an optional :PORT",
    )
    timeout_seconds: float = setting(5.0, "Wait for one lookup, retries included.", at_least=0.1, at_most=120)
    cache_entries: int = setting(
        50_000, "Answers kept in memory.", unit="answers", at_least=100, at_most=10_000_000
    )
    believe_ad: Literal["loopback", "any", "never"] = setting(
        "loopback",
        "Whose word counts that DNSSEC proves an answer (the AD bit), which DANE and REQUIRETLS need: that "
        "of resolvers on this machine; of any, where the way to them is safe; or of none. The resolver must "
        "validate, as unbound does.",
    )


class Authentication(Section):
    """Sender authentication of mail from other servers: SPF, DKIM, DMARC, ARC."""

    enabled: bool = setting(True, "Check SPF, DKIM, DMARC and ARC of mail that comes by listen_mx.")
    deadline_seconds: float = setting(
        10.0,
        "Time for all checks of one message; what is open then counts as temperror.",
        at_least=0.1,
        at_most=120,
    )
    received_spf: bool = setting(
        True,
        "Write a Received-SPF field (RFC 7208 9.1) above Authentication-Results, for filters that read it.",
    )
    iprev: bool = setting(
        False,
        "Look up the name of each client of listen_mx and whether it leads back to its address (iprev, RFC "
        "8601 3), and say so in Authentication-Results and Received. Rules that ask for it do not need this.",
    )
    believed_sealers: Annotated[tuple[str, ...], Field(strict=False, max_length=1000)] = setting(
        (),
        "Domains of forwarders and lists whose ARC seal is believed: a DMARC pass that they saw counts.",
        allowed="a list of domains",
    )


class Dmarc(Section):
    """Aggregate reports of DMARC (RFC 9990): what domains are told of mail that came in their name."""

    report_address: Annotated[str, AfterValidator(mail_address)] = setting(
        "",
        "Address that reports to other domains come from, and to which others send theirs about the domains "
        "of this appliance; it needs an inbox or a route. Its domain is one of this appliance, with a DKIM "
        "key. Empty: nothing is counted and nothing is sent.",
        allowed="empty, or an address, dmarc-reports@ and one of the domains by custom",
    )
    send_reports: bool = setting(
        True, "Send reports to the domains that ask for them, where report_address is set."
    )
    organization_name: str = setting(
        "", "Name of the reporting organization in reports. Empty is server.hostname."
    )
    period_hours: Literal[1, 2, 3, 4, 6, 8, 12, 24] = setting(
        24, "Time that one report covers, counted from midnight UTC.", unit="hours"
    )
    spread_seconds: int = setting(
        4 * HOUR,
        "Reports leave within this time after a period's end, each domain's at its own moment.",
        at_least=0,
        at_most=DAY,
    )
    keep_days: int = setting(
        365, "How long reports of others are kept.", unit="days", at_least=1, at_most=3660
    )

    @property
    def sends(self) -> bool:
        """Whether reports are made and sent."""
        return bool(self.report_address) and self.send_reports


class Control(Section):
    """The socket by which the command line talks to the running server."""

    socket: Directory = setting(
        Path("/run/mailagents/control.sock"),
        "Path of the control socket. Where the database is PostgreSQL each process has one of its own, its "
        "journal's name behind this path, and the command line asks whichever answers.",
        allowed=PATH,
    )
