"""Whichever process of a run is killed, and when: it ends as it should, and no bit is lost."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MltuneRun = Callable[..., Any]
Planted = Callable[..., dict[str, str]]
Repeated = Callable[[Path], dict[str, bytes]]
Arguments = tuple[str, ...]
# `launch` returns one, see `conftest.py`.
Launched = Any


def test_with_no_restart_left_training_goes_on_with_one_process_fewer(
    launch: Callable[..., Launched],
    undisturbed: Path,
    tmp_path: Path,
    repeated_files: Repeated,
    saving: Arguments,
) -> None:
    run = launch(*saving, "--nproc-per-node", "2", "--max-restarts", "0", "--output-dir", "run")
    run.wait_for(lambda: run.witnessed() >= 4)
    run.kill(*run.pids(rank=1))
    code, printed = run.end()
    assert code == 0, printed
    assert "process 1 was killed by SIGKILL (out of memory?); training goes on with one" in printed
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["processes"] == 1
    assert all(claim["holds"] for claim in manifest["claims"])


def test_a_dead_writer_is_replaced_and_its_successor_finds_the_folder(
    launch: Callable[..., Launched],
    undisturbed: Path,
    tmp_path: Path,
    repeated_files: Repeated,
    saving: Arguments,
) -> None:
    """No output folder was named, so only the dead process knew which one it had made."""
    run = launch(*saving, "--nproc-per-node", "2")
    folder = tmp_path / "runs" / "smoke-001"
    run.wait_for(lambda: run.witnessed("runs/smoke-001") >= 4)
    run.kill(*run.pids(rank=0))
    code, printed = run.end()
    assert code == 0, printed
    assert printed.count("a process died, and all were started again") == 1
    assert re.search(r"going on after step [23]", printed)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["smoke-001"]
    assert repeated_files(folder) == repeated_files(undisturbed)
    assert json.loads((folder / "manifest.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("whole", "successors"),
    [
        pytest.param(False, "3", id="launcher, then three", marks=pytest.mark.long),
        pytest.param(True, "1", id="everything, then one", marks=pytest.mark.long),
    ],
)
def test_a_run_whose_launcher_was_killed_goes_on_with_another_number_of_processes(
    launch: Callable[..., Launched],
    undisturbed: Path,
    tmp_path: Path,
    whole: bool,
    successors: str,
    repeated_files: Repeated,
    saving: Arguments,
) -> None:
    """Workers are in sessions of their own, and end with it all the same."""
    run = launch(*saving, "--nproc-per-node", "2", "--output-dir", "run")
    run.wait_for(lambda: run.witnessed() >= 4)
    (launcher,) = run.pids("launching.elastic")
    if whole:
        os.killpg(run.process.pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(launcher, signal.SIGKILL)
    code, printed = run.end(tidy=not whole)
    if not whole:
        assert code == 125
        assert "was killed by SIGKILL" in printed
        assert "Traceback" not in printed
    again = launch(*saving, "--nproc-per-node", successors, "--output-dir", "run", "--resume")
    code, printed = again.end()
    assert code == 0, printed
    assert "going on after step" in printed
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)


def test_a_command_that_is_killed_takes_everything_with_it(
    launch: Callable[..., Launched], tmp_path: Path, saving: Arguments
) -> None:
    """Its launcher hears that nobody listens any more, and puts the folder away itself."""
    run = launch(*saving, "--nproc-per-node", "2", "--output-dir", "run")
    run.wait_for(lambda: run.pids(rank=1))
    run.process.kill()
    code, _ = run.end()
    assert code == -signal.SIGKILL
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=pytest.mark.long),
    ],
)
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(
    launch: Callable[..., Launched],
    undisturbed: Path,
    tmp_path: Path,
    number: int,
    code: int,
    repeated_files: Repeated,
    dora: Arguments,
) -> None:
    """No checkpoints were asked for, and yet there is one to go on from, on one process."""
    run = launch(*dora, "--nproc-per-node", "2", "--output-dir", "run")
    run.wait_for(lambda: run.witnessed() >= 3)
    run.process.send_signal(number)
    ended, printed = run.end(30)
    assert ended == code, printed
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    steps = manifest["result"]["steps"]
    assert manifest["result"]["status"] == "interrupted"
    assert f"stopped after step {steps}; go on with --resume" in printed
    checkpoints = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert checkpoints == [f"step-{steps:06d}"]
    assert run.witnessed() == steps + 1
    again = launch(*dora, "--output-dir", "run", "--resume")
    code, printed = again.end()
    assert code == 0, printed
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)


def test_a_second_signal_ends_even_processes_that_hang(
    launch: Callable[..., Launched], tmp_path: Path, dora: Arguments
) -> None:
    run = launch(*dora, "--nproc-per-node", "2", "--output-dir", "run")
    run.wait_for(lambda: run.witnessed() >= 2)
    for pid in run.pids("training.worker"):
        os.kill(pid, signal.SIGSTOP)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.process.poll() is None, "the first one waits for the step"
    run.process.send_signal(signal.SIGINT)
    code, printed = run.end(10)
    assert code == 130, printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("module", "seconds"),
    [("launching.elastic", 0.0), ("launching.elastic", 0.3), ("training.worker", 0.3)],
)
def test_a_signal_while_it_loads_ends_it_before_there_is_a_folder(
    launch: Callable[..., Launched], tmp_path: Path, module: str, seconds: float, dora: Arguments
) -> None:
    """Whether the launcher is only being imported, or the workers are."""
    run = launch(*dora, "--nproc-per-node", "2", "--output-dir", "run")
    run.wait_for(lambda: run.pids(module))
    time.sleep(seconds)
    run.process.send_signal(signal.SIGTERM)
    code, printed = run.end(30)
    assert code == 143, printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


# Every process ends itself by SIGKILL at this step, whoever takes its place.
DEADLY_STEP = """
from mltune_cli.training import loop
take = loop.begin_step
def deadly(state, *args, **kwargs):
    if state.step + 1 == {step}:
        import os
        os.kill(os.getpid(), 9)
    return take(state, *args, **kwargs)
