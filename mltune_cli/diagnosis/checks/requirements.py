"""What mltune itself needs, in the versions that it needs."""

import shlex
import sys
from collections.abc import Sequence

from packaging.utils import canonicalize_name

from mltune_cli.diagnosis.finding import Check, Finding, broken, in_order
from mltune_cli.diagnosis.packages import installed_packages, own_source, satisfies
from mltune_cli.diagnosis.subject import Subject

# The bare name is somebody else's on the public index, so no remedy may install it.
REINSTALL = "install mltune from its source: a checkout, a wheel, or an address of git"


def look(_: Subject) -> Sequence[Finding]:
    """Compare mltune's own requirements with what is installed."""
    packages = installed_packages()
    missing, wrong, wanted = [], [], []
    own = packages.get("mltune")
    if own is None:
        return [
            broken(
                "mltune runs from a folder and is not installed",
                "what it needs is not known, and its worker processes may not find it",
                REINSTALL,
                command=_install_own(),
            )
        ]
    for requirement in own.asks_for:
        package = packages.get(canonicalize_name(requirement.name))
        if package is None:
            missing.append(requirement.name)
        elif not satisfies(package.version, requirement):
            wrong.append(f"{package.name} {package.version} (needs {requirement.specifier})")
        else:
            continue
        wanted.append(f"{requirement.name}{requirement.specifier}")
    if not wanted:
        return [in_order(f"the {len(own.asks_for)} packages that mltune {own.version} needs")]
    named = [f"{', '.join(missing)} missing"] if missing else []
    return [
        broken(
            "; ".join([*named, *wrong]),
            "mltune was neither written nor tested with that",
            "install what it needs",
            command=f"{shlex.quote(sys.executable)} -m pip install {shlex.join(wanted)}",
        )
    ]


def _install_own() -> str | None:
    source = own_source()
    if source is None:
        return None
    return f"{shlex.quote(sys.executable)} -m pip install {shlex.quote(source)}"


CHECK = Check("requirements", "what mltune needs", look)
