"""The labels by which mltune knows what it made in an engine, and whose it was."""

import os
import socket
from pathlib import Path

from mltune_cli.manifest import GitFacts

OWNER = "mltune.owner"
COMMIT = "mltune.git.commit"
DIRTY = "mltune.git.dirty"
CONTEXT = "mltune.context"
VARIANT = "mltune.variant"
REVISION = "org.opencontainers.image.revision"


def image_labels(git: GitFacts | None, context_digest: str, variant: str) -> dict[str, str]:
    """Return the labels of a built image.

    Args:
        git: the commit of the folder in which the image is built; None outside a repository.
        context_digest: of everything that was sent to the builder.
        variant: `cpu` or `gpu`.
    """
    labels = {CONTEXT: context_digest, VARIANT: variant}
    if git is not None:
        labels |= {COMMIT: git.commit, DIRTY: str(git.dirty).lower(), REVISION: git.commit}
    return labels


def owner() -> str:
    """Name this process so that nobody takes another for it: host, boot, pid, start."""
    return ":".join((_machine(), str(os.getpid()), _start_of(os.getpid()) or "0"))


def is_abandoned(value: str) -> bool:
    """Tell whether the process that a label names ran on this machine and is gone.

    What another machine's process left behind a shared engine is never judged.
    """
    try:
        host, boot, pid, start = value.rsplit(":", 3)
    except ValueError:
        return False
    here, this_boot = _machine().rsplit(":", 1)
    if host != here:
        return False
    return boot != this_boot or not pid.isdigit() or _start_of(int(pid)) != start


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        boot = "unknown"
    return f"{socket.gethostname()}:{boot}"


def _start_of(pid: int) -> str | None:
    """Return when a process started, in ticks since the boot; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]
