"""The door to the CEL library: the one module that imports it.

Owns compiling to a program, and the context that a program is executed over.
Checks nothing: what comes here has passed check. The package `cel` imports its own
command line (and a terminal toolkit with it, 0.15 s of a start); that part is
kept out.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from policies.rules import Program


def _load() -> Any:
    sys.modules.setdefault("cel.cli", ModuleType("cel.cli"))
    return importlib.import_module("cel")


_cel = _load()

# What execute may raise over values that Python let through: overflow, lone surrogates.
EVALUATION_ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)


def program(text: str) -> Program:
    """Return the compiled program of a CEL text; raises ValueError."""
    return cast(Program, _cel.compile(text))


def context(values: Mapping[str, object]) -> Any:
    """Return a context that programs of one judging share; raises ValueError for values CEL cannot hold."""
    return _cel.Context(dict(values))
