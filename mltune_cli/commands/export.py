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
            shutil.copytree(folder, target, dirs_exist_ok=True, copy_function=shutil.copyfile)
        else:
            _copy_whole(folder, Path(os.path.abspath(target)))  # noqa: PTH100 - keeps symlinks
    except shutil.Error as error:
        raise UsageError(f"{target}: cannot be written: {error.args[0][0][2]}") from None
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    print_line(f"wrote {source} to {target}")
    return ExitCode.OK


def _copy_whole(folder: Path, target: Path) -> None:
    """Copy beside the place and move there: a folder that appears is a whole model."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name[:64]}-", dir=target.parent))
    try:
        shutil.copytree(folder, draft, dirs_exist_ok=True, copy_function=shutil.copyfile)
        draft.chmod(0o755)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
