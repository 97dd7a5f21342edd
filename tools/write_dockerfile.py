"""Writes mltune's own Dockerfile and .dockerignore from the templates, or checks them.

Usage: python tools/write_dockerfile.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mltune_cli.imaging.dockerfile_text import MLTUNE, render_dockerfile, render_dockerignore

ROOT = Path(__file__).resolve().parent.parent


def files() -> dict[str, str]:
    """Return each file's text by its name."""
    return {"Dockerfile": render_dockerfile(MLTUNE), ".dockerignore": render_dockerignore(MLTUNE)}


def main() -> int:
    """Write the files, or check them; 1 when they are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, only compare")
    is_check = parser.parse_args().check
    stale = []
    for name, text in files().items():
        path = ROOT / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not is_check:
            path.write_text(text, encoding="utf-8")
    if is_check and stale:
        print(f"out of date: {', '.join(stale)}; run python tools/write_dockerfile.py")
    return 1 if is_check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
