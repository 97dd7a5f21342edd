"""Any number of processes trains the same bytes, and a fault in one of them is one sentence."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MltuneRun = Callable[..., Any]
Planted = Callable[..., dict[str, str]]
RECIPE = (
    "--set", "train.max_steps=6", "--set", "train.warmup_steps=0", "--set", "adapter.method=dora",
    "--set", "adapter.dropout=0.1", "--set", "evaluate.every_steps=3",
)  # fmt: skip
SHORT = (*RECIPE, "--set", "train.max_steps=3", "--set", "evaluate.every_steps=0")
REPEATED = ("training_log.jsonl", "witness.jsonl", "evaluation_log.jsonl", "last_loss.txt")
# What an all-reduce does: each process adds up its own, and torch adds up the processes.
ALL_REDUCE = """
from mltune_cli.training import gradients
def plain(own, shares, gather):
    import torch
    total = own[0]
    for vector in own[1:]:
        total = total + vector
    torch.distributed.all_reduce(total)
    return total
gradients.sum_over_processes = plain
"""
# Runs `{fault}` in one process just before step 2.
IN_ONE = """
import os
if os.environ["RANK"] == "{rank}":
    from mltune_cli.training import loop
    take = loop.train_step
    def faulty(state, *args, **kwargs):
        if state.step == 1:
            import torch
            {fault}
        return take(state, *args, **kwargs)
    loop.train_step = faulty
"""
ULP = (
    "w = state.parameters[sorted(state.parameters)[0]].data.view(-1); "
    "w[0] = torch.nextafter(w[0], torch.tensor(9.0))"
)


def repeated_files(folder: Path) -> dict[str, bytes]:
    files = [folder / name for name in REPEATED]
    files += [path for name in ("adapter", "best") for path in sorted((folder / name).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def one(mltune: MltuneRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process; other modules train the same one."""
    home = tmp_path_factory.getbasetemp() / "undisturbed-dora"
    if not home.exists():
        home.mkdir()
        result = mltune("train", *RECIPE, "--output-dir", "run", cwd=home)
        assert result.code == 0, result.stderr
    return home / "run"


@pytest.fixture
def temporary(tmp_path: Path) -> dict[str, str]:
    """An environment with a folder for temporary files that nobody else uses."""
    (tmp_path / "temporary").mkdir()
    return {"TMPDIR": str(tmp_path / "temporary")}


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.long), 3, 4])
def test_several_processes_write_the_bytes_of_one(
    mltune: MltuneRun, one: Path, temporary: dict[str, str], tmp_path: Path, count: int
) -> None:
    """DoRA with dropout, four micro-batches a step: shares of 2 2, 1 1 2 and 1 1 1 1."""
    processes = ("--nproc-per-node", str(count))
    result = mltune(
        "train", *RECIPE, *processes, "--output-dir", "run", cwd=tmp_path, env=temporary
    )
    assert result.code == 0, result.stderr
    assert f"cpu float32 on {count} processes" in result.stderr
    assert repeated_files(tmp_path / "run") == repeated_files(one)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["processes"] == count
    assert {claim["name"]: claim["holds"] for claim in manifest["claims"]} == {
        "repeatable": True,
        "any number of processes": True,
    }
    assert all(claim["reason"] for claim in manifest["claims"])
    assert list((tmp_path / "temporary").glob("mltune-*")) == []


def test_a_plain_all_reduce_would_not(
    mltune: MltuneRun, one: Path, planted: Planted, tmp_path: Path
) -> None:
    """The control: the test above can fail, and fails in the sum of the first step's gradients."""
    result = mltune(
        "train", *RECIPE, "--nproc-per-node", "3", "--output-dir", "run", cwd=tmp_path,
        env=planted(ALL_REDUCE, run="run"),
    )  # fmt: skip
    assert result.code == 0, result.stderr
    ours, theirs = repeated_files(tmp_path / "run"), repeated_files(one)
    assert ours["adapter/adapter_model.safetensors"] != theirs["adapter/adapter_model.safetensors"]
    records = [
        [json.loads(line) for line in files["witness.jsonl"].splitlines()]
        for files in (ours, theirs)
    ]
    assert records[0][0] == records[1][0], "they start alike"
    first, expected = records[0][1], records[1][1]
    assert (first["batch"], first["rng"]) == (expected["batch"], expected["rng"])
    assert first["gradients"] != expected["gradients"]


