"""Events of many workers arrive whole and in order; failures are kept, and the first one counts."""

import os
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mltune_cli.errors import ExitCode, NoVerdictError, StoppedBySignalError, UsageError
from mltune_cli.launching import event_relay
from mltune_cli.launching.event_relay import EventRelay
from mltune_cli.launching.events import (
    Event,
    EventPipe,
    Failed,
    Notice,
    Started,
    StepDone,
    parse_event,
)

STARTED = Started("run", 3, 1, 2, 3, 3, "cpu", "float32", 2)
STEP = StepDone(1, True, 3, 2.5, 1e-3, 100.0, 1.0)


@dataclass
class Relayed:
    """A relay, somebody who listens to it, and whether the workers were ended."""

    path: Path
    relay: EventRelay
    endings: list[float] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def say(self, *lines: bytes) -> None:
        """Write as a worker that ends right afterwards."""
        descriptor = os.open(self.path, os.O_WRONLY)
        for line in lines:
            os.write(descriptor, line)
        os.close(descriptor)

    def has(self, count: int) -> list[Event]:
        """Return the events that arrived, once there are so many."""
        wait_until(lambda: len(self.events) >= count)
        return self.events


def wait_until(holds: object) -> None:
    deadline = time.monotonic() + 20
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has a manifest to write here."""
    monkeypatch.setattr(event_relay, "_GRACE_SECONDS", 0.05)


@pytest.fixture
def relayed(tmp_path: Path) -> Iterator[Relayed]:
    read_end, write_end = os.pipe()
    path = tmp_path / "events"
    endings: list[float] = []
    relay = EventRelay(path, EventPipe(write_end), lambda: endings.append(time.monotonic()))
    found = Relayed(path, relay, endings)

    def listen() -> None:
        with os.fdopen(read_end, "rb") as stream:
            found.events.extend(map(parse_event, stream))

    listener = threading.Thread(target=listen)
    listener.start()
    yield found
    relay.close()
    os.close(write_end)
    listener.join(timeout=20)
    assert not listener.is_alive()


def test_nobody_else_may_write_into_the_pipe(relayed: Relayed) -> None:
    mode = relayed.path.stat().st_mode
    assert stat.S_ISFIFO(mode)
    assert stat.S_IMODE(mode) == 0o600


def test_thousands_of_events_of_several_workers_arrive_whole_and_in_order(
    relayed: Relayed,
) -> None:
    """Far more than a pipe holds, from workers that write at the same time."""
    count = 2500

    def work(rank: int) -> None:
        pipe = EventPipe(os.open(relayed.path, os.O_WRONLY))
        for number in range(count):
            pipe.send(Notice(f"{rank} {number} {'x' * (number % 1000)}"))

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
    arrived = [event.message.split() for event in relayed.has(4 * count)]  # type: ignore[attr-defined]
    assert len(arrived) == 4 * count
    for rank in range(4):
        own = [(int(number), len(filling[0]) if filling else 0)
               for who, number, *filling in arrived if int(who) == rank]  # fmt: skip
        assert own == [(number, number % 1000) for number in range(count)]
    assert relayed.endings == []


def test_the_pipe_outlives_its_writers(relayed: Relayed) -> None:
    """The agent starts new workers in place of dead ones, some time after the last has gone."""
    relayed.say(Notice("first").to_line())
    relayed.has(1)
    time.sleep(0.1)
    relayed.say(Notice("second").to_line())
    assert relayed.has(2) == [Notice("first"), Notice("second")]


def test_torn_and_foreign_lines_are_left_out(relayed: Relayed) -> None:
    relayed.say(Notice("whole").to_line(), b'{"kind":"st\n', b"\xff\x00\n", b"\n", b"end\n")
    relayed.say(Notice("next").to_line())
    assert relayed.has(2) == [Notice("whole"), Notice("next")]
    relayed.relay.raise_failure()
    assert relayed.endings == []


def test_a_line_that_was_never_ended_holds_nothing_up(relayed: Relayed) -> None:
    """What a worker leaves that is killed in the middle of a long line."""
    relayed.say(Notice("whole").to_line(), b'{"kind":"notice","message":"to')
    started = time.monotonic()
    relayed.relay.raise_failure()
    assert time.monotonic() - started < 2
    relayed.say(Notice("next").to_line())
    assert relayed.has(2) == [Notice("whole"), Notice("next")]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ExitCode.USAGE, UsageError),
        (ExitCode.NO_VERDICT, NoVerdictError),
        (ExitCode.INTERRUPTED, StoppedBySignalError),
        (ExitCode.TERMINATED, StoppedBySignalError),
    ],
)
def test_the_first_failure_explains_the_run(
    relayed: Relayed, code: ExitCode, kind: type[BaseException]
) -> None:
    """It is not passed on: the launcher tells of it when the workers have ended."""
    relayed.say(
        Notice("before").to_line(),
        Failed(int(code), "the cause").to_line(),
        Failed(125, "a consequence").to_line(),
        Notice("after").to_line(),
    )
    assert relayed.has(2) == [Notice("before"), Notice("after")]
    for _ in range(2):
        with pytest.raises(kind) as raised:
            relayed.relay.raise_failure()
        assert raised.value.message == "the cause"  # type: ignore[attr-defined]
        assert raised.value.exit_code is code  # type: ignore[attr-defined]


def test_workers_are_ended_once_however_many_of_them_fail(relayed: Relayed) -> None:
    relayed.say(*[Failed(125, str(number)).to_line() for number in range(20)])
    wait_until(lambda: relayed.endings)
    time.sleep(0.2)
    assert len(relayed.endings) == 1


def test_a_failure_is_known_as_soon_as_the_workers_have_ended(relayed: Relayed) -> None:
    """Not a moment too early: it may still be in the pipe behind thousands of events."""
    relayed.say(*[STEP.to_line()] * 3000, Failed(125, "at the very end").to_line())
    with pytest.raises(NoVerdictError, match="at the very end"):
        relayed.relay.raise_failure()
    assert len(relayed.has(3000)) == 3000


def test_it_knows_how_far_the_workers_have_come(relayed: Relayed) -> None:
    relay = relayed.relay
    assert (relay.has_started, relay.has_steps) == (False, False)
    relayed.say(Notice("loading").to_line(), STARTED.to_line())
    relayed.has(2)
    assert (relay.has_started, relay.has_steps) == (True, False)
    relayed.say(STEP.to_line())
    relayed.has(3)
    assert (relay.has_started, relay.has_steps) == (True, True)
    relay.forget_steps()
    assert (relay.has_started, relay.has_steps) == (True, False)


def test_a_command_that_is_gone_ends_the_workers_and_blocks_none_of_them(tmp_path: Path) -> None:
    """They would go on writing into a folder that its user believes to be free."""
    read_end, write_end = os.pipe()
    ended = threading.Event()
    relay = EventRelay(tmp_path / "events", EventPipe(write_end), ended.set)
    os.close(read_end)
    pipe = EventPipe(os.open(tmp_path / "events", os.O_WRONLY))
    writer = threading.Thread(target=lambda: [pipe.send(STEP) for _ in range(3000)])
    writer.start()
    assert ended.wait(20)
    writer.join(timeout=20)
    assert not writer.is_alive()
    relay.close()
    os.close(write_end)
