"""Writes a new project: all of it or nothing, and never a half-written file.

Every file is written beside its place under another name, and moved there when all of them are
written. What fails or is interrupted is taken back; what is killed leaves whole files, old or new,
and the next `init` goes on from there.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.errors import UsageError
from mltune_cli.scaffolding.plan import (
    BACKUP_SUFFIX,
    Action,
    PlannedFile,
    plan_files,
    system_fault,
)
from mltune_cli.scaffolding.project_files import ProjectFile

_DRAFT_SUFFIX = ".mltune-part"
_MODE, _EXECUTABLE_MODE = 0o666, 0o777  # less the umask


@dataclass(frozen=True)
class WrittenFile:
    """What was done with one file.

    Attributes:
        path: relative to the project's folder, with `/` between the parts.
        action: what was done.
        reason: what the file is for.
        added_lines: how many lines an existing file got.
        backup: where the replaced file is, in the same folder; None where none was replaced.
    """

    path: str
    action: Action
    reason: str
    added_lines: int = 0
    backup: str | None = None


@dataclass(frozen=True)
class WrittenProject:
    """A project's folder, and what was done with each of its files, sorted by path."""

    folder: Path
    files: tuple[WrittenFile, ...]


def write_project(
    folder: Path, files: Sequence[ProjectFile], *, force: bool = False
) -> WrittenProject:
    """Write the files of a project; on any failure the folder is as it was before.

    Args:
        folder: of the project; made where it is missing.
        files: that it is to have.
        force: replace files that differ; they are kept beside, as NAME.before-mltune.

    Raises:
        UsageError: a file is in the way, the folder cannot be written or is being written to.
        NoVerdictError: the machine failed.
    """
    with ExitStack() as undo:
        _make_folder(folder, undo)
        with _claimed(folder):
            planned = plan_files(folder, files, force=force)
            written = _write(folder, planned, undo)
        undo.pop_all()  # it is done: nothing is taken back
    return WrittenProject(folder, written)


def _make_folder(folder: Path, undo: ExitStack) -> None:
    """Make a folder and those above it; taking back removes those that were made."""
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is a file, and a project needs a folder; choose another")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            undo.callback(_quietly, path.rmdir)
    except OSError as error:
        raise system_fault(folder, error, "written") from None


def _quietly(step: Callable[[], object]) -> None:
    """Take a step back; what somebody else uses by now stays, and the other steps follow."""
    with contextlib.suppress(OSError):
        step()


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Keep a second `init` out of the folder; the claim ends with the process, however it ends."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise system_fault(folder, error, "read") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"{folder}: another mltune init is writing there; wait for it") from None
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def _write(
    folder: Path, planned: Sequence[PlannedFile], undo: ExitStack
) -> tuple[WrittenFile, ...]:
    backups: dict[str, Path] = {}
    drafts: list[tuple[PlannedFile, Path]] = []
    shown = folder
    try:
        for one in planned:
            if one.action == "unchanged":
                # An `init` that was killed may have moved a draft, and not taken its name away.
                _quietly(_draft_of(one.place).unlink)
                continue
            shown = folder / one.file.path
            _make_folder(one.place.parent, undo)
            drafts.append((one, _write_draft(one, undo)))
        for one, draft in drafts:
            shown = folder / one.file.path
            if one.action == "written":
                _publish(draft, one.place, undo)
            else:
                backups[one.file.path] = _swap(draft, one.place, undo)
    except OSError as error:
        raise system_fault(shown, error, "written") from None
    for one, _ in drafts:
        if one.action == "added to":  # its old lines are all still there
            _quietly(backups.pop(one.file.path).unlink)
    return tuple(_written(one, backups.get(one.file.path)) for one in planned)


def _written(one: PlannedFile, backup: Path | None) -> WrittenFile:
    name = None if backup is None else backup.name
    return WrittenFile(one.file.path, one.action, one.file.reason, one.added_lines, name)


def _draft_of(place: Path) -> Path:
    return place.with_name(f".{place.name}{_DRAFT_SUFFIX}")


def _write_draft(one: PlannedFile, undo: ExitStack) -> Path:
    """Write a file's bytes beside its place, safe from a power failure, too."""
    draft = _draft_of(one.place)
    draft.unlink(missing_ok=True)  # of an `init` that was killed
    mode = _EXECUTABLE_MODE if one.file.is_executable else _MODE
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    undo.callback(_quietly, lambda: draft.unlink(missing_ok=True))
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(one.content)
        stream.flush()
        if one.mode is not None:
            # Who may read the old one may read the new one; a script that was none becomes one.
            executable = (one.mode & 0o444) >> 2 if one.file.is_executable else 0
            os.fchmod(descriptor, one.mode | executable)
        os.fsync(descriptor)
    return draft


def _publish(draft: Path, place: Path, undo: ExitStack) -> None:
    """Move a draft to a place where nothing is; a file that came meanwhile stays."""
    try:
        os.link(draft, place)
    except FileExistsError:
        raise UsageError(
            f"{place}: was written by somebody else meanwhile; nothing was written, start again"
        ) from None
    except OSError:  # a file system without hard links
        draft.rename(place)
    undo.callback(_quietly, place.unlink)
    draft.unlink(missing_ok=True)


def _swap(draft: Path, place: Path, undo: ExitStack) -> Path:
    """Put a draft in the place of a file, which is kept beside it; return where."""
    backup = _keep(place)
    undo.callback(_quietly, lambda: _put_back(backup, place))
    draft.replace(place)
    return backup


def _put_back(backup: Path, place: Path) -> None:
    backup.replace(place)
    # Two names of one file: then renaming does nothing, and leaves both.
    backup.unlink(missing_ok=True)


def _keep(place: Path) -> Path:
    """Give a file a second name beside its own that nothing has yet."""
    number = 1
    while True:
        ending = BACKUP_SUFFIX if number == 1 else f"{BACKUP_SUFFIX}-{number}"
        backup = place.with_name(place.name + ending)
        number += 1
        if os.path.lexists(backup):
            continue
        try:
            os.link(place, backup)
        except FileExistsError:
            continue
        except OSError:  # no hard links here, or not to somebody else's file
            shutil.copy2(place, backup)
        return backup
