"""`repro_output/`: marked as ours, so that it may be replaced without asking."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from mltune_cli.errors import UsageError
from mltune_cli.reproduction.report import ReproductionReport
from mltune_cli.run_folder import ADAPTER, LAST_LOSS, MODEL, TRAINING_LOG, remove

MARK = ".mltune-repro-output"
REPORT_JSON = "report.json"


@contextlib.contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make the folder, empty but for its mark, and keep it if the block comes to its end.

    If it does not, because a recipe was wrong or somebody pressed Ctrl-C, what an earlier check
    left there is put back.

    Raises:
        UsageError: it holds something that no `repro-check` wrote, or cannot be written.
    """
    earlier = folder.with_name(f".{folder.name}.earlier")
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"{folder}: is a file; choose another --output")
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / MARK).is_file():
                raise UsageError(
                    f"{folder}: holds files that repro-check did not write; "
                    "choose another --output, or empty it"
                )
            remove(earlier)
            folder.rename(earlier)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).write_text("Written by mltune repro-check, which may replace it.\n")
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield
    except BaseException:
        remove(folder)
        if earlier.is_dir():
            earlier.rename(folder)
        raise
    remove(earlier)


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
