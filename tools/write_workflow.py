"""Writes mltune's own workflow smoke-repro.yml from the template, or checks it.

Usage: python tools/write_workflow.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mltune_cli.scaffolding.plan import WORKFLOW, render_workflow

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """Write the file, or check it; 1 when it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    is_check = parser.parse_args().check
    path, text = ROOT / WORKFLOW, render_workflow(own=True)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return 0
    if is_check:
        print(f"out of date: {WORKFLOW}; run python tools/write_workflow.py")
        return 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
