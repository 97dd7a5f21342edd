"""Autotuning: kernels that were the fastest once, kept in caches or measured anew."""

import getpass
import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.paths import is_folder

# Each lets a stopwatch choose kernels where it is switched on.
_SWITCHES = (
    "PYTORCH_TUNABLEOP_ENABLED", "PYTORCH_TUNABLEOP_TUNING", "TORCHINDUCTOR_MAX_AUTOTUNE",
    "TORCHINDUCTOR_MAX_AUTOTUNE_GEMM", "TORCHINDUCTOR_MAX_AUTOTUNE_POINTWISE",
    "TORCHINDUCTOR_COORDINATE_DESCENT_TUNING",
)  # fmt: skip
_ON = ("1", "true", "on", "yes")
# What the compiler makes in its cache. Source: torch/_inductor/codecache.py, torch 2.13.
_PARTS = {
    "aotautograd", "aoti_eager", "cache", "dynamo", "fxgraph", "gcc", "locks",
    "precompiled_headers", "torch_cutlass", "triton", "unhashed_kernel_inputs",
}  # fmt: skip
_DIGEST_LENGTH = 50
# A digest in base 32, or in hexadecimal as before Triton 3. Source: triton/runtime/cache.py
_TRITON_KEY = re.compile(r"[A-Z2-7]{52}|[0-9a-f]{64}")


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
    filled = [path for path in cache_folders(subject) if _entries(path)]
    if filled:
        findings.append(_left_kernels(subject, filled))
    return findings or [in_order("no autotuning is switched on, and its caches are empty")]


def _left_kernels(subject: Subject, filled: Sequence[Path]) -> Finding:
    """Name the caches; a command removes those alone that hold nothing else."""
    pure = [path for path in filled if is_pure_cache(path, subject)]
    mixed = [path for path in filled if path not in pure]
    remedy = "remove them before runs are compared, or try `repro-check --vary` with them cold"
    if mixed:
        named = " and ".join(map(str, mixed))
        remedy += (
            f"; {named} holds more than kernels, so let TORCHINDUCTOR_CACHE_DIR and "
            "TRITON_CACHE_DIR name folders of their own"
        )
    return known(
        f"earlier runs left compiled kernels in {' and '.join(map(str, filled))}",
        "your own compiled scripts take what was chosen then; with an empty cache they may "
        "choose otherwise",
        remedy,
        command=f"rm -r -- {shlex.join(map(str, pure))}" if pure else None,
        scope="scripts",
    )


def is_pure_cache(folder: Path, subject: Subject) -> bool:
    """Tell whether a folder may be removed: nothing but kernels lies in it.

    A variable may name any folder, also one's home.

    Args:
        folder: of the compiler's or of Triton's.
        subject: its folder and home, and all above them, are never a cache.
    """
    place = folder.resolve()
    home = subject.variables.get("HOME") or "~"
    for lived_in in (subject.folder, Path(home).expanduser(), Path("~").expanduser()):
        if lived_in.resolve().is_relative_to(place):
            return False
    if place.parts[-2:] == (".triton", "cache") or place.name.startswith("torchinductor_"):
        return True  # nobody else gives such names
    return all(_is_part(path) for path in _entries(folder))


def _is_part(path: Path) -> bool:
    """Tell whether the compiler or Triton made an entry of its cache."""
    if not is_folder(path):
        return False
    if path.name in _PARTS or _TRITON_KEY.fullmatch(path.name):
        return True
    # A folder of two letters holds the files whose digests begin with them.
    names = [entry.name for entry in _entries(path) if entry.name != "__pycache__"]
    begins = all(name.startswith(f"c{path.name}") and len(name) > _DIGEST_LENGTH for name in names)
    return bool(names) and re.fullmatch(r"[a-z2-7]{2}", path.name) is not None and begins


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
    folders = (Path(inductor).expanduser(), Path(triton).expanduser())
    return list(dict.fromkeys(subject.folder / folder for folder in folders))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


CHECK = Check("autotune-caches", "autotuning and its caches", look)
