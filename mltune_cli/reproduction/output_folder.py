"""`repro_output/`: marked as ours, so that it may be replaced without asking."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from mltune_cli.errors import UsageError
from mltune_cli.paths import is_folder, is_there
from mltune_cli.reproduction.report import ReproductionReport
from mltune_cli.run_folder import (
    ADAPTER,
    LAST_LOSS,
    LOCK,
    MODEL,
    TRAINING_LOG,
    RunLock,
    remove,
)

MARK = ".mltune-repro-output"
REPORT_JSON, REPORT_JUNIT = "report.json", "report.xml"
_EARLIER, _OUTDATED = ".earlier", ".outdated"


@contextlib.contextmanager
def output_folder(folder: Path, writer: str = "repro-check") -> Iterator[None]:
    """Make the folder, empty but for its mark, and keep it if the block comes to its end.

    If it does not, because a recipe was wrong or somebody pressed Ctrl-C, what an earlier check
    left there is put back. The folder itself stays where it is: it may be a mount point.

    Args:
        folder: that is wanted.
        writer: the command of mltune that writes it; another one's folder is not replaced.

    Raises:
        UsageError: it holds something that the writer did not write, another process is writing
            into it, or it cannot be written.
    """
    earlier = folder / _EARLIER
    is_new = not is_there(folder)
    try:
        if is_there(folder) and not is_folder(folder):
            raise UsageError(f"{folder}: is a file; choose another --output")
        mark, signed = folder / MARK, f"Written by mltune {writer}, which may replace it.\n"
        is_ours = mark.is_file() and mark.read_text(errors="replace") == signed
        if folder.is_dir() and any(folder.iterdir()) and not is_ours:
            raise UsageError(
                f"{folder}: holds files that {writer} did not write; "
                "choose another --output, or empty it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(signed)
        lock = RunLock(folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    with contextlib.closing(lock):
        remove(folder / _OUTDATED)
        if earlier.is_dir():
            _restore(folder)  # a check before this one was killed
        _set_aside(folder)
        try:
            yield
        except BaseException:
            _restore(folder)
            if is_new:
                remove(folder)
            raise
        # Half of them removed, they would be taken for those of a check that was killed.
        if earlier.is_dir():
            earlier.rename(folder / _OUTDATED)
        remove(folder / _OUTDATED)


def _results(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name not in (MARK, LOCK, _EARLIER, _OUTDATED)]


def _set_aside(folder: Path) -> None:
    results = _results(folder)
    if results:
        (folder / _EARLIER).mkdir()
    for path in results:
        path.rename(folder / _EARLIER / path.name)


def _restore(folder: Path) -> None:
    """Put an earlier check's results back in place of what this one wrote."""
    for path in _results(folder):
        remove(path)
    if (folder / _EARLIER).is_dir():
        for path in (folder / _EARLIER).iterdir():
            path.rename(folder / path.name)
        (folder / _EARLIER).rmdir()


def publish(folder: Path, report: ReproductionReport) -> None:
    """Write the report, and put the first run's artifacts at the top, where CI jobs look."""
    (folder / REPORT_JSON).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
    first = folder / "run-1"
    for name in (TRAINING_LOG, LAST_LOSS):
        if (first / name).is_file():
            shutil.copyfile(first / name, folder / name)
    for name in (ADAPTER, MODEL):
        if (first / name).is_dir():
            shutil.copytree(first / name, folder / name)
