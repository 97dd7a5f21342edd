"""The clock: wrong ones break certificates, and dates in chat templates."""

import ctypes
import datetime
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import mltune_cli
from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.subject import Subject

_TOLERANCE_SECONDS = 120.0
_FAR_AHEAD_SECONDS = 10 * 366 * 86400.0
# Nothing of mltune is older than its first line, of 2026; images and package managers that want
# equal bits date all files back, some to 1970.
_FIRST_WRITTEN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).timestamp()
_UNSYNCHRONISED = 5  # the state that adjtimex returns. Source: man 2 adjtimex, TIME_ERROR


def look(subject: Subject) -> Sequence[Finding]:
    """Compare the clock with files that were written before now."""
    return judge(time.time(), _witnesses(subject), is_synchronised())


def judge(now: float, witnesses: Iterable[Path], synchronised: bool | None) -> list[Finding]:
    """Return what is to be said of a clock.

    Args:
        now: seconds since 1970.
        witnesses: files that were written before now.
        synchronised: whether the system keeps its clock by a time server; None where it is mute.
    """
    times = {path: when for path in witnesses if (when := _written(path)) is not None}
    newest = max(times, key=lambda path: times[path], default=None)
    remedy, command = "let a time server set it", "sudo timedatectl set-ntp true"
    why = (
        "certificates of the hub and of package indexes look invalid, and dates in logs and chat "
        "templates are wrong"
    )
    if newest is not None and times[newest] > now + _TOLERANCE_SECONDS:
        behind = times[newest] - now
        return [
            doubtful(
                f"the clock says {_date(now)}, and {newest.name} was written {_span(behind)} later",
                why,
                remedy,
                command=command,
            )
        ]
    if newest is not None and now - times[newest] > _FAR_AHEAD_SECONDS:
        return [doubtful(f"the clock says {_date(now)}, years ahead", why, remedy, command=command)]
    if synchronised is False:
        return [
            known(
                f"{_date(now)}; the system does not say that a time server keeps the clock",
                why,
                remedy,
                command=command,
            )
        ]
    return [in_order(_date(now))]


def _written(path: Path) -> float | None:
    """Return when a file was written; None where it is not there, or its date is made up."""
    try:
        when = path.stat().st_mtime
    except OSError:
        return None
    return when if when >= _FIRST_WRITTEN else None


def _witnesses(subject: Subject) -> Iterator[Path]:
    yield Path(mltune_cli.__file__)
    if subject.config is not None:
        yield subject.config
    for name in (".git/index", ".git/HEAD", "runs", "requirements.txt", "pyproject.toml"):
        yield subject.folder / name


def _date(seconds: float) -> str:
    try:
        moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{seconds:.0f} seconds since 1970"
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _span(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


def is_synchronised() -> bool | None:
    """Ask the kernel whether its clock is kept by a time server; None where it is not Linux."""
    if sys.platform != "linux":
        return None
    try:
        library = ctypes.CDLL(None, use_errno=True)
        # A timex of zeros changes nothing; 512 bytes are more than it has on any platform.
        state = library.adjtimex(ctypes.create_string_buffer(512))
    except (OSError, AttributeError):
        return None
    return None if state < 0 else bool(state != _UNSYNCHRONISED)


CHECK = Check("clock", "clock", look)
