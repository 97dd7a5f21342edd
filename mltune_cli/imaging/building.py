"""An image, built through the engine's own (classic) builder, step by step.

A build that ends early takes its half-made images with it. A finished stage that a later stage
copies from gets a name: without one it would count as rubbish, and the cache would be lost with it.
"""

import contextlib
import re
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.archive import BuildContext
from mltune_cli.imaging.engine import Engine
from mltune_cli.imaging.faults import build_fault, one_line
from mltune_cli.imaging.leftovers import (
    BuildJournal,
    await_container_end,
    nameless_images,
    remove_dangling,
    remove_tag,
)
from mltune_cli.imaging.time_limit import time_limit
from mltune_cli.launching.held_signals import held_signals

STAGE_REPOSITORY = "mltune-stage"
_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)", re.S)
_MADE = re.compile(r" ---> ([0-9a-f]{12,64})\s*")
_RUNNING = re.compile(r" ---> Running in ([0-9a-f]{12,64})")
_FROM = re.compile(r"FROM\s+(?:--\S+\s+)*(?P<base>\S+)(?:\s+AS\s+(?P<name>\S+))?", re.I)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LAST_LINES = 20


@dataclass(frozen=True)
class BuildRequest:
    """What is built.

    Attributes:
        tag: name of the image, `NAME:TAG`.
        build_args: for the Dockerfile's ARG instructions.
        labels: of the image.
        platform: such as `linux/arm64`; None for the engine's own.
        use_cache: whether steps may be taken from earlier builds.
        seconds: of the whole build; None for no limit.
        dockerfile: as the user knows it, for messages.
        base: the first FROM, for messages.
    """

    tag: str
    build_args: Mapping[str, str]
    labels: Mapping[str, str]
    platform: str | None
    use_cache: bool
    seconds: float | None
    dockerfile: str
    base: str


@dataclass(frozen=True)
class BuildStep:
    """One step of a build.

    Attributes:
        number: from 1; of `total`.
        text: the instruction.
        seconds: that it took; None while it runs.
        is_cached: taken from an earlier build.
    """

    number: int
    total: int
    text: str
    seconds: float | None = None
    is_cached: bool = False


@dataclass(frozen=True)
class BuiltImage:
    """A finished image.

    Attributes:
        image_id: `sha256:...`.
        stages: names of the stages that are kept as cache.
    """

    image_id: str
    steps: tuple[BuildStep, ...]
    seconds: float
    stages: tuple[str, ...] = ()


@dataclass
class BuildEars:
    """What wants to hear how a build goes on: its steps, and the lines that they print."""

    on_step: Callable[[BuildStep], None]
    on_output: Callable[[str], None]


def build_image(
    engine: Engine, context: BuildContext, request: BuildRequest, ears: BuildEars
) -> BuiltImage:
    """Build an image with the engine's own builder.

    Args:
        engine: that builds it.
        context: everything that the Dockerfile copies, and the Dockerfile.
        request: what is built.
        ears: told each step.

    Raises:
        UsageError: the Dockerfile is wrong.
        NoVerdictError: a step failed, the disk is full, or the time is up.
    """
    started = time.monotonic()
    journal = BuildJournal(engine.facts.host)
    progress = _Progress(ears, journal)
    earlier = nameless_images(engine.client)
    with contextlib.closing(journal):
        try:
            # Within the try: when the time is up it is not up for the clean-up.
            limit = time_limit(request.seconds, "building the image")
            with limit, contextlib.closing(context.open_tar()) as archive:
                stream = _stream(engine, archive, context.dockerfile, request)
                with contextlib.closing(stream):
                    for message in stream:
                        progress.hear(message)
                        _name_stages(engine, progress)
        except BaseException as error:
            is_cancelled = not isinstance(error, _BuilderError)
            with held_signals():
                if is_cancelled and progress.container is not None:
                    await_container_end(engine.client, progress.container)
                remove_dangling(engine.client, progress.images, earlier if is_cancelled else None)
            _raise_translated(error, engine, request, progress)
            raise
    if progress.image_id is None:
        raise NoVerdictError("the builder ended without naming an image; the engine was stopped?")
    progress.end_step()
    image_id = str(engine.client.inspect_image(progress.image_id)["Id"])
    stages = _kept_stages(engine, progress)
    return BuiltImage(image_id, tuple(progress.steps), time.monotonic() - started, stages)


def _stream(
    engine: Engine, archive: Any, dockerfile: str, request: BuildRequest
) -> Generator[dict[str, Any], None, None]:
    stream: Generator[dict[str, Any], None, None] = engine.client.build(
        fileobj=archive,
        custom_context=True,
        dockerfile=dockerfile,
        tag=request.tag,
        buildargs=dict(request.build_args),
        labels=dict(request.labels),
        platform=request.platform,
        nocache=not request.use_cache,
        rm=True,
        forcerm=True,
        decode=True,
    )
    return stream


