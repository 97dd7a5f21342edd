"""The commit that a command is started in."""

import subprocess

from mltune_cli.manifest import GitFacts


def current_commit() -> GitFacts | None:
    """Return commit and dirty flag of the working directory; None outside a repository."""
    try:
        commit = _git("rev-parse", "HEAD")
        return GitFacts(commit=commit, dirty=bool(_git("status", "--porcelain", "-uno")))
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    completed = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return completed.stdout.strip()
