"""Ctrl-C and SIGTERM at random moments of a build and a run: nothing of it is left behind."""

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

New = Callable[[Any], Any]
# From the start of Python to the end of the run it takes some five seconds.
LATEST_SECONDS = 6.0
STEPS = [f"RUN echo {number} >/{number}" for number in range(4)]


@pytest.fixture(params=["sdk", "buildx"])
def builder(request: Any, newer_engine: Any, newer_tiny_base: str) -> tuple[Any, str, str]:
    return newer_engine, newer_tiny_base, request.param


def slow(one: Any, base: str) -> Any:
    """Many steps of which some wait, two stages, then a run that waits."""
    one.write(
        base,
        *STEPS,
        "RUN sleep 1",
        f"FROM {base} AS second",
        f"LABEL {one.label}",
        f"RUN echo {one.name} && sleep 0.5",
        "COPY --from=0 /1 /1",
        'CMD ["sh", "-c", "echo begun; echo x >repro_output/x; sleep 1.5"]',
    )
    return one


def interrupt(one: Any, builder: str, number: int, after: float, again: float | None) -> int:
    """Start, send the signal, and perhaps once more; return the exit code."""
    process = one.start("--builder", builder, "--no-cache")
    time.sleep(after)
    for pause in (0, again):
        if pause is not None and process.poll() is None:
            time.sleep(pause)
            if process.poll() is None:
                os.kill(process.pid, number)
    return int(process.wait(40))


def check(one: Any, builder: str, left_of_ours: Any, draw: random.Random, twice: bool) -> None:
    number = draw.choice([signal.SIGINT, signal.SIGTERM])
    after = draw.uniform(0.3, LATEST_SECONDS)
    again = draw.uniform(0, 0.3) if twice else None
    told = f"{number.name} after {after:.3f} s, again after {again}"
    code = interrupt(one, builder, number, after, again)
    said = one.said
    # Before mltune is up, Python's own answer to SIGTERM; after the end, the verdict.
    expected = {0} if code == 0 else {128 + number, -number}
    assert code in expected, (told, code, said)
    assert "Traceback" not in said or "begun" not in said, (told, said)
    assert "internal error" not in said, (told, said)
    assert one.left(left_of_ours) == [], (told, said)
    if code == 0:
        assert one.receipt["exit_code"] == 0
    elif "built mltune-test" not in said:  # else Python itself was just ending
        assert not one.output.exists(), (told, said)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_an_interrupted_build_leaves_nothing(
    builder: tuple[Any, str, str], case: New, left_of_ours: Any, twice: bool
) -> None:
    engine, base, name = builder
    draw = random.Random()
    for _ in range(1 if twice else 3):
        check(slow(case(engine), base), name, left_of_ours, draw, twice)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
@pytest.mark.long
def test_twenty_interrupted_builds_leave_nothing(
    builder: tuple[Any, str, str], case: New, left_of_ours: Any, twice: bool
) -> None:
    engine, base, name = builder
    draw = random.Random()
    for _ in range(20):
        check(slow(case(engine), base), name, left_of_ours, draw, twice)


@pytest.mark.long
def test_the_older_engine_keeps_nothing_either(
    engine: Any, tiny_base: str, case: New, left_of_ours: Any
) -> None:
    draw = random.Random()
    for _ in range(20):
        check(slow(case(engine), tiny_base), "sdk", left_of_ours, draw, twice=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_run_is_passed_on(
    engine: Any, tiny_base: str, case: New, left_of_ours: Any, number: signal.Signals
) -> None:
    one = slow(case(engine), tiny_base)
    process = one.start()
    one.wait_for(lambda: "[container] begun" in one.said)
    began = time.monotonic()
    os.kill(process.pid, number)
    assert process.wait(30) == 128 + number
    assert time.monotonic() - began < 10
    assert one.said.splitlines()[-1] in ("mltune: interrupted", "mltune: terminated")
    assert one.left(left_of_ours) == []
    assert not one.output.exists()


@pytest.mark.parametrize("which", ["engine", "newer_engine"])
def test_signals_between_quick_steps_leave_no_image(
    request: Any, which: str, case: New, left_of_ours: Any, import_base: Any
) -> None:
    """An image that the builder has made and not told of yet is removed as well."""
    draw = random.Random()
    engine = request.getfixturevalue(which)
    tiny_base = import_base(engine, "busybox")
    for _ in range(2):
        one = case(engine)
        one.write(tiny_base, *[f"ENV a{number}={one.name}" for number in range(40)])
        process = one.start("--no-run")
        one.wait_for(lambda one=one: "step 3/" in one.said)
        time.sleep(draw.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 130, one.said
        assert one.left(left_of_ours) == [], one.said
