"""The worker as a process: its events, its noise, its deaths, and its end on request.

A small stand-in takes the place of the training module, so that no test waits for torch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mltune_cli.errors import MltuneError, NoVerdictError, UsageError
from mltune_cli.launching.events import Event, Finished, Notice
from mltune_cli.launching.job import TrainingJob
from mltune_cli.launching.worker_process import WorkerProcess
from mltune_cli.recipe.schema import Recipe

JOB = TrainingJob(
    recipe=Recipe().with_values({"model.name_or_path": "mltune/tiny", "data.train": "x.jsonl"}),
    origins={"data.train": "recipe.yaml:3"},
    recipe_name="test",
    runs_folder="/runs",
)
PROLOGUE = """\
import os, sys, json, time, signal, subprocess
descriptor = int(sys.argv[1])
job = json.loads(sys.stdin.buffer.read())
def send(text):
    os.write(descriptor, text if isinstance(text, bytes) else text.encode())
def notice(message):
    send(json.dumps({"kind": "notice", "message": message}) + "\\n")
def finish():
    event = {"kind": "finished", "folder": "run", "trained": "run/adapter", "last_loss": 1.5}
    send(json.dumps(event) + "\\n")
"""
DONE = Finished("run", "run/adapter", 1.5)
StartWorker = Callable[[str], tuple[WorkerProcess, list[str]]]


@pytest.fixture
def start(tmp_path: Path) -> StartWorker:
    """Start a worker whose module is the given program, after the prologue above.

    The stand-in shadows the package in the child alone, through PYTHONPATH.
    """

    def begin(program: str) -> tuple[WorkerProcess, list[str]]:
        package = tmp_path / "shadow" / "mltune_cli"
        (package / "training").mkdir(parents=True)
        for folder in (package, package / "training"):
            (folder / "__init__.py").write_text("")
        (package / "training" / "worker.py").write_text(PROLOGUE + program)
        printed: list[str] = []
        inherited = {**os.environ, "PYTHONPATH": str(package.parent)}
        return WorkerProcess(JOB, printed.append, inherited), printed

    return begin


def events_and_error(worker: WorkerProcess) -> tuple[list[Event], MltuneError | None]:
    events = []
    try:
        for event in worker.events():
            events.append(event)  # noqa: PERF402 - those before the error are wanted
    except MltuneError as error:
        return events, error
    finally:
        worker.stop()
    return events, None


def test_the_job_goes_in_and_events_come_out(start: StartWorker) -> None:
    worker, printed = start(
        "notice(job['recipe_name'])\nnotice(job['origins']['data.train'])\nfinish()"
    )
    assert events_and_error(worker) == ([Notice("test"), Notice("recipe.yaml:3"), DONE], None)
    assert printed == []


def test_what_libraries_print_does_not_disturb_the_events(start: StartWorker) -> None:
    """Garbage, bytes that are no text, lines that look like events, and a great deal of it."""
    worker, printed = start(
        "sys.stdout.buffer.write(b'\\xff\\x00 garbage\\n' * 3 + b'{\"kind\": \"failed\"}\\n')\n"
        "sys.stdout.flush()\n"
        "notice('one')\n"
        "print('x' * 300_000)\n"
        "print('on stderr', file=sys.stderr)\n"
        "notice('two')\n"
        "os.write(1, b'no newline at the end')\n"
        "finish()\n"
    )
    assert events_and_error(worker) == ([Notice("one"), Notice("two"), DONE], None)
    assert printed[:3] == ["\ufffd\x00 garbage"] * 3
    assert printed[3] == '{"kind": "failed"}'
    assert "on stderr" in printed
    assert printed[-1] == "no newline at the end"


def test_the_working_directory_is_not_searched_for_modules(
    start: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user's own `torch.py` or `json.py` beside the recipe changes nothing."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')\n")
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong torch')\n")
    monkeypatch.chdir(tmp_path)
    worker, _ = start("notice(json.__file__)\nfinish()")
    events, error = events_and_error(worker)
    assert error is None
    assert isinstance(events[0], Notice)
    assert str(tmp_path) not in events[0].message


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (125, NoVerdictError)])
def test_an_explained_failure_keeps_its_words_and_its_code(
    start: StartWorker, code: int, kind: type[MltuneError]
) -> None:
    worker, _ = start(
        "notice('first')\n"
        f"send(json.dumps({{'kind': 'failed', 'exit_code': {code}, 'message': 'why'}}) + '\\n')\n"
        f"sys.exit({code})\n"
    )
    events, error = events_and_error(worker)
    assert events == [Notice("first")]
    assert type(error) is kind
    assert (error.message, error.exit_code) == ("why", code)


def test_a_killed_worker_is_no_verdict_and_the_signal_is_named(start: StartWorker) -> None:
    """As the kernel does when memory runs out; the torn line it leaves is no event."""
    worker, _ = start(
        "notice('whole')\nsend('{\"kind\": \"not')\nprint('last words', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    events, error = events_and_error(worker)
    assert events == [Notice("whole")]
    assert isinstance(error, NoVerdictError)
    assert error.exit_code == 125
    assert error.message == (
        "the worker was killed by SIGKILL (out of memory?); its last lines:\n  | last words"
    )


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("os.abort()", "the worker was killed by SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "the worker was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "the worker was killed by signal 40"),
        ("sys.exit(7)", "the worker ended with status 7 and no explanation"),
    ],
)
def test_every_unexplained_end_is_no_verdict(
    start: StartWorker, program: str, sentence: str
) -> None:
    worker, _ = start(program)
    events, error = events_and_error(worker)
    assert events == []
    assert isinstance(error, NoVerdictError)
    assert error.message == sentence


def test_the_last_lines_of_a_crash_are_shown(start: StartWorker) -> None:
    worker, printed = start("for n in range(100): print('line', n)\nraise KeyError('deep down')")
    _, error = events_and_error(worker)
    assert isinstance(error, NoVerdictError)
    assert error.message.startswith("the worker ended with status 1 and no explanation; its last")
    assert error.message.endswith("KeyError: 'deep down'")
    assert error.message.count("\n  | ") == 20
    assert len(printed) > 100


def test_a_worker_that_sends_nonsense_is_not_believed(start: StartWorker) -> None:
    """After a line that is no event nothing more is read, and the worker is not waited for."""
    worker, _ = start(
        "notice('one')\nsend('nonsense\\n')\n"
        "try:\n    while True: notice('more')\nexcept BrokenPipeError: sys.exit(3)\n"
    )
    events, error = events_and_error(worker)
    assert events == [Notice("one")]
    assert isinstance(error, NoVerdictError)


def test_a_worker_that_dies_before_it_reads_its_job_is_no_crash_of_ours(
    start: StartWorker, tmp_path: Path
) -> None:
    events_and_error(start("")[0])
    broken = tmp_path / "shadow" / "mltune_cli" / "training" / "worker.py"
    broken.write_text("raise SystemExit(9)")
    inherited = {**os.environ, "PYTHONPATH": str(tmp_path / "shadow")}
    big = JOB.model_copy(update={"origins": {str(n): "x" * 100 for n in range(10_000)}})
    _, error = events_and_error(WorkerProcess(big, lambda _: None, inherited))
    assert isinstance(error, NoVerdictError)
    assert "status 9" in error.message


def test_an_interpreter_that_cannot_be_started_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(NoVerdictError, match="the worker could not be started: No such file"):
        WorkerProcess(JOB, lambda _: None)
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet waited for does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("stubborn", [False, True])
def test_stopping_ends_the_worker_and_what_it_started(
    start: StartWorker, monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    """Its children, too; and by force, where it does not listen."""
    monkeypatch.setattr("mltune_cli.launching.worker_process._GRACE_SECONDS", 0.5)
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    worker, _ = start(
        f"{ignore}child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "notice(f'{os.getpid()} {child.pid}')\ntime.sleep(60)\n"
    )
    first = next(iter(worker.events()))
    assert isinstance(first, Notice)
    pids = [int(pid) for pid in first.message.split()]
    assert [is_alive(pid) for pid in pids] == [True, True]
    worker.stop()
    worker.stop()
    deadline = time.monotonic() + 5
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopping_ends_the_children_of_a_worker_that_is_dead_already(start: StartWorker) -> None:
    worker, _ = start(
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "notice(str(child.pid))\nos.kill(os.getpid(), 9)\n"
    )
    first = next(iter(worker.events()))
    assert isinstance(first, Notice)
    orphan = int(first.message)
    worker.stop()
    deadline = time.monotonic() + 5
    while is_alive(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.02)
