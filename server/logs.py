"""Logging: one structured line a step, on stderr, for people or for programs.

Owns the set-up. Lines carry ids; mail addresses only where the configuration
allows (the processor here takes them out of every line otherwise).
"""

from __future__ import annotations

import errno
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from storage.errors import StorageError

# RFC 5321 4.1.2 in the rough: what looks like a mailbox, quoted or not.
_ADDRESS = re.compile(r"[^\s<>\"'(),;:@]{1,64}@[^\s<>\"'(),;:@]{1,255}")
HIDDEN = "<address>"
_DISK = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENODEV})


def configure(*, level: str, form: str, addresses: bool) -> None:
    """Set up structlog and the standard logging behind it; form is 'text' or 'json'."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        name_storage_trouble,
        structlog.processors.format_exc_info,
    ]
    if not addresses:
        shared.append(hide_addresses)
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    number = logging.getLevelName(level.upper())
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=shared,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    # These speak of every request and connection at levels that operators use for trouble.
    for name in ("uvicorn.access", "alembic", "mail.log", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)


def name_storage_trouble(
    _logger: Any, _name: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Say what store or disk refused in their own words: where in our code it was felt helps nobody."""
    found = line.get("exc_info")
    error = sys.exc_info()[1] if found is True else found[1] if isinstance(found, tuple) else found
    if isinstance(error, StorageError) or (isinstance(error, OSError) and error.errno in _DISK):
        del line["exc_info"]
        line.setdefault("problem", str(error))
    return line


def hide_addresses(_logger: Any, _name: str, line: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace whatever looks like a mail address in a line's texts."""
    for key, value in line.items():
        if isinstance(value, str) and "@" in value:
            line[key] = _ADDRESS.sub(HIDDEN, value)
    return line
