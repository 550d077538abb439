"""The settings of the appliance: all sections, read and checked against each other.

Owns Settings and the checks that need more than one setting. The settings
themselves, each with type, unit, default and documentation, are declared in
sections; listeners and next hops are parsed in listen and next_hop.
`python -m server.config` writes the files generated from tables anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from server.listen import Listen, ListenKind, ListenSyntax, parse_listen
from server.mail.address import AddressSyntax, normalise
from server.next_hop import NextHop, NextHopKind, NextHopSyntax, parse_next_hop
from server.sections import (
    Authentication,
    Control,
    Dmarc,
    Dns,
    Http,
    Imap,
    Server,
    Smtp,
    Store,
    Tls,
)
from server.sections_bounces import Bounces
from server.sections_delivery import Delivery
from server.sections_identity import Dkim
from server.sections_names import DnsLists, Greylist
from server.sections_policy import Limits, Policy, Rejects, Scanners, Webhooks
from server.sections_protection import Protection
from server.sections_transport import TlsReports, Transport
from server.settings_file import Finding, load_model, locate_secret, read_secret
from server.settings_kinds import Section
from server.settings_text import ConfigError, Problem, generate_docs_from, generate_from, render

__all__ = [
    "ConfigError",
    "Listen",
    "ListenKind",
    "ListenSyntax",
    "NextHop",
    "NextHopKind",
    "NextHopSyntax",
    "Problem",
    "Settings",
    "generate",
    "generate_docs",
    "generated_files",
    "locate_secret",
    "parse_listen",
    "parse_next_hop",
    "read_secret",
]


class Settings(Section):
    """All sections, frozen. Made by load; the constructor takes sections for tests."""

    server: Server = Server()
    store: Store = Store()
    tls: Tls = Tls()
    smtp: Smtp = Smtp()
    protection: Protection = Protection()
    imap: Imap = Imap()
    http: Http = Http()
    dns: Dns = Dns()
    authentication: Authentication = Authentication()
    dkim: Dkim = Dkim()
    dmarc: Dmarc = Dmarc()
    policy: Policy = Policy()
    limits: Limits = Limits()
    rejects: Rejects = Rejects()
    scanners: Scanners = Scanners()
    dns_lists: DnsLists = DnsLists()
    greylist: Greylist = Greylist()
    webhooks: Webhooks = Webhooks()
    bounces: Bounces = Bounces()
    delivery: Delivery = Delivery()
    transport: Transport = Transport()
    tls_reports: TlsReports = TlsReports()
    control: Control = Control()

    @classmethod
    def load(
        cls,
        path: Path | None,
        overrides: Mapping[str, str] | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Settings:
        """Return the settings of a file, of MAILAGENTS__SECTION__KEY variables and of overrides, last wins.

        path: None takes the defaults alone. overrides: 'section.key' to the value as TOML, or as plain
        text where the setting is text. environment: os.environ unless given.
        Raises ConfigError with every problem found.
        """
        return cast(
            Settings,
            load_model(cls, path, overrides=overrides or {}, environment=environment, check=_check_all),
        )

    @property
    def services(self) -> frozenset[str]:
        """What is configured of what rules may need, by the names that they need it under."""
        return self.scanners.configured | self.dns_lists.configured

    @property
    def database_url(self) -> str:
        """The address of the database without its password, SQLite in the data directory by default."""
        return self.store.database_url or f"sqlite:///{self.server.data_directory}/mailagents.sqlite"

    def show(self) -> str:
        """Return the effective settings as an annotated TOML file, with secrets masked."""
        return render(self)


def generate() -> str:
    """Return conf/mailagents.toml: every setting with documentation, unit, allowed values and default."""
    return generate_from(Settings())


def generate_docs() -> str:
    """Return docs/configuration.md: one table of settings a section."""
    return generate_docs_from(Settings())


def _check_all(model: BaseModel) -> Iterator[Finding]:
    settings = cast(Settings, model)
    yield from _check_names(settings)
    yield from _check_store(settings)
    yield from _check_tls(settings)
    yield from _check_listeners(settings)
    yield from _check_delivery(settings.delivery)


def _check_names(settings: Settings) -> Iterator[Finding]:
    name = settings.server.hostname
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    dots = "*" if settings.server.development else "+"
    full = re.fullmatch(rf"{label}(\.{label}){dots}", name)
    if not full or len(name) > 253 or name.rpartition(".")[2].isdigit():
        yield Finding("server.hostname", "it is no fully qualified domain name")
    if settings.server.postmaster:
        try:
            normalise(settings.server.postmaster)
        except (AddressSyntax, ValueError):
            yield Finding("server.postmaster", "it is no mail address")
    # sun_path holds 108 octets with its NUL; of several processes each adds its instance.
    limit = 98 if settings.store.database_url.startswith("postgresql") else 107
    if len(str(settings.control.socket).encode()) > limit:
        yield Finding("control.socket", f"the path of a socket has {limit} octets at most here")


def _check_store(settings: Settings) -> Iterator[Finding]:
    store = settings.store
    scheme, _, rest = store.database_url.partition("://")
    if store.database_url and not (
        (scheme == "sqlite" and rest.startswith("//")) or (scheme == "postgresql+psycopg" and rest)
    ):
        yield Finding("store.database_url", "it is no address of an SQLite or PostgreSQL database")
    if (scheme != "sqlite" and re.match(r"[^@]*:[^@]*@", rest)) or re.search(r"[?&]password=", rest):
        yield Finding("store.database_url", "a password may not stand here: use store.database_password_file")
    if len(set(settings.server.roles)) != len(settings.server.roles):
        yield Finding("server.roles", "a role is named twice")


def _check_tls(settings: Settings) -> Iterator[Finding]:
    tls = settings.tls
    if bool(tls.certificate_file) != bool(tls.key_file):
        missing = "key_file" if tls.certificate_file else "certificate_file"
        yield Finding(f"tls.{missing}", "certificate and key are set together or not at all")
    if tls.certificate_file or settings.server.development:
        return
    users = [
        name for name, text in _listeners(settings) if name not in MAY_BE_PLAIN and _needs_tls(name, text)
    ]
    if users:
        names = ", ".join(dict.fromkeys(users))
        yield Finding("tls.certificate_file", f"{names} cannot be without a certificate")


MAY_BE_PLAIN = frozenset({"smtp.listen_mx", "smtp.listen_lmtp"})


def _needs_tls(name: str, text: str) -> bool:
    return name != "http.listen" or parse_listen(text).kind is ListenKind.TLS


def _listeners(settings: Settings) -> Iterator[tuple[str, str]]:
    roles = settings.server.roles
    for section in ("smtp", "imap", "http"):
        model: Any = getattr(settings, section)
        for name in type(model).model_fields:
            if name.startswith("listen") and section in roles:
                yield from ((f"{section}.{name}", text) for text in getattr(model, name))


def _check_listeners(settings: Settings) -> Iterator[Finding]:
    seen: dict[tuple[str, int, str], str] = {}
    for key, text in _listeners(settings):
        listen = parse_listen(text)
        implicit = key in {"smtp.listen_submissions", "imap.listen_tls"}
        if implicit and listen.kind is ListenKind.TCP:
            yield Finding(key, f"{text} would speak without TLS here: write tls:")
        if not implicit and key != "http.listen" and listen.kind is ListenKind.TLS:
            yield Finding(key, f"{text} would speak TLS where STARTTLS is meant: write tcp:")
        if key == "smtp.listen_lmtp" and listen.port == 25:
            yield Finding(key, f"{text}: port 25 is SMTP's alone")  # RFC 2033 5
        if listen.proxy and listen.kind is not ListenKind.UNIX and not settings.server.proxy_networks:
            yield Finding("server.proxy_networks", f"{text} in {key} would believe nobody: name its proxies")
        place = (listen.host, listen.port, listen.name)
        if place in seen and (listen.port or listen.name):
            yield Finding(key, f"{text} is already taken by {seen[place]}")
        seen[place] = key


def _check_delivery(delivery: Delivery) -> Iterator[Finding]:
    if delivery.retry_first_seconds > delivery.retry_max_seconds:
        yield Finding("delivery.retry_first_seconds", "it is longer than retry_max_seconds")
    if delivery.per_domain_concurrency > delivery.concurrency:
        yield Finding("delivery.per_domain_concurrency", "it is more than concurrency")
    for domain in delivery.routes:
        if domain != domain.lower() or not re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", domain):
            yield Finding("delivery.routes", f"{domain!r} is no domain in lower-case A-labels")


def generated_files() -> dict[str, str]:
    """Return the text of each file that is made of tables, by its path below the checkout's root."""
    from policies.reference import page

    return {
        "conf/mailagents.toml": generate(),
        "docs/configuration.md": generate_docs(),
        "docs/policies.md": page(),
    }


if __name__ == "__main__":
    for name, text in generated_files().items():
        (Path(__file__).resolve().parent.parent / name).write_text(text, encoding="utf-8")
