"""Where local targets go: the folder that is there now, else the inbox, else nowhere.

Owns the look-up and a bounded memory of it. What it says may be out of date:
the unit that inserts the rows checks each folder again and sends apply back.
"""

import logging
import time
from collections.abc import Iterable
from functools import partial
from itertools import islice

from sqlalchemy import Connection, select

from storage import rejects
from storage.db import Database
from storage.errors import BadName, Conflict, Full, Missing
from storage.folder_names import REJECTS
from storage.maildir import INBOX, Maildir
from storage.placing import Location
from storage.schema import folders, mailboxes

LIMIT = 20_000
ATTEMPTS = 3
_log = logging.getLogger(__name__)
_LOOKUP = 300

# Organization, mailbox, folder: a mailbox of another organization is no place for a record.
Wanted = tuple[str, str, str]


class Locations:
    """Finds the folders of local targets."""

    def __init__(self, database: Database, maildir: Maildir) -> None:
        self._database = database
        self._maildir = maildir
        self._known: dict[Wanted, Location] = {}

    def forget(self) -> None:
        """Look everything up anew."""
        self._known.clear()

    def find(self, wanted: Iterable[Wanted]) -> dict[Wanted, Location | None]:
        """Return the location of each target; None where the mailbox is closed or gone."""
        asked = set(wanted)
        missing = asked - self._known.keys()
        if missing:
            if len(self._known) > LIMIT:
                self._known.clear()
                missing = asked
            self._known.update(self._database.read(lambda connection: self._look_up(connection, missing)))
            lacking = {key for key in missing - self._known.keys() if key[2] == REJECTS}
            if lacking:
                self._make(lacking)
        return {key: self._known.get(key) for key in asked}

    def _make(self, lacking: set[Wanted]) -> None:
        """Make the folder of refused mail where it is wanted for the first time, or was deleted."""
        mailbox_ids = {mailbox_id for _, mailbox_id, _ in lacking}
        now = time.time_ns() // 1000
        for _ in range(ATTEMPTS):
            try:
                self._database.write(partial(rejects.make_folders, mailbox_ids=mailbox_ids, at=now))
                break
            except Conflict:
                continue  # another process made one meanwhile: the rest are still to be made
            except (Full, Missing, BadName) as error:
                _log.warning("refused mail is not kept: %s", error)
                break
        self._known.update(self._database.read(lambda connection: self._look_up(connection, lacking)))

    def _look_up(self, connection: Connection, missing: set[Wanted]) -> dict[Wanted, Location]:
        names = {INBOX} | {folder for _, _, folder in missing}
        waiting = iter({mailbox_id for _, mailbox_id, _ in missing})
        present: dict[Wanted, Location] = {}
        while part := list(islice(waiting, _LOOKUP)):
            rows = connection.execute(
                select(mailboxes.c.organization_id, folders.c.mailbox_id, folders.c.name, folders.c.id)
                .join_from(folders, mailboxes)
                .where(folders.c.mailbox_id.in_(part), mailboxes.c.state != "closed")
                .where(folders.c.name.in_(names) if len(names) <= _LOOKUP else folders.c.name.is_not(None))
            )
            for organization_id, mailbox_id, name, folder_id in rows:
                directory = str(self._maildir.folder_path(mailbox_id, name))
                present[organization_id, mailbox_id, name] = Location(mailbox_id, folder_id, name, directory)
        found: dict[Wanted, Location] = {}
        for organization_id, mailbox_id, folder in missing:
            location = present.get((organization_id, mailbox_id, folder))
            if folder != REJECTS:  # what was refused never comes into sight
                location = location or present.get((organization_id, mailbox_id, INBOX))
            if location is not None:
                found[organization_id, mailbox_id, folder] = location
        return found
