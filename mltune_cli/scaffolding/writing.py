"""Planned files brought into a folder: all of them or none, and nothing that was there is lost."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mltune_cli.errors import UsageError
from mltune_cli.scaffolding.plan import PlannedFile

Fate = Literal["written", "unchanged", "added to", "replaced"]
_KEPT = "before-mltune"
# One name, so that what a kill leaves is taken up by the next time.
_PROBE = ".mltune-init"


@dataclass(frozen=True)
class WrittenFile:
    """What became of a planned file.

    Attributes:
        kept: the name under which the file that it replaced lies beside it.
    """

    path: str
    why: str
    fate: Fate
    kept: str | None = None


def write_files(folder: Path, files: Sequence[PlannedFile], *, force: bool) -> list[WrittenFile]:
    """Write a project's files.

    Args:
        folder: the project; made where it does not exist.
        files: what it gets.
        force: files that are there and have another content are kept beside the new ones.

    Raises:
        UsageError: a file is in the way and `force` is off, a link leads out of the folder, or
            something cannot be written. Nothing of the project was changed then, unless the
            machine failed half-way.
    """
    _require_folder(folder)
    fates = [_fate(folder, file) for file in files]
    in_the_way = [f.path for f, fate in zip(files, fates, strict=True) if fate == "replaced"]
    if in_the_way and not force:
        more = f" and {len(in_the_way) - 3} more" if len(in_the_way) > 3 else ""
        raise UsageError(
            f"{folder}: has its own {', '.join(in_the_way[:3])}{more}; nothing was written; "
            "--force writes mltune's and keeps yours beside them"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _require_room(folder, files)
        return [_write(folder, f, fate) for f, fate in zip(files, fates, strict=True)]
    except OSError as error:
        place = error.filename or folder
        raise UsageError(f"{place}: cannot be written: {error.strerror}") from None


def _require_folder(folder: Path) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is a file, and a project needs a folder; choose another")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None


def _fate(folder: Path, file: PlannedFile) -> Fate:
    path = folder / file.path
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UsageError(f"{path}: leads out of {folder}; remove the link first")
        for parent in path.parents:
            if parent != folder and parent.is_relative_to(folder) and parent.is_file():
                raise UsageError(f"{parent}: is a file, and {file.path} needs a folder there")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, and mltune init writes a file there")
        if not path.exists():
            return "written"
        held = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if held == file.content:
        return "unchanged"
    if file.is_list:
        return "added to" if _missing_lines(held, file.content) else "unchanged"
    return "replaced"


def _require_room(folder: Path, files: Sequence[PlannedFile]) -> None:
    """Write all contents once, beside nothing, before anything that is there is touched.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    probe = folder / _PROBE
    try:
        with probe.open("wb") as stream:
            for file in files:
                stream.write(file.content)
            stream.flush()
            os.fsync(stream.fileno())
        for parent in {(folder / file.path).parent for file in files}:
            nearest = next(place for place in (parent, *parent.parents) if place.exists())
            if not os.access(nearest, os.W_OK | os.X_OK):
                raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(nearest))
    finally:
        probe.unlink(missing_ok=True)


def _write(folder: Path, file: PlannedFile, fate: Fate) -> WrittenFile:
    path = folder / file.path
    kept = None
    if fate == "unchanged":
        return WrittenFile(file.path, file.why, fate)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = file.content
    if fate == "added to":
        held = path.read_bytes()
        gap = b"" if not held or held.endswith(b"\n") else b"\n"
        content = held + gap + b"\n".join(_missing_lines(held, content)) + b"\n"
    elif fate == "replaced":
        kept = _free_name(path)
        # A second name, so that the file is there at every moment.
        os.link(path, path.with_name(kept))
    draft = path.with_name(f".{path.name}.part")
    draft.write_bytes(content)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    draft.chmod(mode | (0o111 & ~_umask() if file.is_program else 0))
    draft.replace(path)
    return WrittenFile(file.path, file.why, fate, kept)


def _missing_lines(held: bytes, wanted: bytes) -> list[bytes]:
    """Return the wanted lines that a file lacks; comments come along with what follows them."""
    has = {line.strip() for line in held.splitlines()}
    lines = [line for line in wanted.splitlines() if line.strip() not in has]
    return lines if any(line.strip() and not line.startswith(b"#") for line in lines) else []


def _free_name(path: Path) -> str:
    name, number = f"{path.name}.{_KEPT}", 1
    while path.with_name(name).exists() or path.with_name(name).is_symlink():
        number += 1
        name = f"{path.name}.{_KEPT}-{number}"
    return name


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
