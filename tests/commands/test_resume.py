"""A run that was cut short and gone on with has the bytes of one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.digests import file_digest

MltuneRun = Callable[..., Any]
STEPS = 24
RECIPE = (
    "--set", f"train.max_steps={STEPS}", "--set", "adapter.dropout=0.1", "--set",
    "evaluate.every_steps=5",
)  # fmt: skip
REPEATED = ("training_log.jsonl", "witness.jsonl", "evaluation_log.jsonl", "last_loss.txt")


def repeated_files(folder: Path) -> dict[str, bytes]:
    files = [folder / name for name in REPEATED] + sorted((folder / "adapter").iterdir())
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(mltune: MltuneRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that all others are compared with: no checkpoints, nothing in its way."""
    folder = tmp_path_factory.mktemp("undisturbed")
    result = mltune("train", *RECIPE, "--output-dir", "run", cwd=folder)
    assert result.code == 0, result.stderr
    return folder / "run"


@pytest.fixture
def half_done(killed_halfway: Path, tmp_path: Path) -> Path:
    """A run of 12 of its 24 steps, with checkpoints after steps 4, 8 and 12."""
    return Path(shutil.copytree(killed_halfway, tmp_path / "run"))


@pytest.fixture(scope="module")
def killed_halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that `half_done` copies."""
    recipe = [*RECIPE, "--set", "checkpoint.every_steps=4", "--set", "checkpoint.keep=3"]
    home = tmp_path_factory.mktemp("halfway")
    folder = home / "run"
    process = start_training(home, *recipe, "--output-dir", "run")
    wait_for(lambda: (folder / "checkpoints" / "step-000012" / "complete.json").is_file(), process)
    kill_everything(process)
    cut = [path for path in (folder / "checkpoints").iterdir() if path.name > "step-000012"]
    for path in cut:
        shutil.rmtree(path)
    return folder


def start_training(cwd: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = Path(os.sys.executable).parent / "mltune"  # type: ignore[attr-defined]
    return subprocess.Popen(
        [command, "train", *arguments], cwd=cwd, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"MLTUNE_CACHE": str(cwd / "cache")},
    )  # fmt: skip


def wait_for(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers_below(process: "subprocess.Popen[str]") -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        return [int(pid) for pid in children.read_text().split()]
    except OSError:
        return []


def kill_everything(process: "subprocess.Popen[str]") -> None:
    """SIGKILL the command and its worker, as a machine that goes down would."""
    for pid in (*workers_below(process), process.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("kills", "steps"), [(4, STEPS), pytest.param(40, 320, marks=pytest.mark.long)]
)
def test_killed_at_random_moments(
    mltune: MltuneRun, tmp_path: Path, kills: int, steps: int
) -> None:
    """kill -9, checkpoint writing included, again and again; then it may finish."""
    seed = int(os.environ.get("MLTUNE_SEED", "7"))
    moments = random.Random(seed)
    recipe = (*RECIPE, "--set", f"train.max_steps={steps}")
    whole = mltune("train", *recipe, "--output-dir", "whole", cwd=tmp_path)
    assert whole.code == 0, whole.stderr
    arguments = (*recipe, "--set", "checkpoint.every_steps=1", "--output-dir", "run", "--resume")
    killed_in_training = 0
    for _ in range(kills):
        process = start_training(tmp_path, *arguments)
        witness = tmp_path / "run" / "witness.jsonl"
        length = witness.stat().st_size if witness.exists() else 0
        # Wait for training to go on, so that the kill meets a step or a checkpoint, not an import.
        wait_for(lambda: witness.exists() and witness.stat().st_size != length, process)  # noqa: B023
        time.sleep(moments.uniform(0.0, 0.6))
        killed_in_training += process.poll() is None
        kill_everything(process)
        for checkpoint in (tmp_path / "run" / "checkpoints").glob("step-*/complete.json"):
            assert json.loads(checkpoint.read_text())
    assert killed_in_training >= kills // 2
    result = mltune("train", *arguments, cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert repeated_files(tmp_path / "run") == repeated_files(tmp_path / "whole")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_leaves_a_checkpoint(
    mltune: MltuneRun, undisturbed: Path, tmp_path: Path, number: int, code: int
) -> None:
    process = start_training(tmp_path, *RECIPE, "--output-dir", "run")
    log = tmp_path / "run" / "training_log.jsonl"
    wait_for(lambda: log.exists() and log.read_text().count("\n") >= 5, process)
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == code, printed
    assert "go on with --resume" in printed
    checkpoints = list((tmp_path / "run" / "checkpoints").iterdir())
    assert len(checkpoints) == 1
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["result"]["status"] == "interrupted"
    result = mltune("train", *RECIPE, "--output-dir", "run", "--resume", cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert f"going on after step {manifest['result']['steps']}" in result.stderr
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)


def test_damaged_checkpoints_are_passed_over_with_a_sentence(
    mltune: MltuneRun, undisturbed: Path, half_done: Path
) -> None:
    checkpoints = half_done / "checkpoints"
    cut = checkpoints / "step-000012" / "state.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1000])
    flipped = checkpoints / "step-000008" / "state.safetensors"
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 4
    flipped.write_bytes(data)
    (checkpoints / "step-000016").mkdir()
    result = mltune("train", *RECIPE, "--output-dir", "run", "--resume", cwd=half_done.parent)
    assert result.code == 0, result.stderr
    assert "step-000016: is not complete" in result.stderr
    assert not any(path.name > "step-000004" for path in checkpoints.iterdir()), "useless, removed"
    assert "step-000012: is damaged: state.safetensors is not what was written" in result.stderr
    assert "step-000008: is damaged" in result.stderr
    assert "going on after step 4" in result.stderr
    assert repeated_files(half_done) == repeated_files(undisturbed)


def test_a_chosen_checkpoint_starts_another_folder(
    mltune: MltuneRun, undisturbed: Path, half_done: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in half_done.rglob("*")}
    result = mltune(
        "train", *RECIPE, "--resume-from", half_done / "checkpoints" / "step-000008",
        "--output-dir", "branch", cwd=half_done.parent,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert repeated_files(half_done.parent / "branch") == repeated_files(undisturbed)
    assert before == {path: path.stat().st_mtime_ns for path in half_done.rglob("*")}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--set", "train.learning_rate=1e-3"), "train.learning_rate (was 0.005, is 0.001)"),
        (("--seed", "21"), "reproducibility.seed (was 20, is 21)"),
        (
            ("--train_file", "rows.jsonl", "--validation_file", "rows.jsonl"),
            "training data (was 'xxh3_128:",
        ),
    ],
)
def test_another_recipe_or_other_data_is_refused(
    mltune: MltuneRun, half_done: Path, arguments: tuple[str, ...], named: str
) -> None:
    rows = [{"question": f"How much is {n}?", "answer": str(n)} for n in range(40)]
    (half_done.parent / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    before = {p: p.read_bytes() for p in half_done.rglob("*") if p.is_file() and p.name != ".lock"}
    result = mltune(
        "train", *RECIPE, *arguments, "--output-dir", "run", "--resume", cwd=half_done.parent
    )
    assert result.code == 2, result.stderr
    assert named in result.stderr
    after = {p: p.read_bytes() for p in half_done.rglob("*") if p.is_file() and p.name != ".lock"}
    assert before == after


def test_with_no_checkpoint_it_starts_at_step_0_and_says_so(
    mltune: MltuneRun, short: tuple[str, ...], finished_run: Path, tmp_path: Path
) -> None:
    result = mltune("train", *short, "--output-dir", "new", "--resume", cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert "no complete checkpoint, so training starts at step 0" in result.stderr
    assert repeated_files(tmp_path / "new") == repeated_files(finished_run)


def test_a_finished_run_is_not_trained_again(
    mltune: MltuneRun, short: tuple[str, ...], finished_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    result = mltune("train", *short, "--output-dir", "run", "--resume", cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert "this run is finished already" in result.stderr
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_another_runs_folder_is_refused_even_without_checkpoints(
    mltune: MltuneRun, short: tuple[str, ...], finished_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = mltune("train", *short, "--seed", "3", "--output-dir", "run", "--resume", cwd=tmp_path)
    assert result.code == 2
    assert "reproducibility.seed (was 20, is 3)" in result.stderr
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_going_back_removes_what_comes_later(
    mltune: MltuneRun, undisturbed: Path, half_done: Path
) -> None:
    """From step 4 in the same folder, killed in step 6: step 12 must not be taken up again."""
    process = start_training(
        half_done.parent, *RECIPE, "--set", "checkpoint.every_steps=2", "--output-dir", "run",
        "--resume-from", str(half_done / "checkpoints" / "step-000004"),
    )  # fmt: skip
    mark = half_done / "checkpoints" / "step-000006" / "complete.json"
    wait_for(mark.is_file, process)
    kill_everything(process)
    assert not (half_done / "checkpoints" / "step-000012").exists()
    result = mltune("train", *RECIPE, "--output-dir", "run", "--resume", cwd=half_done.parent)
    assert result.code == 0, result.stderr
    assert repeated_files(half_done) == repeated_files(undisturbed)


def test_a_run_that_moved_to_another_machine_claims_nothing(
    mltune: MltuneRun, half_done: Path
) -> None:
    newest = half_done / "checkpoints" / "step-000012"
    state = newest / "state.json"
    fields = json.loads(state.read_text())
    fields["environment_classes"] = ["sha256:another machine"]
    state.write_text(json.dumps(fields))
    seal = json.loads((newest / "complete.json").read_text())
    seal["state.json"] = file_digest(state)
    (newest / "complete.json").write_text(json.dumps(seal))
    result = mltune("train", *RECIPE, "--output-dir", "run", "--resume", cwd=half_done.parent)
    assert result.code == 0, result.stderr
    assert "repeatable: its steps were taken in more than one environment class" in result.stderr
    manifest = json.loads((half_done / "manifest.json").read_text())
    assert [claim["holds"] for claim in manifest["claims"]] == [False, True]
    assert len(manifest["environment_classes"]) == 2


def test_a_folder_has_one_writer(mltune: MltuneRun, undisturbed: Path, tmp_path: Path) -> None:
    """The second run is refused while the first is alive, and not because of what it left."""
    process = start_training(tmp_path, *RECIPE, "--output-dir", "run")
    wait_for((tmp_path / "run" / "witness.jsonl").exists, process)
    (worker,) = workers_below(process)
    os.kill(worker, signal.SIGSTOP)
    second = mltune("train", *RECIPE, "--output-dir", "run", "--resume", cwd=tmp_path)
    assert second.code == 2
    assert f"another run is writing into it (process {worker})" in second.stderr
    os.kill(worker, signal.SIGCONT)
    kill_everything(process)
    third = mltune("train", *RECIPE, "--output-dir", "run", "--resume", cwd=tmp_path)
    assert third.code == 0, third.stderr
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    mltune: MltuneRun, undisturbed: Path, disk_of: Callable[[int], Path], tmp_path: Path
) -> None:
    """There is room for the logs and one checkpoint, not for two."""
    small_disk = disk_of(1300)
    result = mltune(
        "train", *RECIPE, "--set", "checkpoint.every_steps=4", "--output-dir", "run",
        cwd=small_disk,
    )  # fmt: skip
    assert result.code == 125, result.stderr
    assert "step-000008: the checkpoint was not written" in result.stderr
    assert "Traceback" not in result.stderr
    moved = Path(shutil.copytree(small_disk / "run", tmp_path / "moved"))
    again = mltune("train", *RECIPE, "--output-dir", "moved", "--resume", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert "going on after step 4" in again.stderr
    assert repeated_files(moved) == repeated_files(undisturbed)
