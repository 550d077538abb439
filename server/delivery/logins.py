"""What is shown to smart hosts: users and passwords, read once from the files that the settings name."""

from __future__ import annotations

from collections.abc import Mapping

from server.config import read_secret
from server.smtp.client_machine import Credentials


class LoginUnreadable(Exception):
    """A file of `delivery.logins` cannot be used; the text says which, and nothing of what is in it."""


def read_logins(named: Mapping[str, str]) -> dict[str, Credentials]:
    """Return the logins by name; raises LoginUnreadable."""
    return {name: _read(name, reference) for name, reference in named.items()}


def _read(name: str, reference: str) -> Credentials:
    try:
        user, _, rest = read_secret(reference).partition("\n")
    except (LookupError, OSError, ValueError) as error:
        raise LoginUnreadable(f"delivery.logins.{name}: {error}") from None
    password = rest.partition("\n")[0].rstrip("\r")
    user = user.rstrip("\r")
    if not user or not password or "\0" in user + password:
        raise LoginUnreadable(f"delivery.logins.{name}: the file has a user and a password, a line each")
    return Credentials(user, password)
