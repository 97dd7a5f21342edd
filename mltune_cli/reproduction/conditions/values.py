"""Values of conditions: checked before anything runs, and chosen where none is given.

Every check takes the text after `NAME=` and returns it as it is reported.

Raises:
    ValueError: what is wrong, to be put after `--vary NAME=VALUE: `.
"""

import contextlib
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from mltune_cli.launching.devices import visible_gpus

# Another year, month, day, weekday, hour and minute, whenever that is.
DEFAULT_SHIFT = "+398d6h23m"
# Where these are installed they differ from C in more than the encoding: decimal comma, order of
# letters, case.
_TELLING_LOCALES = ("tr_TR.utf8", "de_DE.utf8", "fr_FR.utf8", "et_EE.utf8", "cs_CZ.utf8")
_SHIFT = re.compile(r"([+-])(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,9})s)?", re.A)
_POSIX_ZONE = re.compile(
    r"(?:[A-Za-z]{3,}|<[A-Za-z0-9+-]{3,}>)[+-]?\d{1,2}(?::\d\d){0,2}\S*", re.ASCII
)
_LARGEST_HASH_SEED = 2**32 - 1
_LARGEST_NUMBER = 2**31 - 1
_LOCALE_SECONDS = 30


def whole_number(text: str, least: int, most: int = _LARGEST_NUMBER) -> int:
    """Read a number between two bounds."""
    if not re.fullmatch(r"[0-9]{1,10}", text) or not least <= int(text) <= most:
        upper = f" and at most {most}" if most != _LARGEST_NUMBER else ""
        raise ValueError(f"must be a whole number, at least {least}{upper}")
    return int(text)


def hash_seed(text: str) -> str:
    """Check what `PYTHONHASHSEED` takes."""
    return str(whole_number(text, 0, _LARGEST_HASH_SEED))


def at_least_one(text: str) -> str:
    """Check a count of threads or processes, or a step."""
    return str(whole_number(text, 1))


def at_least_none(text: str) -> str:
    """Check a count that may be 0."""
    return str(whole_number(text, 0))


def directory_order(text: str) -> str:
    """Check an order of listings."""
    if text not in ("reversed", "shuffled", "sorted"):
        raise ValueError("must be reversed, shuffled or sorted")
    return text


def locale_name(text: str) -> str:
    """Check that a locale is installed, in a process of its own: it is a global setting."""
    code = "import locale, sys; locale.setlocale(locale.LC_ALL, sys.argv[1])"
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, text],
        capture_output=True, check=False, timeout=_LOCALE_SECONDS,
    )  # fmt: skip
    if not text or found.returncode:
        raise ValueError("is not installed; `locale -a` lists those that are")
    return text


def default_locale(environment: Mapping[str, str]) -> str:
    """Return an installed locale that is not the present one."""
    present = environment.get("LC_ALL") or environment.get("LANG") or "C"
    installed: list[str] = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["locale", "-a"], capture_output=True, check=True, timeout=_LOCALE_SECONDS
        )
        installed = listed.stdout.decode(errors="replace").split()
    for name in _TELLING_LOCALES:
        if name in installed and _spelled(name) != _spelled(present):
            return name
    return "C" if _spelled(present) not in ("c", "posix") else "C.UTF-8"


def _spelled(name: str) -> str:
    return name.lower().replace("-", "")


def time_zone(text: str) -> str:
    """Check a zone's name, or the POSIX notation; the C library takes any other for UTC."""
    with contextlib.suppress(Exception):  # what it raises depends on how the name is wrong
        ZoneInfo(text)
        return text
    if _POSIX_ZONE.fullmatch(text):
        return text
    raise ValueError("is no time zone; write a name such as Asia/Tokyo, or GMT-14")


def clock(text: str) -> str:
    """Check a shift such as `+1d` or `-3h30m`, an instant, or `frozen@INSTANT`."""
    if text.startswith("frozen@"):
        return f"frozen@{_instant(text.removeprefix('frozen@')).isoformat()}"
    match = _SHIFT.fullmatch(text)
    if match is None:
        return _instant(text).isoformat()
    if not any(match.groups()[1:]):
        raise ValueError("must say by how much, such as +1d or -3h")
    _within_calendar(datetime.now(UTC).timestamp() + shift_seconds(text))
    return text


def _instant(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            "must be a shift such as +1d or -3h, or an instant such as 2030-01-01T12:00:00"
        ) from None
    # Without a zone it is UTC: the same instant on every machine.
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    _within_calendar(moment.timestamp())
    return moment


def _within_calendar(seconds: float) -> None:
    # Beyond these, tools that know 32 bits of seconds fail by themselves.
    if not 0 <= seconds < 2**31 - 2**25:
        raise ValueError("must lead to a year from 1970 to 2036")


def shift_seconds(text: str) -> float:
    """Return by how much a checked shift or instant is away from now."""
    match = _SHIFT.fullmatch(text)
    if match is None:
        return datetime.fromisoformat(text).timestamp() - datetime.now(UTC).timestamp()
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups()[1:])
    size = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    return math.copysign(size, -1 if match[1] == "-" else 1)


def umask(text: str) -> str:
    """Check file modes that are taken away, in octal."""
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("must be an octal number such as 0077")
    if int(text, 8) & 0o300:
        raise ValueError("would keep the command from its own folders; keep write and search")
    return f"{int(text, 8):04o}"


def present_umask() -> int:
    """Return this process's umask, which cannot be read without being set."""
    present = os.umask(0o077)
    os.umask(present)
    return present


def default_umask() -> str:
    """Return another umask than the present one."""
    return "0077" if present_umask() != 0o077 else "0022"


def existing_folder(text: str) -> str:
    """Check a folder; returns its absolute path."""
    if not text or not Path(text).is_dir():
        raise ValueError("is no folder")
    return os.path.abspath(text)  # noqa: PTH100 - keeps symbolic links, unlike resolve


def nothing(text: str) -> str:
    """Check that no value is given."""
    if text:
        raise ValueError("takes no value")
    return ""


def instruction_set(text: str) -> str:
    """Check that torch knows it and the processor has it: torch itself would run it and crash."""
    if text not in ("default", "avx2", "avx512"):
        raise ValueError("must be default, avx2 or avx512")
    needed = {"default": None, "avx2": "avx2", "avx512": "avx512f"}[text]
    if needed is not None and needed not in _processor_flags():
        raise ValueError("this processor does not have it")
    return text


def _processor_flags() -> set[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return set(line.partition(":")[2].split())
    return set()


def gpu(text: str) -> str:
    """Check that there is such a GPU."""
    gpus = visible_gpus()
    if text not in gpus:
        there = f"there are {', '.join(gpus)}" if gpus else "there is none"
        raise ValueError(f"no such GPU is visible; {there}")
    return text


def default_gpu(environment: Mapping[str, str]) -> str:  # noqa: ARG001 - as the others
    """Return the second visible GPU."""
    gpus = visible_gpus()
    if len(gpus) < 2:
        raise ValueError("needs a second GPU, or name one: gpu=INDEX")
    return gpus[1]


def arguments(text: str) -> str:
    """Check a flag with its values, as a shell would read it."""
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"cannot be split as a shell would: {str(error).lower()}") from None
    if not parts or not parts[0].startswith("-"):
        raise ValueError('must be a flag with its value, such as argument="--eval_steps 2"')
    return text
