"""A signal that comes while a process is being started waits until somebody has its name."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mltune_cli.commands.stopping import raise_on_signals
from mltune_cli.errors import ExitCode, StoppedBySignalError
from mltune_cli.launching.held_signals import held_signals


@pytest.fixture(autouse=True)
def handlers_put_back() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    earlier = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
)
def test_the_signal_is_raised_after_the_assignment(number: int, code: ExitCode) -> None:
    raise_on_signals()
    started = None
    with pytest.raises(StoppedBySignalError) as stopped:  # noqa: PT012, SIM117 - the order matters
        with held_signals():
            os.kill(os.getpid(), number)
            started = "a process"
    assert stopped.value.exit_code is code
    assert started == "a process"


def test_a_handler_installed_inside_stays_and_gets_it() -> None:
    raise_on_signals()
    taken: list[int] = []

    def take(number: int, frame: object) -> None:
        taken.append(number)

    with held_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.signal(signal.SIGTERM, take)
    assert taken == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is take


def test_an_error_inside_is_not_hidden_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ValueError, match="no such program"), held_signals():
        raise ValueError("no such program")
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_may_start_processes_too() -> None:
    entered: list[bool] = []

    def start() -> None:
        with held_signals():
            entered.append(True)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert entered == [True]
