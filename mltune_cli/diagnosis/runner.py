"""Runs the checks side by side: one that crashes or hangs is a finding, and the rest go on."""

import contextlib
import queue
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, known
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.diagnosis.torch_facts import TorchFacts, TorchProbe

CHECK_SECONDS = 5.0
# Importing torch from a cold or a shared disk takes long and is no fault of a check.
TORCH_SECONDS = 30.0
_WHY = "what it looks at is not known to be in order; the other checks are not touched by it"


@dataclass(frozen=True)
class CheckOutcome:
    """What a check came to.

    Attributes:
        findings: in the order that the check gave them.
        seconds: that it took.
    """

    check: Check
    findings: tuple[Finding, ...]
    seconds: float


@dataclass(frozen=True)
class _Ended:
    """What a thread says when it is done: of which check, or of torch where `number` is None."""

    number: int | None
    findings: tuple[Finding, ...] = ()
    torch: TorchFacts | None = None


def run_checks(
    checks: Sequence[Check],
    subject: Subject,
    *,
    check_seconds: float = CHECK_SECONDS,
    torch_seconds: float = TORCH_SECONDS,
) -> tuple[list[CheckOutcome], TorchFacts | None]:
    """Run checks and return what each came to, in their order, and what torch said.

    Args:
        checks: at least one.
        subject: what they look at.
        check_seconds: after so long a check is given up.
        torch_seconds: after so long the process that asks torch is.
    """
    with contextlib.ExitStack() as stack:
        probe = None
        if any(check.needs_torch for check in checks):
            probe = TorchProbe(subject.worker_variables(), asks_memory=subject.wants_gpu)
            stack.callback(probe.stop)
        run = _Run(checks, subject, check_seconds)
        run.start_those(check for check in checks if not check.needs_torch)
        torch = None
        if probe is not None:
            torch = run.ask(probe, torch_seconds)
            run.subject = replace(subject, torch=torch)
            run.start_those(check for check in checks if check.needs_torch)
        run.wait_for_all()
    return [run.outcomes[number] for number in range(len(checks))], torch


class _Run:
    """Checks under way, a thread each.

    Nothing waits for a thread: one that hangs in C must not keep the process alive, so all are
    daemons, and what they say after their time is not heard.
    """

    def __init__(self, checks: Sequence[Check], subject: Subject, seconds: float) -> None:
        self.subject = subject
        self.outcomes: dict[int, CheckOutcome] = {}
        self._numbers = {check.name: number for number, check in enumerate(checks)}
        self._seconds = seconds
        self._running: dict[int, tuple[Check, float]] = {}
        self._ended: queue.SimpleQueue[_Ended] = queue.SimpleQueue()

    def start_those(self, checks: Iterable[Check]) -> None:
        """Start checks."""
        for check in checks:
            number = self._numbers[check.name]
            self._running[number] = check, time.monotonic()
            threading.Thread(target=self._look, args=(number, check), daemon=True).start()

    def _look(self, number: int, check: Check) -> None:
        try:
            findings = tuple(check.look(self.subject))
        except BaseException as error:  # noqa: BLE001 - a check that crashes is a finding
            findings = (_crash(error),)
        self._ended.put(_Ended(number, findings))

    def ask(self, probe: TorchProbe, seconds: float) -> TorchFacts:
        """Wait for what torch says, and hear checks meanwhile."""

        def wait() -> None:
            self._ended.put(_Ended(None, torch=probe.facts()))

        threading.Thread(target=wait, daemon=True).start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            torch = self._hear(deadline)
            if torch is not None:
                return torch
        return TorchFacts(problem=f"importing it took more than {seconds:g} seconds")

    def wait_for_all(self) -> None:
        """Hear all checks that are still running."""
        while self._running:
            self._hear(None)

    def _hear(self, deadline: float | None) -> TorchFacts | None:
        """Wait for the next to end, or for the next whose time is up."""
        ends = [start + self._seconds for _, start in self._running.values()]
        until = min([*ends, *([deadline] if deadline is not None else [])])
        try:
            ended = self._ended.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            for number in self._late():
                self._put(number, (_time_out(self._seconds),))
            return None
        if ended.number is None:
            return ended.torch
        if ended.number in self._running:  # else its time was up
            self._put(ended.number, ended.findings)
        return None

    def _late(self) -> Iterator[int]:
        now = time.monotonic()
        running = list(self._running.items())
        yield from (number for number, (_, start) in running if now - start >= self._seconds)

    def _put(self, number: int, findings: tuple[Finding, ...]) -> None:
        check, start = self._running.pop(number)
        nothing = (known("nothing to look at: the recipe cannot be read"),)
        self.outcomes[number] = CheckOutcome(check, findings or nothing, time.monotonic() - start)


def _crash(error: BaseException) -> Finding:
    # The innermost line names the place in our code; the message may be of any library.
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].name}, line {frames[-1].lineno})" if frames else ""
    return doubtful(
        f"the check crashed: {type(error).__name__}: {' '.join(str(error).split())}{place}",
        _WHY,
        "report it, with the output of the command below",
        command="mltune doctor --report",
    )


def _time_out(seconds: float) -> Finding:
    return doubtful(
        f"the check did not end within {seconds:g} seconds",
        f"something that it asks hangs: a network, a disk, a driver; {_WHY}",
        "run it alone, and look at what it asks; on a slow disk, run it a second time",
    )