loop.begin_step = deadly
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("step", "sentence"),
    [
        (1, "was killed by SIGKILL (out of memory?); no step was done, so fewer processes were"),
        (2, "process 0 was killed by SIGKILL (out of memory?); no process is left to go on with"),
    ],
)
def test_a_death_that_comes_again_and_again_ends_the_run(
    launch: Callable[..., Launched], planted: Planted, step: int, sentence: str, saving: Arguments
) -> None:
    fault = planted(DEADLY_STEP.format(step=step), run="run")
    arguments = (*saving, "--nproc-per-node", "2", "--max-restarts", "1", "--output-dir", "run")
    code, printed = launch(*arguments, env=fault).end(150)
    assert code == 125, printed
    assert sentence in printed


@pytest.mark.long
def test_an_overwritten_run_is_not_overwritten_again_by_successors(
    launch: Callable[..., Launched],
    undisturbed: Path,
    tmp_path: Path,
    repeated_files: Repeated,
    saving: Arguments,
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    run = launch(*saving, "--nproc-per-node", "2", "--output-dir", "run", "--overwrite")
    second = tmp_path / "run" / "checkpoints" / "step-000002" / "complete.json"
    run.wait_for(second.exists)
    run.kill(*run.pids(rank=1))
    code, printed = run.end()
    assert code == 0, printed
    assert "going on after step" in printed
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)


# The writer ends itself by SIGKILL, once, when it comes to a function.
DEADLY_PLACE = """
from pathlib import Path
from mltune_cli.training import {module}
go = {module}.{function}
def deadly(*args):
    import os
    if os.environ["RANK"] == "0" and not Path("died").exists():
        Path("died").touch()
        os.kill(os.getpid(), 9)
    return go(*args)
{module}.{function} = deadly
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "function"),
    [
        pytest.param("joint_start", "_spread_state", id="folder claimed, no manifest yet"),
        pytest.param("loop", "settle_best", id="logs copied"),
        pytest.param("loop", "_run_steps", id="before its first step"),
    ],
)
def test_successors_in_a_branch_start_where_the_branch_did(
    launch: Callable[..., Launched],
    planted: Planted,
    undisturbed: Path,
    tmp_path: Path,
    module: str,
    function: str,
    repeated_files: Repeated,
    dora: Arguments,
    saving: Arguments,
) -> None:
    """Killed in a new folder that has no checkpoint yet, from another run's checkpoint."""
    assert launch(*saving, "--output-dir", "first").end()[0] == 0
    chosen = tmp_path / "first" / "checkpoints" / "step-000005"
    branch = (*dora, "--resume-from", str(chosen), "--output-dir", "branch")
    fault = planted(DEADLY_PLACE.format(module=module, function=function), run="branch")
    code, printed = launch(*branch, "--nproc-per-node", "2", env=fault).end()
    assert code == 0, printed
    assert printed.count("going on after step 5") == 2
    assert repeated_files(tmp_path / "branch") == repeated_files(undisturbed)


@pytest.mark.long
def test_killed_at_random_moments_in_random_places(
    launch: Callable[..., Launched],
    undisturbed: Path,
    tmp_path: Path,
    repeated_files: Repeated,
    saving: Arguments,
) -> None:
    """A worker, the launcher or the command, again and again, on one to three processes."""
    moments = random.Random(int(os.environ.get("MLTUNE_SEED", "7")))
    witness = tmp_path / "run" / "witness.jsonl"
    arguments = (*saving, "--output-dir", "run", "--resume", "--max-restarts", "1")
    for _ in range(8):
        run = launch(*arguments, "--nproc-per-node", str(moments.randint(2, 3)))
        before = witness.stat().st_mtime_ns if witness.exists() else 0
        with contextlib.suppress(AssertionError):  # it may have finished
            run.wait_for(lambda: witness.exists() and witness.stat().st_mtime_ns != before)  # noqa: B023
        time.sleep(moments.uniform(0, 0.8))
        place = moments.choice(["training.worker", "launching.elastic", "bin/mltune"])
        run.kill(*run.pids(place)[:1])
        run.end()
    code, printed = launch(*arguments).end()
    assert code == 0, printed
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)
