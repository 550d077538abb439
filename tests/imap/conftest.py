from collections.abc import Iterator

import pytest

from tests.imap.appliance import Appliance, Inbox, Wire, running


@pytest.fixture(scope="module")
def appliance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    """A real server, shared by the tests of a module; each makes inboxes of its own."""
    with running(tmp_path_factory.mktemp("appliance")) as started:
        yield started


@pytest.fixture
def inbox(appliance: Appliance) -> Inbox:
    return appliance.new_inbox()


@pytest.fixture
def wire(appliance: Appliance, inbox: Inbox) -> Iterator[Wire]:
    """A logged-in client."""
    client = Wire(appliance).login(inbox)
    yield client
    client.close()
