"""Any number of processes trains the same bytes, and a fault in one of them is one sentence."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MltuneRun = Callable[..., Any]
Planted = Callable[..., dict[str, str]]
Repeated = Callable[[Path], dict[str, bytes]]
Arguments = tuple[str, ...]
# `launch` returns one, see `conftest.py`.
Launched = Any
SHORTER = ("--set", "train.max_steps=3", "--set", "evaluate.every_steps=0")
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
    take = loop.begin_step
    def faulty(state, *args, **kwargs):
        if state.step == 1:
            import torch
            {fault}
        return take(state, *args, **kwargs)
    loop.begin_step = faulty
"""
# Of this process's micro-batches; the parameters are as everywhere.
NOT_A_NUMBER = (
    "from mltune_cli.training import step; plain = step.summed_loss; "
    "step.summed_loss = lambda *args: plain(*args) * float('nan')"
)
ULP = (
    "w = state.parameters[sorted(state.parameters)[0]].data.view(-1); "
    "w[0] = torch.nextafter(w[0], torch.tensor(9.0))"
)


@pytest.fixture
def temporary(tmp_path: Path) -> dict[str, str]:
    """An environment with a folder for temporary files that nobody else uses."""
    (tmp_path / "temporary").mkdir()
    return {"TMPDIR": str(tmp_path / "temporary")}


@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.long), 3, 4])
def test_several_processes_write_the_bytes_of_one(
    mltune: MltuneRun,
    undisturbed: Path,
    temporary: dict[str, str],
    tmp_path: Path,
    count: int,
    repeated_files: Repeated,
    dora: Arguments,
) -> None:
    """DoRA with dropout, four micro-batches a step: shares of 2 2, 1 1 2 and 1 1 1 1."""
    processes = ("--nproc-per-node", str(count))
    result = mltune("train", *dora, *processes, "--output-dir", "run", cwd=tmp_path, env=temporary)
    assert result.code == 0, result.stderr
    assert f"cpu float32 on {count} processes" in result.stderr
    assert repeated_files(tmp_path / "run") == repeated_files(undisturbed)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["processes"] == count
    assert {claim["name"]: claim["holds"] for claim in manifest["claims"]} == {
        "repeatable": True,
        "any number of processes": True,
    }
    assert all(claim["reason"] for claim in manifest["claims"])
    assert list((tmp_path / "temporary").glob("mltune-*")) == []


def test_a_plain_all_reduce_would_not(
    mltune: MltuneRun,
    undisturbed: Path,
    planted: Planted,
    tmp_path: Path,
    repeated_files: Repeated,
    dora: Arguments,
) -> None:
    """The control: the test above can fail, and fails in the sum of the first step's gradients."""
    result = mltune(
        "train", *dora, "--nproc-per-node", "3", "--output-dir", "run", cwd=tmp_path,
        env=planted(ALL_REDUCE, run="run"),
    )  # fmt: skip
    assert result.code == 0, result.stderr
    ours, theirs = repeated_files(tmp_path / "run"), repeated_files(undisturbed)
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
            1, NOT_A_NUMBER, "step 2: the loss is nan, so training stopped before the update; "
            "lower train.learning_rate", "failed", id="not finite",
        ),
        pytest.param(
            1, ULP, "step 2: process ", "failed", id="one ulp of drift",
        ),
        pytest.param(
            1, "next(iter(state.parameters.values())).data.fill_(float('inf'))",
            "step 2: process ", "failed", id="drift to infinity", marks=pytest.mark.long,
        ),
        pytest.param(
            1, "raise PermissionError(13, 'planted')",
            "process 1 failed: PermissionError: [Errno 13] planted", "running",
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
    dora: Arguments,
) -> None:
    """It would come again, so nobody is started again."""
    fault_planted = planted(IN_ONE.format(rank=rank, fault=fault), run="run")
    result = mltune(
        "train", *dora, *SHORTER, "--nproc-per-node", "2", "--output-dir", "run", cwd=tmp_path,
        env=temporary | fault_planted,
    )  # fmt: skip
    assert result.code == 125, result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"mltune: {sentence}")
    assert "started again" not in result.stderr
    assert "goes on with" not in result.stderr
    if sentence == "step 2: process ":
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
    mltune: MltuneRun, temporary: dict[str, str], tmp_path: Path, dora: Arguments
) -> None:
    result = mltune(
        "repro-check", *dora, *SHORTER, "--set", "train.max_steps=2", "--nproc-per-node", "2",
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
    mltune: MltuneRun, planted: Planted, tmp_path: Path, dora: Arguments
) -> None:
    """The second process of the second run draws once more before it computes step 2."""
    extra = "state.model.register_forward_pre_hook(lambda *a: (torch.rand(1), None)[1])"
    result = mltune(
        "repro-check", "--json", "--no-explain", *dora, *SHORTER, "--nproc-per-node", "2",
        cwd=tmp_path,
        env=planted(IN_ONE.format(rank=1, fault=extra)),
    )  # fmt: skip
    assert result.code == 1, result.stderr
    difference = json.loads(result.stdout)["first_difference"]
    assert (difference["step"], difference["stage"]) == (2, "rng")


@pytest.fixture
def shallow() -> Iterator[Path]:
    """A folder with a short name: loaders put sockets into the TMPDIR below it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("count", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_a_loader_process_that_is_killed_is_no_verdict_and_no_hang(
    shallow: Path, launch: Callable[..., Launched], dora: Arguments, count: str
) -> None:
    run = launch(
        *dora, *SHORTER, "--set", "train.max_steps=400", "--set", "data.loader_workers=1",
        "--nproc-per-node", count, "--output-dir", "run", folder=shallow,
    )  # fmt: skip
    run.wait_for(lambda: run.witnessed() >= 2)
    # The loaders are what the training processes started.
    workers = run.parents("training.worker")
    loader = next(pid for pid, parent in workers.items() if parent in workers)
    run.kill(loader)
    code, printed = run.end(60, tidy=False)
    assert code == 125
    assert f"DataLoader worker (pid {loader}) is killed by signal: Killed" in printed


@pytest.mark.long
def test_compiled_layers_do_not_depend_on_the_number_of_processes(
    mltune: MltuneRun, tmp_path: Path, repeated_files: Repeated
) -> None:
    """Each with compilers that know nothing yet; rows of other sizes come first in each process."""
    values = (
        "model.compile=true", "model.attention=varlen", "train.loss_kernel=chunked",
        "adapter.compute_dtype=model", "model.dtype=bfloat16", "data.packing=false",
        "train.max_steps=3", "train.warmup_steps=0", "evaluate.every_steps=3",
    )  # fmt: skip
    flags = [part for value in values for part in ("--set", value)]
    files = []
    for count in ("1", "2"):
        done = mltune(
            "train", *flags, "--nproc-per-node", count, "--output-dir", count, cwd=tmp_path,
            env={"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / f"compiled-{count}")}, timeout=600,
        )  # fmt: skip
        assert done.code == 0, done.stderr
        assert any((tmp_path / f"compiled-{count}").iterdir())
        files.append(repeated_files(tmp_path / count))
    assert files[0] == files[1]
