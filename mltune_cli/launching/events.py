"""What a worker tells the command that started it: JSON lines on a pipe of their own.

A separate pipe, since libraries print what they like on stdout and stderr. Each event is one
object with a `kind`; the kinds and their fields are the dataclasses below.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from mltune_cli.errors import NoVerdictError


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    kind: ClassVar[str]

    def to_line(self) -> bytes:
        """Return the event as one line of JSON."""
        text = json.dumps({"kind": self.kind, **asdict(self)}, separators=(",", ":"))
        return text.encode() + b"\n"


@dataclass(frozen=True)
class Notice(Event):
    """Something the user should know and need not act on."""

    kind: ClassVar[str] = "notice"
    message: str


@dataclass(frozen=True)
class Started(Event):
    """Everything was found good, and the run folder was made.

    `units` are rows, or the packs that rows were put into.
    """

    kind: ClassVar[str] = "started"
    folder: str
    total_steps: int
    trained_parameters: int
    parameters: int
    rows: int
    units: int
    device: str
    dtype: str
    processes: int = 1


@dataclass(frozen=True)
class StepDone(Event):
    """An optimizer step was taken. Times in seconds, loss in nats per token.

    `logged` says whether the step stands in `training_log.jsonl`.
    """

    kind: ClassVar[str] = "step"
    step: int
    logged: bool
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Witnessed(Event):
    """The digests of a step, as in `witness.jsonl`."""

    kind: ClassVar[str] = "witness"
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluated(Event):
    """The held-out loss after `step` steps, in nats per token."""

    kind: ClassVar[str] = "evaluated"
    step: int
    loss: float


@dataclass(frozen=True)
class Finished(Event):
    """The run is complete; `trained` is the folder with the adapter or the model."""

    kind: ClassVar[str] = "finished"
    folder: str
    trained: str
    last_loss: float


@dataclass(frozen=True)
class Failed(Event):
    """The worker stops with an explained error."""

    kind: ClassVar[str] = "failed"
    exit_code: int
    message: str


_KINDS: dict[str, type[Event]] = {
    event.kind: event
    for event in (Notice, Started, StepDone, Witnessed, Evaluated, Finished, Failed)
}


def parse_event(line: str | bytes) -> Event:
    """Read one line of the pipe.

    Raises:
        ValueError: it is no event, such as the torn last line of a killed worker.
    """
    try:
        fields = json.loads(line)
    except RecursionError:
        raise ValueError("not an event") from None
    name = fields.pop("kind", None) if isinstance(fields, dict) else None
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError("not an event")
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from None


class EventPipe:
    """The worker's end of the pipe; with no descriptor, of a process that nobody listens to."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def send(self, event: Event) -> None:
        """Write an event.

        Raises:
            NoVerdictError: the command that listened is gone. A worker does not outlive it: it
                would go on writing into a folder that its user believes to be free.
        """
        if self._descriptor is None:
            return
        line = event.to_line()
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            raise NoVerdictError("the command that started this worker is gone") from None
