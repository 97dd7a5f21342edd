"""Installed packages against the lock: another version is another set of kernels, and of bits."""

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

from mltune_cli.bundled import bundled_lock
from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order, known
from mltune_cli.diagnosis.packages import installed_version, torch_build
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.errors import MltuneError, UsageError
from mltune_cli.imaging.locks import LOCK_NAMES, locked_packages, read_lock, read_pins
from mltune_cli.paths import is_file

_SHOWN = 6
_WHY = (
    "a package of another version computes with other kernels or in another order, so runs in "
    "this environment need not be equal to runs in the locked one"
)


def look(subject: Subject) -> Sequence[Finding]:
    """Compare what is installed with the project's lock, or else with mltune's own."""
    try:
        project, unreadable = project_lock(subject)
        path = project or bundled_lock(_variant_name())
        text = read_lock(path)
        wanted = locked_packages(text)
    except MltuneError as error:
        return [
            broken(
                error.message,
                "what belongs into the environment is not known",
                "mend the file, or install mltune again where it is mltune's own",
            )
        ]
    shown = str(project) if project else f"mltune's own {path.name}"
    beside = f"; {unreadable}" if unreadable else ""
    differing = differences(wanted)
    unpinned = _unpinned(text)
    if not wanted:
        return [
            doubtful(
                f"{shown} pins no version ({len(unpinned)} lines without ==){beside}",
                "what is installed from it depends on the day",
                "write what is installed now into a lock, and commit it",
                command=f"{_pip()} freeze > requirements.lock.txt",
            )
        ]
    if not differing:
        return [in_order(f"{len(wanted)} packages are those of {shown}{beside}")]
    named = ", ".join(differing[:_SHOWN])
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    seen = f"{len(differing)} of {len(wanted)} packages are not those of {shown}: {named}{more}"
    seen += beside
    hashed = "--require-hashes " if "--hash" in text else ""
    command = f"{_pip()} install {hashed}-r {shlex.quote(str(path))}"
    remedy = "install what the lock names"
    if re.search(r"(?m)^torch==\S+\+cpu", text) or (not project and path.name == LOCK_NAMES["cpu"]):
        remedy += "; the CPU build of torch needs PyTorch's own CPU index (PIP_EXTRA_INDEX_URL)"
    if project is None:  # nobody chose it for this environment
        return [known(seen, _WHY, remedy, command=command)]
    return [doubtful(seen, _WHY, remedy, command=command)]


def project_lock(subject: Subject) -> tuple[Path | None, str | None]:
    """Return the requirements file of the project, and which one beside it cannot be read.

    It lies beside the recipe, or in the working folder. Of several, it is the one for the build of
    torch that is installed; None where there is none. Files of other names say nothing about the
    environment that trains: they may be for documentation or tests.

    Raises:
        UsageError: the only one that there is cannot be read.
    """
    folders = [subject.folder]
    if subject.config is not None:
        folders.insert(0, subject.config.absolute().parent)
    for folder in folders:
        names = dict.fromkeys((_variant_name(), "requirements.lock.txt", *LOCK_NAMES.values()))
        found = [folder / name for name in names if is_file(folder / name)]
        readable: list[Path] = []
        problems: list[str] = []
        for path in found:
            try:
                if read_pins(read_lock(path))[0]:
                    return path, next(iter(problems), None)
                readable.append(path)
            except UsageError as error:
                problems.append(error.message)
        if readable:
            return readable[0], next(iter(problems), None)
        if problems:
            raise UsageError(problems[0])
    return None, None


def _variant_name() -> str:
    build = torch_build()
    return LOCK_NAMES["gpu" if build is not None and build[1] is not None else "cpu"]


def _unpinned(text: str) -> list[str]:
    return [line for line in read_pins(text)[1] if not line.startswith("-")]


def differences(wanted: dict[str, str]) -> list[str]:
    """Name what is not installed as locked, such as `torch 2.12.0 instead of 2.13.0`."""
    found = []
    for name, version in wanted.items():
        is_there = installed_version(name)
        if is_there is None:
            found.append(f"{name} {version} is missing")
        elif not _is_same(is_there, Version(version)):
            found.append(f"{name} {is_there} instead of {version}")
    return found


def _is_same(installed: Version, locked: Version) -> bool:
    # A build's own mark, such as +cpu, counts where the lock names one.
    if locked.local is None:
        return Version(installed.public) == Version(locked.public)
    return installed == locked


def _pip() -> str:
    return f"{shlex.quote(sys.executable)} -m pip"


CHECK = Check("lock", "packages against the lock", look)