@dataclass
class _Stage:
    """One stage of a build; `image` and `tag` are known when it is done."""

    name: str
    image: str | None = None
    tag: str | None = None
    is_base: bool = False


@dataclass
class _Progress:
    """What a build's messages tell: its steps, its images, the end of a stage."""

    ears: BuildEars
    journal: BuildJournal
    steps: list[BuildStep] = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    image_id: str | None = None
    container: str | None = None
    stages: list["_Stage"] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    _running: BuildStep | None = None
    _began: float = 0.0
    _is_cached: bool = False

    def hear(self, message: dict[str, Any]) -> None:
        """Take one message of the builder.

        Raises:
            _BuilderError: it says that the build failed.
        """
        if "error" in message:
            detail = message.get("errorDetail") or {}
            raise _BuilderError(str(detail.get("message") or message["error"]))
        if "aux" in message:
            self.image_id = str((message["aux"] or {}).get("ID") or "") or self.image_id
        text = str(message.get("stream", ""))
        step = _STEP.fullmatch(text.strip())
        if step is not None and self._is_next(int(step[1]), int(step[2])):
            self._begin(BuildStep(int(step[1]), int(step[2]), one_line(step[3])))
        elif (made := _MADE.fullmatch(text.rstrip("\n") + " ")) is not None:
            self.images.append(made[1])
            self.journal.note(made[1])
        elif text.strip() == "---> Using cache":
            self._is_cached = True
        elif (running := _RUNNING.match(text)) is not None:
            self.container = running[1]
        elif (built := re.match(r"Successfully built ([0-9a-f]+)", text)) is not None:
            self.image_id = self.image_id or built[1]
        elif not text.startswith((" ---> Removed", "Removing intermediate")):
            self._print(_COLOUR.sub("", text))

    def _is_next(self, number: int, total: int) -> bool:
        """Tell a step of this build from what a builder that runs in it prints."""
        last = self._running or (self.steps[-1] if self.steps else None)
        return last is None or (number, total) == (last.number + 1, last.total)

    def _begin(self, step: BuildStep) -> None:
        self.end_step()
        if (start := _FROM.match(step.text)) is not None:
            if self.stages and self.images:
                self.stages[-1].image = self.images[-1]
            for stage in self.stages:
                stage.is_base |= start["base"].lower() == stage.name
            self.stages.append(_Stage((start["name"] or "").lower()))
        self._running, self._began, self._is_cached = step, time.monotonic(), False
        self.log.clear()
        self.ears.on_step(step)

    def end_step(self) -> None:
        """Take the running step as done."""
        step = self._running
        if step is None:
            return
        seconds = time.monotonic() - self._began
        done = BuildStep(step.number, step.total, step.text, seconds, self._is_cached)
        self.steps.append(done)
        self._running = None
        self.ears.on_step(done)

    def _print(self, text: str) -> None:
        for line in text.splitlines():
            if line.strip():
                self.log.append(line.rstrip())
                self.ears.on_output(line.rstrip())
        del self.log[:-_LAST_LINES]


class _BuilderError(Exception):
    """The builder's own word that it failed."""


def _raise_translated(
    error: BaseException, engine: Engine, request: BuildRequest, progress: _Progress
) -> None:
    """Raise what a failed build means; return where the error is not the builder's."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException
    from urllib3.exceptions import HTTPError

    places = {
        "dockerfile": request.dockerfile,
        "base": request.base,
        "platform": request.platform or engine.facts.platform,
        "root": engine.facts.root,
    }
    if isinstance(error, _BuilderError):
        raise build_fault(str(error), progress.log, places) from None
    if isinstance(error, (DockerException, RequestException, HTTPError, ValueError)):
        explanation = getattr(error, "explanation", None)
        raise build_fault(str(explanation or error), progress.log, places) from None


def _name_stages(engine: Engine, progress: _Progress) -> None:
    """Give a finished stage a name, so that it is kept as cache and is no rubbish."""
    for stage in progress.stages:
        if stage.image is None or stage.tag is not None:
            continue
        inspected = engine.client.inspect_image(stage.image)
        stage.tag = f"{STAGE_REPOSITORY}:{inspected['Id'].partition(':')[2][:12]}"
        if not inspected.get("RepoTags"):
            engine.client.tag(stage.image, *stage.tag.split(":"))


def _kept_stages(engine: Engine, progress: _Progress) -> tuple[str, ...]:
    """Take the name from stages that others are made from: those keep them without one."""
    kept = []
    for stage in progress.stages:
        if stage.tag is None:
            continue
        if stage.is_base:
            remove_tag(engine.client, stage.tag)
        else:
            kept.append(stage.tag)
    return tuple(kept)
