"""The door to an inbox's folders and messages for those who serve them.

Owns nothing: it names, in one place, what IMAP and the API call. The work is
done in folders (names, making, renaming), contents (reading), flags (STORE)
and entries (COPY, MOVE, EXPUNGE). Functions take a connection, never commit,
and publish their own notices.
"""

from storage.contents import (
    Changed,
    Changes,
    Counts,
    Snapshot,
    changes,
    claim_recent,
    counts,
    entries,
    renditions,
    snapshot,
)
from storage.entries import copy, expunge, move
from storage.flags import FlagMode, Stored, store_flags
from storage.folders import (
    create_folder,
    create_mailbox_folders,
    delete_folder,
    find_folder,
    folder_by_id,
    folders,
    normal_name,
    rename_folder,
    set_subscribed,
)
from storage.subscriptions import lapsed

__all__ = [
    "Changed",
    "Changes",
    "Counts",
    "FlagMode",
    "Snapshot",
    "Stored",
    "changes",
    "claim_recent",
    "copy",
    "counts",
    "create_folder",
    "create_mailbox_folders",
    "delete_folder",
    "entries",
    "expunge",
    "find_folder",
    "folder_by_id",
    "folders",
    "lapsed",
    "move",
    "normal_name",
    "rename_folder",
    "renditions",
    "set_subscribed",
    "snapshot",
    "store_flags",
]
