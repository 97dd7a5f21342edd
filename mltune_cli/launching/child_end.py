"""The end of a child process, awaited without letting go of the child."""

import os
import select


def await_end(pid: int) -> None:
    """Return when a child has ended; its number stays taken, and its exit status unread.

    A descriptor of the process is watched where the system has those: `waitid` was seen to say
    that there is no such child, on a busy machine, of one that had just been started.

    Args:
        pid: of a child of this process that nobody has waited for.

    Raises:
        OSError: there is no such child.
    """
    if not hasattr(os, "pidfd_open"):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        return
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll()
    finally:
        os.close(descriptor)
