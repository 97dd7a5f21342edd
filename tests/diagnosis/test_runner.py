"""Checks side by side: what crashes, hangs or dies is a finding, and the rest go on."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from mltune_cli.diagnosis.finding import Check, Finding, in_order, worst
from mltune_cli.diagnosis.runner import run_checks
from mltune_cli.diagnosis.subject import Subject, subject_of


@pytest.fixture
def subject() -> Subject:
    return subject_of(None, (), {"PATH": "/usr/bin:/bin"})


def good(_: Subject) -> list[Finding]:
    return [in_order("good")]


def crashing(_: Subject) -> list[Finding]:
    raise ZeroDivisionError("planted\nfault")


def leaving(_: Subject) -> list[Finding]:
    sys.exit(3)


def sleeping(_: Subject) -> list[Finding]:
    time.sleep(60)
    return [in_order("too late")]


def silent(_: Subject) -> list[Finding]:
    return []


def checks(*looks: object) -> list[Check]:
    return [Check(f"check-{n}", "a check", look) for n, look in enumerate(looks)]  # type: ignore[arg-type]


def test_a_check_that_crashes_is_a_finding_and_the_rest_run(subject: Subject) -> None:
    outcomes, torch = run_checks(checks(good, crashing, good, leaving, silent), subject)
    assert torch is None
    assert [[f.severity for f in one.findings] for one in outcomes] == [
        ["ok"], ["warning"], ["ok"], ["warning"], ["info"],
    ]  # fmt: skip
    (crash,) = outcomes[1].findings
    assert "the check crashed: ZeroDivisionError: planted fault (crashing, line" in crash.seen
    assert crash.why
    assert crash.command == "mltune doctor --report"
    assert "SystemExit: 3" in outcomes[3].findings[0].seen


def test_a_check_that_hangs_is_given_up_and_the_rest_run(subject: Subject) -> None:
    start = time.monotonic()
    outcomes, _ = run_checks(checks(sleeping, good, sleeping, good), subject, check_seconds=0.5)
    assert time.monotonic() - start < 2
    assert [one.findings[0].severity for one in outcomes] == ["warning", "ok", "warning", "ok"]
    assert "did not end within 0.5 seconds" in outcomes[0].findings[0].seen


def test_checks_run_side_by_side_and_are_told_in_their_order(subject: Subject) -> None:
    """Each waits for the others: one after the other they would never end."""
    meeting = threading.Barrier(8)

    def waiting(_: Subject) -> list[Finding]:
        meeting.wait(timeout=4)
        return [in_order("met")]

    outcomes, _ = run_checks(checks(*[waiting] * 8), subject)
    assert [one.findings[0].seen for one in outcomes] == ["met"] * 8
    assert [one.check.name for one in outcomes] == [f"check-{n}" for n in range(8)]


def test_a_torch_that_hangs_is_given_up(subject: Subject, tmp_path: Path) -> None:
    """The probe is killed, and what needs it says so."""
    (tmp_path / "torch").mkdir()
    mark = tmp_path / "pid"
    source = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    (tmp_path / "torch" / "__init__.py").write_text(source)
    subject = subject_of(None, (), {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path)})
    seen = []

    def looking(told: Subject) -> list[Finding]:
        assert told.torch is not None
        seen.append(told.torch.problem)
        return [in_order("asked")]

    check = Check("needs-torch", "torch", looking, needs_torch=True)
    start = time.monotonic()
    outcomes, torch = run_checks([check, *checks(good)], subject, torch_seconds=1.5)
    assert time.monotonic() - start < 4
    assert seen == ["importing it took more than 1.5 seconds"]
    assert torch is not None
    assert [one.findings[0].severity for one in outcomes] == ["ok", "ok"]
    assert not Path(f"/proc/{mark.read_text()}").exists()


@pytest.mark.parametrize(
    "hanging",
    ["ctypes.CDLL(None).pause()", "time.sleep(600)", "os.wait4(sleeper.pid, 0)"],
)
def test_a_check_that_hangs_in_c_does_not_keep_the_process(hanging: str) -> None:
    program = f"""
        import ctypes, os, subprocess, sys, time
        from mltune_cli.diagnosis.finding import Check, in_order
        from mltune_cli.diagnosis.runner import run_checks
        from mltune_cli.diagnosis.subject import subject_of

        sleeper = subprocess.Popen(["sleep", "30"])

        def hang(_):
            {hanging}
            return [in_order("never")]

        checks = [Check("a", "a", hang), Check("b", "b", lambda _: [in_order("fine")])]
        outcomes, _ = run_checks(checks, subject_of(None, ()), check_seconds=1.0)
        print([one.findings[0].severity for one in outcomes])
        sleeper.kill()
        sys.exit(7)
    """
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=30
    )
    assert time.monotonic() - start < 8
    assert (done.returncode, done.stdout, done.stderr) == (7, "['warning', 'ok']\n", "")


def test_the_worst_counts() -> None:
    assert worst([]) == "ok"
    assert worst(["ok", "info"]) == "info"
    assert worst(["error", "warning", "ok"]) == "error"
