"""Python and the platform: what mltune is made for, and what it was tried on."""

import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order, known
from mltune_cli.diagnosis.packages import own_source
from mltune_cli.diagnosis.subject import Subject

_NEWEST_TRIED = (3, 13)
_PROCESSORS = ("x86_64", "aarch64", "arm64")


@dataclass(frozen=True)
class PythonFacts:
    """The running Python, and what it runs on."""

    version: tuple[int, int]
    implementation: str
    system: str
    machine: str
    is_64_bit: bool


def look(_: Subject) -> Sequence[Finding]:
    """Judge the Python that runs this."""
    return judge(
        PythonFacts(
            version=(sys.version_info.major, sys.version_info.minor),
            implementation=platform.python_implementation(),
            system=platform.system(),
            machine=platform.machine(),
            is_64_bit=sys.maxsize > 2**32,
        )
    )


def judge(facts: PythonFacts) -> list[Finding]:
    """Return what is to be said of a Python."""
    version = ".".join(map(str, facts.version))
    least = _least_version()
    place = f"{facts.system} {facts.machine}"
    findings = []
    if facts.version < least:
        wanted = ".".join(map(str, least))
        findings.append(
            broken(
                f"Python {version}",
                f"mltune needs {wanted} or newer",
                f"make an environment with Python {wanted}, and install mltune there from its "
                "source: a checkout, a wheel, or an address of git",
                command=_new_environment(wanted),
            )
        )
    if facts.version > _NEWEST_TRIED:
        findings.append(
            known(
                f"Python {version}",
                "mltune was not tried on it; torch may have no build for it",
                f"where something fails, try Python {'.'.join(map(str, _NEWEST_TRIED))}",
            )
        )
    if facts.implementation != "CPython" or not facts.is_64_bit:
        bits = "" if facts.is_64_bit else " of 32 bits"
        findings.append(
            broken(
                f"{facts.implementation}{bits}",
                "torch has builds for CPython of 64 bits alone",
                "install mltune with the CPython of python.org or of your distribution",
            )
        )
    if facts.system != "Linux":
        findings.append(
            doubtful(
                place,
                "mltune is made for Linux; what needs /proc, containers or CUDA is not there",
                "train on Linux; on Windows, in WSL 2",
            )
        )
    if facts.machine not in _PROCESSORS:
        findings.append(
            doubtful(
                place,
                "torch is not built for this processor by its own project",
                f"train on one of {', '.join(_PROCESSORS[:2])}",
            )
        )
    return findings or [in_order(f"{facts.implementation} {version}, {place}")]


def _new_environment(version: str) -> str:
    """Return the command that makes an environment, with mltune where its source is known."""
    make, source = f"python{version} -m venv .venv", own_source()
    if source is None:
        return make
    return f"{make} && .venv/bin/python -m pip install {shlex.quote(source)}"


def _least_version() -> tuple[int, int]:
    try:
        about = metadata.distribution("mltune").read_text("METADATA") or ""
    except metadata.PackageNotFoundError:  # it runs from a folder; `requirements` says so
        about = ""
    found = re.search(r"(?m)^Requires-Python:.*?>=\s*(\d+)\.(\d+)", about)
    return (int(found[1]), int(found[2])) if found else (3, 11)


CHECK = Check("python", "Python and platform", look)
