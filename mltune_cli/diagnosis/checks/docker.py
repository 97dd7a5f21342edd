"""The Docker engine, which `build-image` needs and nothing else."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.errors import MltuneError, UsageError
from mltune_cli.imaging.engine import Engine, open_engine
from mltune_cli.imaging.faults import connection_fault
from mltune_cli.paths import is_there

_WHY = "`mltune build-image` needs it; nothing else does"
_SOCKET = Path("/var/run/docker.sock")
_START = "sudo systemctl start docker"


def look(subject: Subject) -> Sequence[Finding]:
    """Ask the engine for its versions."""
    try:
        with _engine(subject) as engine:
            facts = engine.facts
    except MltuneError as error:
        seen, _, remedy = error.message.partition("; ")
        is_set = any(subject.variables.get(name) for name in ("DOCKER_HOST", "DOCKER_CONTEXT"))
        if isinstance(error, UsageError) or is_set or "API" in seen:
            # Somebody named an engine, so its absence is no accident.
            return [
                doubtful(
                    seen, _WHY, remedy or "name another engine", command=_command(seen, subject),
                    scope="images",
                )
            ]  # fmt: skip
        command = _command(seen, subject)
        return [known(seen, _WHY, remedy or None, command=command, scope="images")]
    return [
        in_order(
            f"Docker {facts.version}, API {facts.api_version}, {facts.platform}, "
            f"{facts.storage_driver}"
        )
    ]


def _command(seen: str, subject: Subject) -> str:
    host = subject.variables.get("DOCKER_HOST", "").strip()
    if host and not host.startswith(("unix://", "http+unix://")):
        return "unset DOCKER_HOST"  # nothing that is started here answers at another machine
    is_elsewhere = "://" in seen and "unix://" not in seen
    if "DOCKER_CONTEXT" in seen or (is_elsewhere and subject.variables.get("DOCKER_CONTEXT")):
        return "unset DOCKER_CONTEXT"
    if is_elsewhere:
        return "docker context use default"
    if "API" in seen:
        return "unset DOCKER_API_VERSION"
    return "sudo usermod -aG docker $USER" if "permission" in seen else _START


def _engine(subject: Subject) -> AbstractContextManager[Engine]:
    """Open the engine.

    Raises:
        MltuneError: none answers.
    """
    # Importing Docker's SDK takes as long as all other checks; most machines have no engine.
    if not any(name.startswith("DOCKER_") for name in subject.variables) and not (
        is_there(_SOCKET) or is_there(_client_settings(subject))
    ):
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        raise connection_fault(missing, f"unix://{_SOCKET}")
    return open_engine(subject.variables)


def _client_settings(subject: Subject) -> Path:
    return Path(subject.variables.get("HOME") or "~").expanduser() / ".docker" / "config.json"


@contextmanager
def answering_engine(subject: Subject) -> Iterator[Engine | None]:
    """Open the engine; None where none answers, which the check `docker` explains."""
    with ExitStack() as stack:
        engine = None
        with suppress(MltuneError):
            engine = stack.enter_context(_engine(subject))
        yield engine


CHECK = Check("docker", "Docker engine", look)
