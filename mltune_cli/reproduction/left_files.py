"""Files that a run left in the working directory, where the next run may read them."""

import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST_ENTRIES = 20_000
_MOST_NAMED = 3
# Written anew by each run from what the script itself is, or by tools beside it.
_NOT_ENTERED = frozenset(
    {".git", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".ipynb_checkpoints"}
)


@dataclass(frozen=True)
class FolderListing:
    """The files of a folder and of those below it, with what tells that one was written.

    Attributes:
        files: path below the folder to size and time of the last change.
        is_whole: whether none were too many to be listed.
        taken_ns: when.
    """

    files: dict[str, tuple[int, int]]
    is_whole: bool
    taken_ns: int


def list_folder(folder: Path, leave_out: Path) -> FolderListing:
    """List at most 20,000 files, those in the uppermost folders first.

    Args:
        folder: where to begin.
        leave_out: a folder that is not entered.
    """
    taken_ns = time.time_ns()
    files: dict[str, tuple[int, int]] = {}
    for entries, path in enumerate(_walk(folder, leave_out)):
        if entries >= _MOST_ENTRIES:
            return FolderListing(files, is_whole=False, taken_ns=taken_ns)
        try:
            status = path.lstat()
        except OSError:
            continue  # it is gone already
        files[str(path.relative_to(folder))] = (status.st_size, status.st_mtime_ns)
    return FolderListing(files, is_whole=True, taken_ns=taken_ns)


def _walk(folder: Path, leave_out: Path) -> Iterator[Path]:
    waiting = deque([folder])
    while waiting:
        try:
            entries = sorted(os.scandir(waiting.popleft()), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            path = Path(entry.path)
            if not entry.is_dir(follow_symlinks=False):
                yield path
            elif entry.name not in _NOT_ENTERED and path != leave_out:
                waiting.append(path)


def note_of_left_files(before: FolderListing, after: FolderListing) -> str | None:
    """Say which files the first run left; None where it left none."""
    left = sorted(
        name
        for name, facts in after.files.items()
        if before.files.get(name) != facts
        # A file that only came into the listing because others left it was not written now.
        and (before.is_whole or facts[1] >= before.taken_ns)
    )
    if not left:
        return None
    named = ", ".join(left[:_MOST_NAMED])
    count = f", ... ({len(left)} in all)" if len(left) > _MOST_NAMED else ""
    return f"run 1 left files that run 2 may have read: {named}{count}"
