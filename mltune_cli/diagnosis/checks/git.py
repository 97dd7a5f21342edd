"""The state of the repository: what the commit in a run's manifest stands for."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.subject import Subject

_ANSWER_SECONDS = 4.0
_SHOWN = 3


def look(subject: Subject) -> Sequence[Finding]:
    """Ask git about the working folder."""
    try:
        inside = _git(subject.folder, "rev-parse", "--is-inside-work-tree")
    except FileNotFoundError:
        return [
            known(
                "git is not installed",
                "a run's manifest names no commit",
                "install it",
                command="sudo apt-get install git",
            )
        ]
    if inside.returncode:
        said = inside.stderr.strip()
        if "dubious ownership" in said:
            folder = shlex.quote(str(subject.folder))
            return [
                doubtful(
                    "git does not touch this folder: it belongs to another user",
                    "a run's manifest names no commit",
                    "tell git that the folder is safe, where you trust that user",
                    command=f"git config --global --add safe.directory {folder}",
                )
            ]
        return [
            known(
                "this folder is in no git repository",
                "a run's manifest names no commit, so nobody can tell which code gave it",
                "make one, and commit recipe and scripts",
                command="git init",
            )
        ]
    head = _git(subject.folder, "rev-parse", "--short=12", "HEAD")
    if head.returncode:
        return [
            known(
                "this repository has no commit yet",
                "a run's manifest names no commit",
                "commit recipe and scripts",
                command="git add --all && git commit -m 'First commit'",
            )
        ]
    changed = _git(subject.folder, "status", "--porcelain", "-uno").stdout.splitlines()
    if changed:
        names = ", ".join(line[3:] for line in changed[:_SHOWN])
        more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        return [
            doubtful(
                f"changes that are not committed: {names}{more}",
                "a run's manifest names the commit and says dirty: from the commit alone the run "
                "cannot be repeated",
                "commit them, or put them away",
                command="git commit -am 'Before training'",
            )
        ]
    return [in_order(f"commit {head.stdout.strip()}, nothing changed since")]


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", *words], capture_output=True, text=True, errors="replace", cwd=folder,
        timeout=_ANSWER_SECONDS, check=False,
    )  # fmt: skip


CHECK = Check("git", "git", look)
