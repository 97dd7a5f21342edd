"""What a killed mltune leaves in an engine, and who sweeps it up; and an engine that is killed.

On engines of their own: any mltune sweeps up what it finds, and the other tests are at work.
"""

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.errors import ExitCode
from mltune_cli.imaging.labels import OWNER, is_abandoned, owner
from mltune_cli.imaging.leftovers import nameless_images, remove_dangling

New = Callable[[Any], Any]


@pytest.fixture
def alone(mortal_engine: Any, import_base: Any) -> tuple[Any, str]:
    return mortal_engine, import_base(mortal_engine, "busybox")


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """Journals of our own: other tests' commands would read those of the user."""
    return {"XDG_STATE_HOME": str(tmp_path / "state")}


def killed(one: Any, process: "subprocess.Popen[str]") -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)


def test_a_killed_run_is_swept_up_and_a_living_one_is_not(
    alone: tuple[Any, str], case: New, left_of_ours: Any, home: dict[str, str]
) -> None:
    engine, base = alone
    dead, living, strange, third = (case(engine) for _ in range(4))
    for one in (living, dead):
        one.script(base, "echo begun; sleep 300")
        process = one.start(**home)
        one.wait_for(lambda one=one: "[container] begun" in one.said)
        if one is dead:
            killed(one, process)
    assert len(dead.containers()) == 1
    # Of another machine, of this one before it was started anew, and one that names nobody.
    host, boot, pid, start = owner().rsplit(":", 3)
    labels = {
        "elsewhere": f"elsewhere:{boot}:{pid}:{start}",
        "nobody": "nobody",
        "boot": f"{host}:00000000-0000-0000-0000-000000000000:{pid}:{start}",
    }
    made = {
        name: engine.client.create_container(
            base, ["true"], labels={OWNER: value, "mltune.case": strange.name}
        )["Id"]
        for name, value in labels.items()
    }
    done = third.write(base).build("--no-run", **home)
    assert done.returncode == ExitCode.OK, done.stderr
    gone = {dead_id for dead_id in (dead.name,) if not dead.containers()}
    assert gone == {dead.name}
    said = [line for line in done.stderr.splitlines() if line.startswith("removed container")]
    assert len(said) == 2
    assert any(made["boot"][:12] in line for line in said)
    left = {container["Id"] for container in strange.containers()}
    assert left == {made["elsewhere"], made["nobody"]}
    assert len(living.containers()) == 1
    assert living.started[0].poll() is None
    living.started[0].terminate()
    assert living.started[0].wait(30) == 143
    assert living.left(left_of_ours) == []
    # What the killed one left in its folder is in nobody's way.
    dead.script(base, "echo again >/repro_output/again")
    assert dead.build(**home).returncode == ExitCode.OK
    assert dead.receipt["run"]["artifacts"] == ["again"]


def test_a_killed_build_is_swept_up_and_finished_images_are_not(
    alone: tuple[Any, str], case: New, left_of_ours: Any, home: dict[str, str]
) -> None:
    engine, base = alone
    one = case(engine)
    # A finished image that lost its name: somebody built another under it.
    for number in range(2):
        assert one.write(base, f"ENV number={number}").build("--no-run").returncode == ExitCode.OK
    lost = left_of_ours(engine, one.label)
    assert len(lost) == 1
    two = case(engine).write(base, "RUN echo 1 >/1", "RUN sleep 60")
    process = two.start("--no-run", **home)
    two.wait_for(lambda: "step 3/" in two.said)
    time.sleep(0.5)
    killed(two, process)
    end = time.monotonic() + 20
    while two.containers() and time.monotonic() < end:
        time.sleep(0.1)  # the builder sees that nobody listens any more
    assert len(left_of_ours(engine, two.label)) == 1
    done = case(engine).write(base).build("--no-run", **home)
    assert done.returncode == ExitCode.OK
    assert "of a killed build" in done.stderr
    assert left_of_ours(engine, two.label) == []
    assert left_of_ours(engine, one.label) == lost


def test_a_killed_buildx_build_leaves_no_process(
    newer_engine: Any, newer_tiny_base: str, case: New, left_of_ours: Any
) -> None:
    one = case(newer_engine).write(newer_tiny_base, f"RUN echo {time.time()} && sleep 61")
    process = one.start("--no-run", "--builder", "buildx")
    one.wait_for(lambda: len(one.processes()) > 2)
    time.sleep(1)
    killed(one, process)
    assert one.left(left_of_ours, 15) == []