@pytest.mark.parametrize(
    ("rank", "fault", "sentence", "status"),
    [
        pytest.param(
            1, "raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')",
            "the GPU is out of memory; lower train.micro_batch_size or data.max_length, or set "
            "train.activation_checkpointing=true",
            "running", id="GPU memory",
        ),
        pytest.param(
            0, "raise MemoryError", "the machine is out of memory; lower train.micro_batch_size",
            "running", id="memory", marks=pytest.mark.long,
        ),
        pytest.param(
            1, "raise LookupError('planted\\nin two lines')",
            "process 1 failed: LookupError: planted in two lines", "running", id="unexpected",
        ),
        pytest.param(
            0, "raise LookupError('planted')", "process 0 failed: LookupError: planted",
            "running", id="unexpected in the writer", marks=pytest.mark.long,
        ),
        pytest.param(
            1, "next(iter(state.parameters.values())).data.fill_(float('inf'))",
            "step 2: the loss is nan, so training stopped before the update; lower "
            "train.learning_rate", "failed", id="not finite", marks=pytest.mark.long,
        ),
        pytest.param(
            1, ULP, "step 2: process ", "failed", id="one ulp of drift",
        ),
        pytest.param(
            1, "raise PermissionError(13, 'planted')", "PermissionError", "running",
            id="system error", marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_a_fault_in_one_process_ends_all_with_its_sentence(
    mltune: MltuneRun,
    planted: Planted,
    temporary: dict[str, str],
    tmp_path: Path,
    rank: int,
    fault: str,
    sentence: str,
    status: str,
) -> None:
    """It would come again, so nobody is started again."""
    fault_planted = planted(IN_ONE.format(rank=rank, fault=fault), run="run")
    result = mltune(
        "train", *SHORT, "--nproc-per-node", "2", "--output-dir", "run", cwd=tmp_path,
        env=temporary | fault_planted,
    )  # fmt: skip
    assert result.code == 125, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"mltune: {sentence}")
    assert "started again" not in result.stderr
    assert "goes on with" not in result.stderr
    if fault == ULP:
        assert "came to other parameters than process" in last
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["result"]["status"] == status
    assert not (tmp_path / "run" / "adapter").exists()
    assert list((tmp_path / "temporary").glob("mltune-*")) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("train", "--nproc-per-node", "5"),
            "mltune: --nproc-per-node: 5 processes are more than the 4 micro-batches of a step; ",
        ),
        (
            ("repro-check", "--nproc-per-node", "5"),
            "mltune: --nproc-per-node: 5 processes are more than the 4 micro-batches of a step; ",
        ),
        (("train", "--nproc-per-node", "0"), "mltune: Invalid value for '--nproc-per-node'"),
        (("train", "--max-restarts", "-1"), "mltune: Invalid value for '--max-restarts'"),
        (
            (
                "repro-check", "--nproc-per-node", "2", "--set", "model.base_precision=nf4",
                "--set", "model.device=auto",
            ),
            "mltune: --nproc-per-node: a 4-bit base (model.base_precision: nf4) is not claimed ",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_started_is_refused_in_one_sentence(
    mltune: MltuneRun, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    output = ("--output", "run") if arguments[0] == "repro-check" else ("--output-dir", "run")
    result = mltune(*arguments, *output, cwd=tmp_path)
    assert result.code == 2, result.stderr
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told_by", ["CUDA_VISIBLE_DEVICES", "nvidia-smi"])
def test_more_processes_than_gpus_are_refused(
    mltune: MltuneRun, tmp_path: Path, told_by: str
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    if told_by == "nvidia-smi":
        (tools / "nvidia-smi").write_text("#!/bin/sh\necho 0\n")
        (tools / "nvidia-smi").chmod(0o755)
        env = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    else:
        env = {"CUDA_VISIBLE_DEVICES": "0"}
    arguments = ("train", "--nproc-per-node", "2", "--output-dir", "run")
    result = mltune(*arguments, "--set", "model.device=auto", cwd=tmp_path, env=env)
    assert result.code == 2, result.stderr
    assert result.stderr == (
        "mltune: --nproc-per-node: 2 processes need a GPU each, and there are 1; start fewer, or "
        "set model.device to cpu\n"
    )
    assert not (tmp_path / "run").exists()
    # The GPU is not asked for where the recipe says that it computes on the CPU.
    assert mltune(*arguments, "--dry-run", cwd=tmp_path, env=env).code == 0


def test_repro_check_proves_a_run_of_two_processes(
    mltune: MltuneRun, temporary: dict[str, str], tmp_path: Path
) -> None:
    result = mltune(
        "repro-check", *SHORT, "--set", "train.max_steps=2", "--nproc-per-node", "2",
        cwd=tmp_path, env=temporary,
    )  # fmt: skip
    assert result.code == 0, result.stderr
    assert "reproducible: 2 runs of smoke are equal bit for bit over 2 steps" in result.stdout
    for run in ("run-1", "run-2"):
        manifest = json.loads((tmp_path / "repro_output" / run / "manifest.json").read_text())
        assert manifest["processes"] == 2
    assert list((tmp_path / "temporary").glob("mltune-*")) == []


@pytest.mark.long
def test_repro_check_finds_what_differs_in_one_process_of_one_run(
    mltune: MltuneRun, planted: Planted, tmp_path: Path
) -> None:
    """The second process of the second run draws once more before it computes step 2."""
    extra = "state.model.register_forward_pre_hook(lambda *a: (torch.rand(1), None)[1])"
    result = mltune(
        "repro-check", "--json", *SHORT, "--nproc-per-node", "2", cwd=tmp_path,
        env=planted(IN_ONE.format(rank=1, fault=extra)),
    )  # fmt: skip
    assert result.code == 1, result.stderr
    difference = json.loads(result.stdout)["first_difference"]
    assert (difference["step"], difference["stage"]) == (2, "rng")


@pytest.fixture
def shallow() -> Iterator[Path]:
    """A TMPDIR with a short name: loaders put sockets into it. What is left running is killed."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    for pid in processes_with(folder, ""):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


@pytest.mark.parametrize("count", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_a_loader_process_that_is_killed_is_no_verdict_and_no_hang(
    mltune_command: Path, shallow: Path, tmp_path: Path, count: str
) -> None:
    process = subprocess.Popen(
        [mltune_command, "train", *SHORT, "--set", "train.max_steps=400", "--set",
         "data.loader_workers=1", "--nproc-per-node", count, "--output-dir", "run"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(shallow), "MLTUNE_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    witness = tmp_path / "run" / "witness.jsonl"
    deadline = time.monotonic() + 90
    while not witness.exists() or witness.read_text().count("\n") < 2:
        assert process.poll() is None, process.communicate(timeout=30)[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The loaders are what the training processes started.
    workers = processes_with(shallow, "training.worker")
    loader = next(pid for pid, parent in workers.items() if parent in workers)
    os.kill(loader, signal.SIGKILL)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 125
    assert f"DataLoader worker (pid {loader}) is killed by signal: Killed" in printed
    deadline = time.monotonic() + 10
    while processes_with(shallow, "") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_with(shallow, "") == {}


def processes_with(temporary: Path, module: str) -> dict[int, int]:
    """Return the running processes that were given a TMPDIR, each with its parent."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (entry / "environ").read_bytes().split(b"\0")
            status, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            is_wanted = module.encode() in (entry / "cmdline").read_bytes()
            if f"TMPDIR={temporary}".encode() in variables and is_wanted and status != "Z":
                found[int(entry.name)] = int(parent)
    return found
