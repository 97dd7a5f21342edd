"""The folder that an export goes to: whole when it appears, and left as it was otherwise."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mltune_cli.errors import MltuneError, NoVerdictError, UsageError, is_machine_failure


@contextlib.contextmanager
def filled_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder whose files are moved to `target` when the block comes to its end.

    If it does not, `target` and the folders above it are as they were. An empty folder is kept and
    filled: it may be somebody's working directory or a mount.

    Raises:
        UsageError: `target` is no empty folder, or cannot be written.
        NoVerdictError: the disk is full.
    """
    place = Path(os.path.abspath(target))  # noqa: PTH100 - unlike Path.resolve, keeps symlinks
    made: list[Path] = []
    try:
        is_there = _is_empty_folder(target)
        # Beside the place, or in it: a move within one file system needs no second copy.
        parent = place if is_there else place.parent
        made = _make_folders(parent)
        draft = Path(tempfile.mkdtemp(prefix=".mltune-export-", dir=parent))
        try:
            yield draft
            _open_to_readers(draft)
            if is_there:
                _move_files(draft, place)
            else:
                draft.replace(place)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except BaseException as error:
        _remove_folders(made)
        if isinstance(error, OSError):
            raise _unwritable(target, error) from None
        raise


def _is_empty_folder(target: Path) -> bool:
    """Tell whether the target is there; refuse one that holds something."""
    if not target.exists():
        return False
    if not target.is_dir() or any(target.iterdir()):
        raise UsageError(f"{target}: exists already; choose an empty folder")
    return True


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that were missing, deepest last."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        _remove_folders(missing)
        raise
    return missing


def _remove_folders(folders: Iterable[Path]) -> None:
    """Remove the folders that were made for nothing; one that somebody uses by now stays."""
    for path in reversed(list(folders)):
        with contextlib.suppress(OSError):
            path.rmdir()


def _open_to_readers(draft: Path) -> None:
    """Give the folder and its files ordinary rights: drafts and safetensors begin as private."""
    for path in (draft, *draft.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _move_files(draft: Path, place: Path) -> None:
    names = sorted(path.name for path in draft.iterdir())
    try:
        for name in names:
            (draft / name).rename(place / name)
    except BaseException:
        for name in names:
            (place / name).unlink(missing_ok=True)
        raise


def _unwritable(target: Path, error: OSError) -> MltuneError:
    kind = NoVerdictError if is_machine_failure(error) else UsageError
    return kind(f"{target}: cannot be written: {error.strerror or error}")
