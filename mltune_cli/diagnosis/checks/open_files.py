"""How many files a process may have open."""

import resource
from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, in_order, judged
from mltune_cli.diagnosis.subject import Subject

_ENOUGH = 1024
# Python with torch has about a hundred open; below this it does not even import everything.
_TOO_FEW = 128
_WANTED = 4096


def look(_: Subject) -> Sequence[Finding]:
    """Look at the limit of this process, which its workers inherit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _ENOUGH:
        return [in_order(f"{'any number of' if soft < 0 else soft} files may be open at once")]
    can_raise = hard == resource.RLIM_INFINITY or hard >= _ENOUGH
    wanted = _WANTED if hard < 0 else min(_WANTED, hard)
    return [
        judged(
            soft < _TOO_FEW,
            f"{soft} files may be open at once",
            "data in many shards, loader workers and several processes need more; they end with "
            "`Too many open files`",
            "raise the limit in the shell that starts mltune"
            if can_raise
            else f"the hard limit is {hard}: have root raise it in /etc/security/limits.conf, or "
            "start the container with --ulimit nofile=65536",
            command=f"ulimit -n {wanted}" if can_raise else None,
        )
    ]


CHECK = Check("open-files", "open files", look)
