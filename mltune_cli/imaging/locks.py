"""The hash-pinned locks: which one an image gets, what it names, and what a wheelhouse lacks."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.markers import InvalidMarker, Marker, UndefinedEnvironmentName
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from mltune_cli.bundled import bundled_lock
from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.paths import is_folder, sight_problem

Variant = Literal["cpu", "gpu"]
LOCK_NAMES: Mapping[Variant, str] = {"cpu": "requirements.txt", "gpu": "requirements-gpu.txt"}

_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?\s*==\s*(?P<version>[^\s;]+)"
    r"(?:\s*;\s*(?P<marker>.+?))?"
    r"(?P<hashes>(?:\s+--hash[= ]sha(?:256|384|512):[0-9a-f]+)*)"
)


@dataclass(frozen=True)
class Pin:
    """One line of a lock.

    Attributes:
        name: canonical.
        marker: the environments that the line is for; empty where it is for all.
        is_hashed: whether the files that are allowed are named by their digests.
    """

    name: str
    version: str
    marker: str
    is_hashed: bool

    def applies(self, environment: Mapping[str, str]) -> bool:
        """Tell whether this line is for an environment, or for one that is like it."""
        return not self.marker or Marker(self.marker).evaluate(dict(environment))


def variant_lock(variant: Variant, project: Path | None) -> Path:
    """Return the lock that an image is built from.

    Args:
        variant: `cpu` or `gpu`.
        project: the folder of a project; its own lock of that name is taken where every line of it
            is pinned by version and hash. Else, and without a project, the bundled one is.
    """
    name = LOCK_NAMES[variant]
    if project is not None and is_hash_pinned(project / name):
        return project / name
    return bundled_lock(name)


def is_hash_pinned(path: Path) -> bool:
    """Tell whether a file is there that pins every package by version and hash.

    Raises:
        UsageError: it is there and cannot be read.
    """
    if not path.is_file():
        return False
    pins, strays = read_pins(read_lock(path))
    return bool(pins) and not strays and all(pin.is_hashed for pin in pins)


def read_lock(path: Path) -> str:
    """Return the text of a lock.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise UsageError(f"{path}: cannot be read: {problem}") from None


def read_pins(text: str) -> tuple[list[Pin], list[str]]:
    """Split a lock into its pins and the lines that are none; comments are left out."""
    pins: list[Pin] = []
    strays: list[str] = []
    for line in _logical_lines(text):
        pin = _read_pin(line)
        if pin is None:
            strays.append(line)
        else:
            pins.append(pin)
    return pins, strays


def _logical_lines(text: str) -> Iterator[str]:
    # pip removes comments after it has joined the lines, so one in the middle ends the joined line.
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        kept = re.sub(r"(^|\s)#.*", "", line).strip()
        if kept:
            yield kept


def _read_pin(line: str) -> Pin | None:
    match = _PIN.fullmatch(line)
    if match is None:
        return None
    marker = match["marker"] or ""
    try:
        Version(match["version"])
        if marker:
            Marker(marker)
    except (InvalidVersion, InvalidMarker):
        return None
    return Pin(canonicalize_name(match["name"]), match["version"], marker, bool(match["hashes"]))


def locked_packages(text: str, python: str | None = None) -> dict[str, str]:
    """Return what a lock installs: version by canonical name, sorted.

    Args:
        text: of the lock.
        python: e.g. `3.12`, on this kind of machine; the running Python where it is None.

    Raises:
        NoVerdictError: a marker asks for something that is known in no environment.
    """
    environment = {"extra": ""}
    if python is not None:
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    found = {}
    for pin in read_pins(text)[0]:
        try:
            if pin.applies(environment):
                found[pin.name] = pin.version
        except UndefinedEnvironmentName as error:
            raise NoVerdictError(f"the lock's line for {pin.name}: {error}") from None
    return dict(sorted(found.items()))


def wheels_of_lock(lock_text: str, folder: Path) -> list[Path]:
    """Return the wheels of a folder that a lock names, by name and version, sorted.

    Raises:
        UsageError: the folder cannot be read.
    """
    wanted = {(pin.name, Version(pin.version)) for pin in read_pins(lock_text)[0]}
    return [path for path, identity in _wheels(folder) if identity in wanted]


def missing_from_wheelhouse(lock_text: str, folder: Path) -> list[str]:
    """Return the locked packages, `name==version`, for which a folder holds no wheel.

    A package that only some Pythons get (it has a marker) is not asked for: which Python the base
    image brings is known to the build alone, and pip names it there.

    Raises:
        UsageError: the folder cannot be read.
    """
    held = {identity for _, identity in _wheels(folder)}
    return sorted(
        f"{pin.name}=={pin.version}"
        for pin in read_pins(lock_text)[0]
        if not pin.marker and (pin.name, Version(pin.version)) not in held
    )


def _wheels(folder: Path) -> list[tuple[Path, tuple[str, Version]]]:
    """Return the wheels of a folder with the package and the version that their names tell."""
    if problem := sight_problem(folder):
        raise UsageError(f"{folder}: cannot be read: {problem}")
    if not is_folder(folder):
        raise UsageError(f"{folder}: is no folder of wheels")
    try:
        paths = sorted(folder.glob("*.whl"))
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None
    found = []
    for path in paths:
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
        except InvalidWheelFilename:
            continue
        found.append((path, (str(name), version)))
    return found
