"""Installed packages, without importing any of them."""

import ast
import functools
import importlib.util
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

import mltune_cli
from mltune_cli.paths import is_there


@dataclass(frozen=True)
class Package:
    """An installed package.

    Attributes:
        name: canonical.
        asks_for: its requirements in this environment, extras left out.
    """

    name: str
    version: Version
    asks_for: tuple[Requirement, ...]


def installed_packages() -> Mapping[str, Package]:
    """Return the installed packages by canonical name; the first on the path counts."""
    with _READING:  # several checks ask at once, and the cache alone would let each read
        return _read_packages()


_READING = threading.Lock()


@functools.cache
def _read_packages() -> Mapping[str, Package]:
    found: dict[str, Package] = {}
    for distribution in metadata.distributions():
        # Of a hundred files the header alone, by hand: the library's parser takes half a second.
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
        package = _package(text.replace("\r\n", "\n").partition("\n\n")[0])
        if package is not None:
            found.setdefault(package.name, package)
    return found


def _package(header: str) -> Package | None:
    """Read a package's header; None where an interrupted installation left no proper one."""
    name, version = (re.search(rf"(?m)^{key}: *(\S+)", header) for key in ("Name", "Version"))
    try:
        if name is None or version is None:
            return None
        asked = re.findall(r"(?m)^Requires-Dist: *(.+)", header)
        return Package(canonicalize_name(name[1]), Version(version[1]), tuple(_requirements(asked)))
    except InvalidVersion:
        return None


def _requirements(texts: Iterable[str]) -> Iterator[Requirement]:
    for text in texts:
        if "extra ==" in text:
            continue
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def installed_version(name: str) -> Version | None:
    """Return a package's version; None where it is not installed."""
    package = installed_packages().get(canonicalize_name(name))
    return None if package is None else package.version


def satisfies(version: Version, requirement: Requirement) -> bool:
    """Tell whether a version is what is asked for; a pre-release may be."""
    return requirement.specifier.contains(version, prereleases=True)


def own_source() -> str | None:
    """Return where this mltune is installed from again; None where that is not known or gone.

    Never the bare name: on the public index it is somebody else's.
    """
    checkout = Path(mltune_cli.__file__).parent.parent
    if (checkout / "pyproject.toml").is_file():
        return str(checkout)  # it runs from there
    try:
        text = metadata.distribution("mltune").read_text("direct_url.json")
        told = json.loads(text or "{}")
        url = str(told.get("url", ""))
    except (metadata.PackageNotFoundError, ValueError, AttributeError, OSError):
        return None
    if url.startswith("file://"):
        path = unquote(url.removeprefix("file://"))
        return path if is_there(path) else None
    version = told.get("vcs_info")
    if isinstance(version, dict):
        return f"{version.get('vcs', 'git')}+{url}@{version.get('commit_id', 'HEAD')}"
    return url or None


def package_folder(name: str) -> Path | None:
    """Return the folder of a package that would be imported; None where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def torch_build() -> tuple[str, tuple[int, int] | None] | None:
    """Return torch's version, and the CUDA that it is built with, without importing it.

    The second is None for a build without CUDA, the whole where torch is not there.
    """
    folder = package_folder("torch")
    if folder is None:
        return None
    try:
        tree = ast.parse((folder / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return None
    values: dict[str, object] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        target = node.target if isinstance(node, ast.AnnAssign) else target
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            values[target.id] = value.value
    return str(values.get("__version__", "unknown")), _pair(values.get("cuda"))


def _pair(text: object) -> tuple[int, int] | None:
    parts = str(text).split(".") if isinstance(text, str) else []
    if len(parts) < 2 or not all(part.isdecimal() for part in parts[:2]):
        return None
    return int(parts[0]), int(parts[1])
