"""Cells of a bench and how they are shown: a table for people, one JSON object for programs."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cell:
    """One figure: ours beside theirs; ratio is ours over theirs, None where there is no other."""

    name: str
    ours: float
    theirs: float | None
    ratio: float | None
    unit: str


def machine(**facts: str) -> dict[str, str]:
    """Return what the figures were measured on."""
    model = "unknown"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **facts,
    }


def show(cells: Sequence[Cell], facts: dict[str, str], *, as_json: bool) -> None:
    """Print cells and machine."""
    if as_json:
        print(json.dumps({"cells": [asdict(cell) for cell in cells], "machine": facts}))
        return
    for name, value in facts.items():
        print(f"{name}: {value}")
    print()
    print(f"{'cell':<22}{'ours':>12}{'theirs':>12}{'ratio':>8}  unit")
    for cell in cells:
        theirs = f"{cell.theirs:,.1f}" if cell.theirs is not None else "-"
        ratio = f"{cell.ratio:.2f}" if cell.ratio is not None else "-"
        print(f"{cell.name:<22}{cell.ours:>12,.1f}{theirs:>12}{ratio:>8}  {cell.unit}")
