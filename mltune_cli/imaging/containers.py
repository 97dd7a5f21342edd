"""A command run in an image, shut in as far as it goes: no network, no root, nothing to write to.

Only one folder is shared: what the command writes there is on this machine, owned by the caller,
also when the command fails or is stopped.
"""

import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.engine import Engine
from mltune_cli.imaging.faults import one_line, run_fault
from mltune_cli.imaging.labels import OWNER, owner
from mltune_cli.imaging.leftovers import remove_container
from mltune_cli.launching.held_signals import held_signals

_LAST_LINES = 20
_LAST_LINE_CHARACTERS = 300
# A program may print for ever without ending its line.
_LINE_BYTES = 1 << 16
_MAX_PROCESSES = 4096
_SHARED_MEMORY_BYTES = 1 << 30
_KILLED = 137
# Whoever runs mltune as root still gets a container without root: this is the images' own user.
_UNPRIVILEGED = 10001
# The engine's init starts the command, and has these words where that fails. For a program of
# another processor it ends with 1, which of mltune's own would be a verdict.
_NOT_STARTED = re.compile(r"\[FATAL\s+tini \(\d+\)\] exec (?P<program>.+) failed: (?P<problem>.+)")


@dataclass(frozen=True)
class RunRequest:
    """What is run.

    Attributes:
        image: id or name.
        command: program and arguments; the image's own where it is empty.
        artifacts: folder of this machine that the container may write to.
        artifacts_at: where the container sees it.
        variables: its environment, on top of the image's.
        has_network: whether it may use the engine's default network.
        memory_bytes: that it may use; None for no limit.
        seconds: after which it is killed; None for no limit.
        device_requests: of the engine's API, for GPUs.
        entrypoint: in place of the image's own; empty to keep that.
    """

    image: str
    command: Sequence[str]
    artifacts: Path
    artifacts_at: str
    variables: Mapping[str, str]
    has_network: bool = False
    memory_bytes: int | None = None
    seconds: float | None = None
    device_requests: Sequence[Mapping[str, Any]] = ()
    entrypoint: Sequence[str] = ()


@dataclass(frozen=True)
class ContainerEnd:
    """How a container ended.

    Attributes:
        exit_code: of its command.
        is_out_of_memory: the kernel killed it, or a process in it, at its memory limit.
        is_timed_out: it was killed because its time was up.
        seconds: that it ran.
        last_lines: that it printed, long ones cut short.
    """

    exit_code: int
    is_out_of_memory: bool
    is_timed_out: bool
    seconds: float
    last_lines: tuple[str, ...]


def run_container(
    engine: Engine, request: RunRequest, on_output: Callable[[str], None]
) -> ContainerEnd:
    """Run a command in an image to its end, and remove the container, whatever happens.

    Args:
        engine: that runs it.
        request: what is run.
        on_output: told each line that it prints, stdout's and stderr's in the order of arrival.

    Raises:
        NoVerdictError: the container cannot be created or started; the sentence names the remedy.
    """
    from docker.errors import APIError
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line[:_LAST_LINE_CHARACTERS])
        del lines[:-_LAST_LINES]
        on_output(line)

    places = {"root": engine.facts.root}
    with _lent(request.artifacts) as user, _container(engine, request, user) as name:
        started = time.monotonic()
        try:
            # Attached before the start: an attachment to a container that has ended never returns.
            chunks = engine.client.attach(name, stream=True, logs=False, demux=True)
            engine.client.start(name)
        except (APIError, RequestException) as error:
            text = str(getattr(error, "explanation", None) or error)
            raise run_fault(text, places) from None
        with _time_limit(engine, name, request.seconds) as is_over:
            try:
                for line in _lines(chunks):
                    hear(line)
                exit_code = int(engine.client.wait(name)["StatusCode"])
                state = engine.client.inspect_container(name)["State"]
            except (APIError, RequestException, HTTPError) as error:
                raise NoVerdictError(
                    "the engine was lost while the container ran; see whether it still runs "
                    f"(`docker info`): {one_line(error)}"
                ) from None
    is_killed = bool(state.get("OOMKilled"))
    seconds = time.monotonic() - started
    return ContainerEnd(exit_code, is_killed, is_over.is_set(), seconds, tuple(lines))


@contextmanager
def _lent(folder: Path) -> Iterator[str]:
    """Give the folder to the container's user for the length of the block.

    That user is the caller. Where the caller is root it is one without rights, and what it wrote
    is given back to root, or to whoever called sudo.
    """
    if os.getuid() != 0:
        yield f"{os.getuid()}:{os.getgid()}"
        return
    _give(folder, _UNPRIVILEGED, _UNPRIVILEGED)
    try:
        yield f"{_UNPRIVILEGED}:{_UNPRIVILEGED}"
    finally:
        with held_signals():
            user, group = (os.environ.get(name, "0") for name in ("SUDO_UID", "SUDO_GID"))
            _give(folder, int(user), int(group))


