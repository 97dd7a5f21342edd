"""What must not be shown: secrets in any output; in a bug report also who and where one is."""

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

_HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"TOKEN(?!IZER)|SECRET|PASSW|PASSPHRASE|_PASS$|_PWD$|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE"
    r"|_KEY$|AUTH(?!OR)|AUTHORI[SZ]|COOKIE",
    re.I,
)
_LEAST_SECRET = 6
# A name that holds one of these words and has such a value holds no secret, or none that could be
# told from the numbers and switches around it.
_PLAIN_VALUE = re.compile(r"(?i)true|false|none|null|never|always|\d{1,8}|/[\w./-]*")
# Words of our own sentences. Where everybody's report has one, taking it out of a single report
# tells what the secret is, and makes the rest unreadable.
_COMMON_WORDS = {
    "another", "before", "bundled", "default", "docker", "engine", "environment", "export",
    "folder", "install", "installed", "kernels", "linux", "localhost", "machine", "mltune",
    "nothing", "package", "process", "processes", "python", "python3", "recipe", "script",
    "scripts", "settings", "training", "variable", "version", "without",
}  # fmt: skip
_PATTERNS = (
    re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"),
    re.compile(r"\bglpat-[\w-]{16,}"),
    re.compile(r"\bpypi-[\w-]{16,}"),
    re.compile(r"\bsk-[\w-]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"\bxox[abposr]-[\w-]{10,}"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"(?<=://)[^\s/@'\"]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]{8,}|(?<=basic )[A-Za-z0-9+/=]{8,}"),
    re.compile(
        r"(?i)(?<=[?&;]token=)[^\s&;'\"]+|(?<=[?&;]key=)[^\s&;'\"]+|(?<=password=)[^\s&;'\"]+"
    ),
)


def is_secret_name(name: str) -> bool:
    """Tell whether a variable's name says that its value is a secret."""
    return _SECRET_NAME.search(name) is not None


class Redaction:
    """Takes secrets out of text.

    A value that is short, a number, a switch, a path or an everyday word stands in text for many
    reasons; it is taken out only where it is shown as the variable's own, as in `NAME=value`.

    Args:
        variables: the environment; the values of those whose names say that they are secret are
            taken out wherever they stand.
        secrets: further values.
        words: that stand in the text whatever the secrets are, in lower case.
    """

    def __init__(
        self,
        variables: Mapping[str, str],
        secrets: tuple[str, ...] = (),
        words: frozenset[str] = frozenset(),
    ) -> None:
        named = {name: value.strip() for name, value in variables.items() if is_secret_name(name)}
        words = words | _COMMON_WORDS
        kept = {
            value
            for value in (*named.values(), *(secret.strip() for secret in secrets))
            if len(value) >= _LEAST_SECRET
            and not _PLAIN_VALUE.fullmatch(value)
            and value.lower() not in words
        }
        # The longest first: one secret may be a part of another.
        self._values = sorted(kept, key=len, reverse=True)
        self._own = [(name, value) for name, value in named.items() if value]

    def text(self, text: str) -> str:
        """Return a text without secrets."""
        for value in self._values:
            text = text.replace(value, _HIDDEN)
        for name, value in self._own:
            text = text.replace(f"{name}={value}", f"{name}={_HIDDEN}")
        for pattern in _PATTERNS:
            text = pattern.sub(_HIDDEN, text)
        return text


def anonymous(text: str, variables: Mapping[str, str]) -> str:
    """Return a text without home folder, user name and host name, for others to read."""
    homes = {variables.get("HOME", ""), str(Path("~").expanduser())}
    for home in sorted(homes, key=len, reverse=True):
        if home.strip("/~"):
            text = re.sub(rf"{re.escape(home.rstrip('/'))}(?=/|\b|$)", "~", text)
    for name, word in _identities(variables):
        # A part of a word is another word: a user `ci` must not eat `precision`.
        text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", word, text)
    return text


_COMMON_NAMES = {"root", "user", "localhost", "mltune", "python", "torch", "docker", "git", "linux"}


def _identities(variables: Mapping[str, str]) -> list[tuple[str, str]]:
    users = {variables.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    with contextlib.suppress(KeyError, OSError, ImportError):  # a user without a name
        users.add(getpass.getuser())
    hosts = {socket.gethostname(), os.uname().nodename, variables.get("HOSTNAME", "")}
    hosts |= {host.partition(".")[0] for host in hosts}
    named = [(user, "USER") for user in users] + [(host, "HOST") for host in hosts]
    kept = [(n, word) for n, word in named if len(n) > 1 and n.lower() not in _COMMON_NAMES]
    return sorted(kept, key=lambda pair: -len(pair[0]))
