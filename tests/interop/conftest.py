import pytest

from tests.daemon.conftest import daemon, inbox, partner, template

__all__ = ["daemon", "inbox", "partner", "template"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here runs foreign programs."""
    for item in items:
        if "tests/interop/" in item.path.as_posix():
            item.add_marker(pytest.mark.interop)