def _give(folder: Path, user: int, group: int) -> None:
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(os.path.join(parent, name), user, group, follow_symlinks=False)  # noqa: PTH118


@contextmanager
def _container(engine: Engine, request: RunRequest, user: str) -> Iterator[str]:
    """Create a container, and remove it at the end of the block."""
    from docker.errors import APIError
    from requests.exceptions import RequestException

    # Named by us: the name is known even if the engine's answer is lost.
    name = f"mltune-run-{secrets.token_hex(6)}"
    try:
        with held_signals():
            try:
                engine.client.create_container_from_config(_config(engine, request, user), name)
            except (APIError, RequestException) as error:
                text = str(getattr(error, "explanation", None) or error)
                raise run_fault(text, {"root": engine.facts.root}) from None
        yield name
    finally:
        with held_signals():
            remove_container(engine.client, name)


def _config(engine: Engine, request: RunRequest, user: str) -> dict[str, Any]:
    """Return the container as the engine's API describes it."""
    from docker.types import Mount

    client = engine.client
    host_config = client.create_host_config(
        mounts=[Mount(request.artifacts_at, str(request.artifacts.resolve()), type="bind")],
        read_only=True,
        tmpfs={"/tmp": "rw,exec,mode=1777"},  # noqa: S108 - the container's own
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        network_mode=None if request.has_network else "none",
        mem_limit=request.memory_bytes,
        # The same as the memory: none of it may go to swap instead.
        memswap_limit=request.memory_bytes,
        pids_limit=_MAX_PROCESSES,
        shm_size=_SHARED_MEMORY_BYTES,
        init=True,
    )
    if request.device_requests:
        host_config["DeviceRequests"] = [dict(r) for r in request.device_requests]
    config: dict[str, Any] = client.create_container_config(
        request.image,
        list(request.command) or None,
        user=user,
        environment={"HOME": "/tmp", **request.variables},  # noqa: S108 - the container's own
        labels={OWNER: owner()},
        host_config=host_config,
        entrypoint=list(request.entrypoint) or None,
    )
    return config


@contextmanager
def _time_limit(engine: Engine, name: str, seconds: float | None) -> Iterator[threading.Event]:
    """Kill a container whose time is up; the event tells whether that was needed.

    The SDK's own time-outs count the silence on a connection, not the time of a run.
    """
    from docker.errors import APIError
    from requests.exceptions import RequestException

    is_over = threading.Event()

    def kill() -> None:
        is_over.set()
        try:
            engine.client.kill(name)
        except (APIError, RequestException):
            is_over.clear()  # it has ended by itself in this moment

    if seconds is None:
        yield is_over
        return
    timer = threading.Timer(seconds, kill)
    timer.daemon = True
    timer.start()
    try:
        yield is_over
    finally:
        timer.cancel()
        timer.join()


def _lines(chunks: Iterator[tuple[bytes | None, bytes | None]]) -> Iterator[str]:
    """Cut two streams that arrive in chunks into lines, and lines without end into parts."""
    rests = [bytearray(), bytearray()]
    for pair in chunks:
        for rest, chunk in zip(rests, pair, strict=True):
            *ends, begun = (chunk or b"").split(b"\n")
            for end in ends:
                yield _text(bytes(rest) + end)
                rest.clear()
            rest += begun
            if len(rest) >= _LINE_BYTES:
                yield _text(bytes(rest))
                rest.clear()
    yield from (_text(bytes(rest)) for rest in rests if rest)


def _text(line: bytes) -> str:
    return line.decode(errors="replace").rstrip("\r")


def failure_of(end: ContainerEnd, seconds: float | None, memory_bytes: int | None) -> str | None:
    """Say in a sentence why a container failed; None where its command ended by itself."""
    if end.is_timed_out:
        return f"the container was stopped: it took longer than --timeout {seconds:g} seconds"
    if end.is_out_of_memory:
        limit = "the engine's" if memory_bytes is None else f"{memory_bytes / 2**30:.3g} GiB of"
        return f"the container ran out of memory: it needs more than {limit} memory; pass --memory"
    if end.exit_code == _KILLED:
        return "the container was killed from outside"
    last = _NOT_STARTED.fullmatch(end.last_lines[-1]) if end.last_lines else None
    if last is not None and "format error" in last["problem"]:
        return (
            f"{last['program']} in the image is for another processor, or a script without a #! "
            "line; build the image with --platform, or mend the script"
        )
    if end.exit_code == 127:
        return (
            "the image has no such program, or none for this processor; check the Dockerfile, "
            "--platform and what follows --"
        )
    if end.exit_code == 126:
        return "the image's program may not be executed; check its permissions in the Dockerfile"
    return None
