"""`mltune export`: a model of ours as a plain folder that any other tool can load."""

import os
import shutil
import tempfile
from pathlib import Path

from mltune_cli.bundled import bundled_model
from mltune_cli.errors import ExitCode, UsageError
from mltune_cli.rendering.console import print_line


def export(source: str, target: Path) -> ExitCode:
    """Copy a bundled model into a folder.

    Raises:
        UsageError: there is no such model, or the folder holds something or cannot be written.
    """
    folder = bundled_model(source)
    try:
        if target.exists():
            if not target.is_dir() or any(target.iterdir()):
                raise UsageError(f"{target}: exists already; choose an empty folder")
            # An empty folder is kept: it may be somebody's working directory or a mount.
            _copy_files(folder, target)
        else:
            _copy_whole(folder, Path(os.path.abspath(target)))  # noqa: PTH100 - keeps symlinks
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    print_line(f"wrote {source} to {target}")
    return ExitCode.OK


def _copy_whole(folder: Path, target: Path) -> None:
    """Copy beside the place and move there: a folder that appears is a whole model."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}-", dir=target.parent))
    try:
        _copy_files(folder, draft)
        draft.chmod(0o755)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy_files(folder: Path, target: Path) -> None:
    for file in sorted(folder.iterdir()):
        shutil.copyfile(file, target / file.name)
