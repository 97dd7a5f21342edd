"""What becomes of each file of a new project, settled before anything is written."""

import contextlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mltune_cli.errors import MltuneError, NoVerdictError, UsageError, is_machine_failure
from mltune_cli.scaffolding.project_files import ProjectFile

Action = Literal["written", "unchanged", "added to", "replaced"]
BACKUP_SUFFIX = ".before-mltune"


@dataclass(frozen=True)
class PlannedFile:
    """One file, and what is done with it.

    Attributes:
        file: as it is wanted.
        place: where it stands, without symbolic links.
        action: what is done.
        content: all of its bytes afterwards.
        added_lines: how many lines an existing file gets.
        mode: permissions of the file that is there; None where there is none.
    """

    file: ProjectFile
    place: Path
    action: Action
    content: bytes
    added_lines: int = 0
    mode: int | None = None


def plan_files(
    folder: Path, files: Sequence[ProjectFile], *, force: bool
) -> tuple[PlannedFile, ...]:
    """Compare what is wanted with what is there.

    Args:
        folder: of the project; it exists.
        files: that are wanted.
        force: replace files that differ.

    Raises:
        UsageError: a file is in the way, cannot be read, or would be written outside of the folder.
        NoVerdictError: the machine failed.
    """
    with _speaking_of(folder):
        root = folder.resolve(strict=True)
    planned = [_plan_file(folder, root, file) for file in files]
    in_the_way = [p.file.path for p in planned if p.action == "replaced"]
    if in_the_way and not force:
        names = ", ".join(in_the_way)
        them = ("it", "is") if len(in_the_way) == 1 else ("them", "are")
        raise UsageError(
            f"{folder}: has {names} already, and with other content; nothing was written. Move "
            f"{them[0]} away, or pass --force: what {them[1]} replaced is kept as "
            f"NAME{BACKUP_SUFFIX}"
        )
    return tuple(planned)


def _plan_file(folder: Path, root: Path, file: ProjectFile) -> PlannedFile:
    shown = folder / file.path
    with _speaking_of(shown):
        place = _place(folder, root, file.path)
        try:
            state = place.stat()
        except FileNotFoundError:
            return PlannedFile(file, place, "written", file.content)
        if not stat.S_ISREG(state.st_mode):
            raise UsageError(f"{shown}: is no ordinary file; move it away")
        present = place.read_bytes()
    mode = stat.S_IMODE(state.st_mode)
    lacking = _lacking_lines(present, file.content) if file.adds_lines else []
    if present == file.content or (file.adds_lines and not lacking):
        return PlannedFile(file, place, "unchanged", present, mode=mode)
    if file.adds_lines:
        content = _with_lines(present, lacking)
        return PlannedFile(file, place, "added to", content, len(lacking), mode)
    return PlannedFile(file, place, "replaced", file.content, mode=mode)


def _place(folder: Path, root: Path, path: str) -> Path:
    """Return where a path of the project is written.

    Raises:
        UsageError: behind a link out of the folder, a link to nothing, or below a file.
    """
    shown, place = folder / path, root / path
    resolved = place.resolve()
    if not resolved.is_relative_to(root):
        raise UsageError(
            f"{shown}: a symbolic link leads out of {folder}, and nothing is written there; remove "
            "the link"
        )
    if place.is_symlink() and not resolved.exists():
        raise UsageError(f"{shown}: is a symbolic link to nothing; remove it")
    for parent in resolved.parents:
        if parent == root:
            break
        if parent.exists() and not parent.is_dir():
            between = folder / parent.relative_to(root)
            raise UsageError(f"{between}: is no folder, and one is needed there; move it away")
    return resolved


def _lacking_lines(present: bytes, wanted: bytes) -> list[str]:
    """Return the wanted lines that a .gitignore neither has nor takes back."""
    known = {_pattern(line) for line in present.decode("utf-8", "surrogateescape").splitlines()}
    return [line for line in wanted.decode().splitlines() if _pattern(line) not in known]


def _pattern(line: str) -> str:
    return line.strip().removeprefix("!").strip("/")


def _with_lines(present: bytes, lines: Sequence[str]) -> bytes:
    end = b"\r\n" if b"\r\n" in present else b"\n"
    kept = present if not present or present.endswith(b"\n") else present + end
    return kept + b"".join(line.encode() + end for line in lines)


@contextlib.contextmanager
def _speaking_of(path: Path) -> Iterator[None]:
    """Turn what the system says into one sentence about a path."""
    try:
        yield
    except OSError as error:
        raise system_fault(path, error, "read") from None
    except RuntimeError:  # a loop of symbolic links, before Python 3.13
        raise UsageError(f"{path}: its symbolic links lead in a circle; remove them") from None


def system_fault(path: Path, error: OSError, verb: str) -> MltuneError:
    """Return an error of the system as one sentence about a path.

    Args:
        path: that it is about.
        error: what the system said.
        verb: what could not be done: `read` or `written`.
    """
    kind = NoVerdictError if is_machine_failure(error) else UsageError
    return kind(f"{path}: cannot be {verb}: {error.strerror or os.strerror(error.errno or 0)}")
