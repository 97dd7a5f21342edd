"""`mltune export`: a model of ours as a plain folder that any other tool can load."""

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
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists already; choose an empty folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Copied beside its place and moved there: a folder that exists is a whole model.
        draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            shutil.copytree(folder, draft, dirs_exist_ok=True)
            draft.chmod(0o755)
            draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    print_line(f"wrote {source} to {target}")
    return ExitCode.OK
