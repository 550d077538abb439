"""What can go wrong in storage, as few kinds as callers tell apart.

Owns the exceptions that leave this package. Their texts are for the operator
and the log, never for a peer: the layers above choose replies themselves.
"""


class StorageError(Exception):
    """Storage could not do what it was asked; the base of all kinds."""


class Conflict(StorageError):
    """What should be made is there already, or changed meanwhile."""


class Missing(StorageError):
    """What was named is not there, or belongs to another organization."""


class Full(StorageError):
    """No room: the disk, its reserve, a quota or a bounded backlog is used up."""


class Corrupt(StorageError):
    """Stored data cannot be what this program wrote; the text names the file and what to do."""


class BadName(StorageError):
    """A folder cannot be called that; the text says why."""
