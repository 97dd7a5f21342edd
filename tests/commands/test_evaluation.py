"""Early stopping, `best/` and cadences, as a user of the command meets them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MltuneRun = Callable[..., Any]
Repeated = Callable[[Path], dict[str, bytes]]
# Of at most 12 steps; the held-out loss goes 3.15 2.86 2.76 2.97 2.88, so that it stops after 4.
RECIPE = (
    "--set", "train.max_steps=12", "--set", "train.warmup_steps=0", "--set",
    "train.schedule=constant", "--set", "train.learning_rate=0.016", "--set",
    "evaluate.every_steps=1", "--set", "evaluate.early_stopping_patience=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def stopped_early(mltune: MltuneRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that nothing disturbs. Never changed by a test."""
    home = tmp_path_factory.mktemp("early")
    result = mltune("train", *RECIPE, "--output-dir", "run", cwd=home)
    assert result.code == 0, result.stderr
    return home / "run"


def test_training_stops_where_a_reading_of_the_log_by_hand_says(stopped_early: Path) -> None:
    lines = (stopped_early / "evaluation_log.jsonl").read_text().splitlines()
    losses = {fields["step"]: fields["loss"] for fields in map(json.loads, lines)}
    assert [*losses] == [0, 1, 2, 3, 4]
    assert losses[0] > losses[1] > losses[2], "two improvements, then two evaluations without one"
    assert min(losses[3], losses[4]) > losses[2]
    manifest = json.loads((stopped_early / "manifest.json").read_text())
    assert manifest["result"]["status"] == "finished"
    assert manifest["result"]["steps"] == 4
    assert manifest["recipe"]["train"]["max_steps"] == 12
    best = json.loads((stopped_early / "best" / "metadata.json").read_text())
    last = json.loads((stopped_early / "adapter" / "metadata.json").read_text())
    assert (best["step"], last["step"]) == (2, 4)
    weights = [stopped_early / name / "adapter_model.safetensors" for name in ("best", "adapter")]
    assert weights[0].read_bytes() != weights[1].read_bytes()


@pytest.mark.long
def test_two_processes_one_of_which_dies_stop_there_as_well(
    mltune: MltuneRun,
    mltune_command: Path,
    stopped_early: Path,
    tmp_path: Path,
    repeated_files: Repeated,
) -> None:
    """With loaders, other cadences, and the writer killed when the best already lies behind.

    Afterwards there is nothing left to go on with.
    """
    folder = tmp_path / "run"
    arguments = (
        "train", *RECIPE, "--set", "data.loader_workers=1", "--set", "checkpoint.every_steps=1",
        "--nproc-per-node", "2", "--output-dir", "run",
    )  # fmt: skip
    process = subprocess.Popen(
        [mltune_command, *arguments], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MLTUNE_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    third = folder / "checkpoints" / "step-000003" / "complete.json"
    deadline = time.monotonic() + 90
    while not third.exists():
        assert process.poll() is None, process.communicate(timeout=30)[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(writer_in(tmp_path), signal.SIGKILL)
    printed = process.communicate(timeout=120)[1]
    assert process.returncode == 0, printed
    assert re.search(r"going on after step [34]", printed)
    assert repeated_files(folder) == repeated_files(stopped_early)
    again = mltune(*arguments, "--resume", cwd=tmp_path)
    assert again.code == 0, again.stderr
    assert "this run is finished already; nothing was done" in again.stderr
    assert repeated_files(folder) == repeated_files(stopped_early)


def writer_in(folder: Path) -> int:
    """Return the training process of rank 0 that works in a folder: of all, the first started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            is_worker = b"mltune_cli.training.worker" in (entry / "cmdline").read_bytes()
            is_writer = b"\0RANK=0\0" in (entry / "environ").read_bytes()
            if is_worker and is_writer and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
    return min(found)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ("evaluate.every_steps=0", "evaluate.early_stopping_patience=1"),
            "evaluate.early_stopping_patience: needs evaluations; set evaluate.every_steps",
        ),
        (("evaluate.early_stopping_patience=-1",), "evaluate.early_stopping_patience: "),
        (("evaluate.early_stopping_threshold=-0.5",), "evaluate.early_stopping_threshold: "),
        (("evaluate.early_stopping_threshold=.nan",), "evaluate.early_stopping_threshold: "),
        (("evaluate.keep_best=maybe",), "evaluate.keep_best: "),
        (("data.loader_workers=-1",), "data.loader_workers: "),
        (("model.sharding=ddp",), "model.sharding: "),
        (
            ("model.sharding=fsdp", "model.base_precision=nf4", "model.device=auto"),
            "model.sharding: nf4 weights are not sharded; set it to none",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    mltune: MltuneRun, tmp_path: Path, settings: tuple[str, ...], sentence: str
) -> None:
    assignments = [part for setting in settings for part in ("--set", setting)]
    result = mltune("train", *assignments, "--output-dir", "run", cwd=tmp_path)
    assert result.code == 2, result.stderr
    assert sentence in result.stderr
    assert result.stderr.startswith("mltune: --set ")
    assert list(tmp_path.iterdir()) == []