def end_engine(engine: Any, number: int) -> None:
    os.kill(int((engine.state / "docker.pid").read_text()), number)


def test_an_engine_that_is_killed_under_a_run_is_said(
    alone: tuple[Any, str], case: New, project: Path
) -> None:
    engine, base = alone
    one = case(engine).script(base, "echo kept >/repro_output/kept; echo begun; sleep 120")
    process = one.start()
    one.wait_for(lambda: "[container] begun" in one.said)
    began = time.monotonic()
    end_engine(engine, signal.SIGKILL)
    assert process.wait(60) == ExitCode.NO_VERDICT, one.said
    assert time.monotonic() - began < 30
    assert "the engine was lost while the container ran" in one.receipt["reason"]
    assert "internal error" not in one.said
    assert (one.artifacts / "kept").exists()


def test_an_engine_that_is_killed_under_a_build_is_said(alone: tuple[Any, str], case: New) -> None:
    engine, base = alone
    one = case(engine).write(base, "RUN sleep 120")
    process = one.start()
    one.wait_for(lambda: "step 2/" in one.said)
    end_engine(engine, signal.SIGKILL)
    assert process.wait(60) == ExitCode.NO_VERDICT, one.said
    last = one.said.splitlines()[-1]
    assert last.startswith("mltune: ")
    assert "internal error" not in last
    assert "engine" in last


def test_a_socket_that_goes_away_under_a_run_is_said(alone: tuple[Any, str], case: New) -> None:
    engine, base = alone
    one = case(engine).script(base, "echo begun; sleep 2")
    process = one.start()
    one.wait_for(lambda: "[container] begun" in one.said)
    (engine.state / "docker.sock").rename(engine.state / "moved.sock")
    try:
        code = process.wait(60)
    finally:
        (engine.state / "moved.sock").rename(engine.state / "docker.sock")
    assert code in (ExitCode.OK, ExitCode.NO_VERDICT), one.said
    assert "internal error" not in one.said
    if code:
        assert "the engine was lost" in one.receipt["reason"]


def test_owners_are_judged() -> None:
    host, boot, pid, start = owner().rsplit(":", 3)
    assert not is_abandoned(owner())
    assert not is_abandoned("")
    assert not is_abandoned("a:b")
    assert not is_abandoned(f"other:{boot}:{pid}:{start}")
    assert is_abandoned(f"{host}:{boot}:{pid}:{int(start) - 1}")
    assert is_abandoned(f"{host}:{boot}:none:{start}")
    done = subprocess.run(
        [sys.executable, "-c", "from mltune_cli.imaging.labels import owner; print(owner())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert is_abandoned(done.stdout.strip())


@pytest.mark.parametrize("which", ["engine", "newer_engine"])
@pytest.mark.parametrize("untold", [1, 2, 7])
def test_images_that_a_cancelled_build_did_not_tell_of_go_as_well(
    request: Any, which: str, case: New, import_base: Any, left_of_ours: Any, untold: int
) -> None:
    """The builder may be several quick steps ahead of what was heard of it."""
    engine = request.getfixturevalue(which)
    one = case(engine).write(import_base(engine, "busybox"))
    text = (one.folder / "Dockerfile").read_bytes()
    text += b"".join(b"ENV a%d=%s\n" % (n, one.name.encode()) for n in range(untold))
    earlier = nameless_images(engine.client)
    told = [
        made[1]
        for message in engine.client.build(fileobj=io.BytesIO(text), rm=True, decode=True)
        if (made := re.fullmatch(r" ---> ([0-9a-f]+)\n", message.get("stream", "")))
    ]
    assert len(told) == 2 + untold
    left = one.left(left_of_ours)
    assert len(left) == 1
    # A nameless image of somebody else, made meanwhile, is none of ours.
    other = case(engine).write(import_base(engine, "busybox"))
    list(engine.client.build(path=str(other.folder), rm=True, decode=True))
    removed = remove_dangling(engine.client, told[:2], earlier)
    assert left[0].removeprefix("image ") in removed
    assert one.left(left_of_ours) == []
    assert len(other.left(left_of_ours)) == 1
    engine.client.remove_image(other.left(left_of_ours)[0].removeprefix("image "))
