"""The door to RE2: the one module that imports it.

Owns the limits of a pattern. RE2 takes time linear in the text, whatever the
pattern: what a stranger sends cannot stall a rule. It is loaded with the first
pattern, so that rules without any do not pay for it.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

from policies.rules import Pattern

MAX_CHARACTERS = 1000
MAX_MEMORY_OCTETS = 1 << 20


def compile_pattern(text: str) -> Pattern:
    """Return the compiled pattern of a text; ValueError says what is wrong with it."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the pattern is over {MAX_CHARACTERS} characters")
    re2: Any = importlib.import_module("re2")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = MAX_MEMORY_OCTETS
    try:
        return cast(Pattern, re2.compile(text, options=options))
    except re2.error as error:
        cause = error.args[0] if error.args else error
        raise ValueError(
            cause.decode("utf-8", "replace") if isinstance(cause, bytes) else str(cause)
        ) from None
