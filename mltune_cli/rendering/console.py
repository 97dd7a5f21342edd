"""Consoles: results go to stdout, progress and errors to stderr."""

import functools
import os
import re
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


_FILE_WIDTH = 1000


@functools.cache
def stdout() -> "Console":
    """Return the console for results."""
    from rich.console import Console

    # A file or a pipe has no width: lines are left whole for whoever reads them.
    return Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)


@functools.cache
def stderr() -> "Console":
    """Return the console for progress, notices and errors."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)


def visible(text: str) -> str:
    """Return text on one line that does nothing to a terminal.

    What comes from the environment or from a file name may hold escape sequences, or bytes that are
    no text; both are spelled out.
    """
    return _INVISIBLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# Control characters but the tab, separators of lines, what turns the direction of writing around,
# and the surrogates that stand for bytes which are not UTF-8.
_INVISIBLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def print_error(message: str) -> None:
    """Print an error as one sentence on stderr, without importing rich."""
    lines = map(visible, message.split("\n"))
    sys.stderr.write("mltune: " + "\n".join(lines) + "\n")


def print_notice(text: str) -> None:
    """Print a plain line on stderr: how far a command is."""
    sys.stderr.write(text + "\n")


def print_line(text: str) -> None:
    """Print a plain line on stdout."""
    sys.stdout.write(text + "\n")


def is_interactive() -> bool:
    """Tell whether somebody watches: stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
