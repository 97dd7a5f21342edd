"""Autotuning: kernels that were the fastest once, kept in caches or measured anew."""

import getpass
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.subject import Subject

# Each lets a stopwatch choose kernels where it is switched on.
_SWITCHES = (
    "PYTORCH_TUNABLEOP_ENABLED", "PYTORCH_TUNABLEOP_TUNING", "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM", "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE",
    "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING",
)  # fmt: skip
_ON = ("1", "true", "on", "yes")


def look(subject: Subject) -> Sequence[Finding]:
    """Look at the switches, and at the caches that earlier runs left."""
    findings = []
    on = [name for name in _SWITCHES if subject.variables.get(name, "").lower() in _ON]
    if on:
        shown = ", ".join(f"{name}={subject.variables[name]}" for name in on)
        findings.append(
            doubtful(
                f"{shown}; mltune's own training sets it aside",
                "in your own scripts a stopwatch chooses kernels, so a cold start may choose "
                "others, with other bits",
                "switch it off",
                command=f"unset {' '.join(on)}",
                scope="scripts",
            )
        )
    filled = [path for path in cache_folders(subject) if _holds_something(path)]
    if filled:
        findings.append(
            known(
                f"earlier runs left compiled kernels in {' and '.join(map(str, filled))}",
                "your own compiled scripts take what was chosen then; with an empty cache they may "
                "choose otherwise",
                "remove them before runs are compared, or try `repro-check --vary` with them cold",
                command=f"rm -r {' '.join(shlex.quote(str(path)) for path in filled)}",
                scope="scripts",
            )
        )
    return findings or [in_order("no autotuning is switched on, and its caches are empty")]


def cache_folders(subject: Subject) -> list[Path]:
    """Return where torch's compiler and Triton keep their kernels."""
    variables = subject.variables
    inductor = variables.get("TORCHINDUCTOR_CACHE_DIR")
    if not inductor:
        try:
            user = getpass.getuser()
        except (KeyError, OSError, ImportError):
            user = str(Path.home().name)
        # As torch names it, in the folder for temporary files.
        inductor = f"{tempfile.gettempdir()}/torchinductor_{re.sub(r'[^A-Za-z0-9_.-]', '_', user)}"
    home = variables.get("TRITON_HOME") or variables.get("HOME") or "~"
    triton = variables.get("TRITON_CACHE_DIR") or f"{home}/.triton/cache"
    return [Path(inductor).expanduser(), Path(triton).expanduser()]


def _holds_something(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except OSError:
        return False


CHECK = Check("autotune-caches", "autotuning and its caches", look)
