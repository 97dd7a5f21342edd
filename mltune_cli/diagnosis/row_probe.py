"""The process that reads rows as training does: `python -m ...`, a job on stdin, JSON on stdout.

It is the one place in this room that uses the training's own reader, so that a row that passes here
is a row there. Nothing imports it.
"""

import json
import sys
import time
from collections import Counter
from typing import Any

from mltune_cli.errors import UsageError
from mltune_cli.training.data.formats import read_example
from mltune_cli.training.data.sources import FileSource, find_source

_CLOCK_ROWS = 64


def main() -> None:
    """Read each data set and write what came of it."""
    job = json.load(sys.stdin)
    deadline = time.monotonic() + job["seconds"]
    told = {key: _told(key, name, job["format"], deadline) for key, name in job["names"].items()}
    json.dump(told, sys.stdout)


def _told(key: str, name: str, row_format: str, deadline: float) -> dict[str, Any]:
    formats: Counter[str] = Counter()
    files, problem, is_all = 0, None, True
    try:
        source = find_source(key, name, None)
        if not isinstance(source, FileSource):
            raise UsageError(f"{key}: {name}: no such file")  # noqa: TRY301 - told as the others are
        files = len(source.files)
        for number, row in enumerate(source.rows()):
            formats[read_example(row, row_format).format] += 1
            if number % _CLOCK_ROWS == 0 and time.monotonic() > deadline:
                is_all = False
                break
    except UsageError as error:
        problem = error.message if error.message.startswith(key) else f"{key}: {error.message}"
    except OSError as error:
        problem = f"{key}: {name}: cannot be read: {error.strerror or error}"
    return {
        "problem": problem,
        "rows": formats.total(),
        "files": files,
        "is_all": is_all,
        "formats": ", ".join(f"{count} {kind}" for kind, count in sorted(formats.items())),
    }


if __name__ == "__main__":
    main()
