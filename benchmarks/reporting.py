"""Figures as a plain table on standard output, and as JSON beside it."""

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("mltune", "torch", "transformers", "peft", "trl", "liger-kernel", "flash-attn")
_MEBIBYTE = 2**20


def surroundings() -> dict[str, Any]:
    """Return what a figure means nothing without: the machine and the packages."""
    packages = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": packages,
    }


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return lines of aligned columns: the first to the left, the others to the right."""
    cells = [list(headings), *([_spelled(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def _spelled(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3f}" if isinstance(cell, float) else str(cell)


def mebibytes(size: float) -> str:
    """Return a number of bytes for a reader."""
    return f"{size / _MEBIBYTE:,.0f} MiB"


def per_second(rate: float) -> str:
    """Return tokens a second for a reader."""
    return f"{rate:,.0f}"


def keep(path: Path | None, report: dict[str, Any]) -> None:
    """Write a report as JSON, where somebody asked for it."""
    if path is not None:
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
