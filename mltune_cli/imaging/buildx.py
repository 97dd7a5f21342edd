"""An image, built by BuildKit through `docker buildx`, which the Docker SDK does not speak."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.archive import BuildContext
from mltune_cli.imaging.building import BuildEars, BuildRequest, BuildStep, BuiltImage
from mltune_cli.imaging.engine import Engine
from mltune_cli.imaging.faults import build_fault, one_line
from mltune_cli.imaging.time_limit import time_limit
from mltune_cli.launching.held_signals import held_signals

_INSTALL = "install Docker's buildx plugin (docker-buildx), or leave --builder buildx away"
_STEP = re.compile(r"#(\d+) \[(?:(\S+) )?(?:(\d+)/(\d+))\] (.*)")
_DONE = re.compile(r"#(\d+) (?:DONE|CACHED)(?: ([\d.]+)s)?")
_PRINTED = re.compile(r"#(\d+) [\d.]+ (.*)")
_LAST_LINES = 20
_GRACE_SECONDS = 15.0


@dataclass(frozen=True)
class ArchiveRequest:
    """An image written to an archive, so that two can be compared bit for bit.

    Attributes:
        target: the archive, in the OCI layout.
        epoch: the time that everything in it carries, in seconds since 1970.
    """

    target: Path
    epoch: int


def require_buildx(variables: Mapping[str, str] = os.environ) -> None:
    """Refuse to go on where `docker buildx` is not to be had.

    Raises:
        NoVerdictError: names what to install.
    """
    if shutil.which("docker", path=variables.get("PATH")) is None:
        raise NoVerdictError(f"--builder buildx: there is no docker command; {_INSTALL}")
    version = subprocess.run(
        ["docker", "buildx", "version"], capture_output=True, text=True, timeout=60, check=False
    )
    if version.returncode != 0:
        raise NoVerdictError(f"--builder buildx: docker has no buildx; {_INSTALL}")


def build_with_buildx(
    engine: Engine,
    context: BuildContext,
    request: BuildRequest,
    ears: BuildEars,
    archive: ArchiveRequest | None = None,
) -> BuiltImage:
    """Build an image with BuildKit, into the engine or into an archive.

    Args:
        engine: into which the image goes.
        context: everything that the Dockerfile copies, and the Dockerfile.
        request: what is built.
        ears: told each step.
        archive: write it there instead of into the engine.

    Returns:
        The image; of an archive, `image_id` is empty.

    Raises:
        UsageError: the Dockerfile is wrong.
        NoVerdictError: a step failed, the disk is full, or the time is up.
    """
    started = time.monotonic()
    progress = _Progress(ears)
    command = [*_command(request, archive), "--file", context.dockerfile, "-"]
    with tempfile.TemporaryFile() as tar, time_limit(request.seconds, "building the image"):
        context.write_tar(tar)
        tar.seek(0)
        with _process(command, _variables(engine, archive), tar) as process:
            assert process.stderr is not None  # noqa: S101 - it is piped
            for line in process.stderr:
                progress.hear(line.rstrip("\n"))
            status = process.wait()
    if status != 0:
        raise build_fault(progress.error, progress.log, _places(engine, request))
    # By its name: buildx's own id is another digest than the one of an engine's newer image store.
    image_id = "" if archive else str(engine.client.inspect_image(request.tag)["Id"])
    return BuiltImage(image_id, tuple(progress.steps.values()), time.monotonic() - started)


def _command(request: BuildRequest, archive: ArchiveRequest | None) -> list[str]:
    command = ["docker", "buildx", "build", "--progress", "plain", "--provenance=false"]
    if archive is None:
        command += ["--load", "--tag", request.tag]
    else:
        command += ["--output", f"type=oci,dest={archive.target},rewrite-timestamp=true"]
    for name, value in request.build_args.items():
        command += ["--build-arg", f"{name}={value}"]
    for name, value in request.labels.items():
        command += ["--label", f"{name}={value}"]
    if request.platform is not None:
        command += ["--platform", request.platform]
    if not request.use_cache:
        command += ["--no-cache"]
    return command


def _variables(engine: Engine, archive: ArchiveRequest | None) -> dict[str, str]:
    variables = {**os.environ, "DOCKER_HOST": engine.facts.host}
    if archive is not None:
        variables["SOURCE_DATE_EPOCH"] = str(archive.epoch)
    return variables


@contextlib.contextmanager
def _process(
    command: list[str], variables: Mapping[str, str], context: IO[bytes]
) -> Iterator["subprocess.Popen[str]"]:
    """Run buildx in a session of its own, and end it with the block.

    In our session a Ctrl-C would reach it as well, and its own last words would mix with ours.
    """
    with held_signals():
        process = subprocess.Popen(
            command,
            stdin=context,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=dict(variables),
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
    try:
        yield process
    finally:
        with held_signals():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # it cancels the build in the engine
                try:
                    process.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stderr is not None:
                process.stderr.close()


def _end_with_parent() -> None:
    """Let the kernel end buildx when we are killed outright (Linux alone): it would go on."""
    set_parent_death_signal = 1
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _places(engine: Engine, request: BuildRequest) -> dict[str, str]:
    return {
        "dockerfile": request.dockerfile,
        "base": request.base,
        "platform": request.platform or engine.facts.platform,
        "root": engine.facts.root,
    }


class _Progress:
    """What buildx prints in its plain form: vertices that begin, print and are done."""

    def __init__(self, ears: BuildEars) -> None:
        self._ears = ears
        self.steps: dict[str, BuildStep] = {}
        self.log: list[str] = []
        self._errors: list[str] = []

    @property
    def error(self) -> str:
        """What it said at its end."""
        return one_line(" ".join(self._errors)) or "buildx ended without a word"

    def hear(self, line: str) -> None:
        """Take one line."""
        if (step := _STEP.match(line)) is not None:
            vertex, stage, number, total, text = step.groups()
            if vertex not in self.steps:
                named = f"{stage}: {text}" if stage else text
                self.steps[vertex] = BuildStep(int(number), int(total), named)
                self._ears.on_step(self.steps[vertex])
        elif (done := _DONE.match(line)) is not None and done[1] in self.steps:
            begun = self.steps[done[1]]
            if begun.seconds is not None:
                return  # a base is resolved first, and then said to be cached
            is_cached = done[2] is None
            ended = BuildStep(begun.number, begun.total, begun.text, float(done[2] or 0), is_cached)
            self.steps[done[1]] = ended
            self._ears.on_step(ended)
        elif (printed := _PRINTED.match(line)) is not None:
            self.log.append(printed[2])
            del self.log[:-_LAST_LINES]
            self._ears.on_output(printed[2])
        elif line.startswith("ERROR:"):
            self._errors.append(line.removeprefix("ERROR:").strip())
