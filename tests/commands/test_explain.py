"""Where runs part, `repro-check` names the operation and the cause: recipes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MltuneRun = Callable[..., Any]

SHORT = (
    "--set", "train.max_steps=3", "--set", "train.warmup_steps=0", "--set",
    "evaluate.every_steps=0", "--set", "checkpoint.every_steps=1",
)  # fmt: skip
MODULE = "layers.1.mlp.down_proj"
# Code that runs before a step of the second run; see conftest.
BEFORE_STEP = """
from mltune_cli.training import loop
take = loop.begin_step
def faulty(state, *args, **kwargs):
    if state.step + 1 == {step}:
        {fault}
    return take(state, *args, **kwargs)
loop.begin_step = faulty
"""
# One ulp, written past torch.
WRITE = f"""
import ctypes
weight = dict(state.model.named_parameters())
name = next(name for name in weight if "{MODULE}" in name and "lora" not in name)
ctypes.c_uint8.from_address(weight[name].data_ptr()).value ^= 1
"""


def report_of(result: Any) -> dict[str, Any]:
    assert result.code == 1, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_silent_write_is_found_at_the_module_that_reads_it(
    mltune: MltuneRun, planted: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    fault = "; ".join(line for line in WRITE.strip().splitlines())
    result = mltune(
        "repro-check", "--json", *SHORT, cwd=tmp_path,
        env=planted(BEFORE_STEP.format(step=2, fault=fault)),
    )  # fmt: skip
    report = report_of(result)
    assert report["first_difference"]["step"] == 2
    where = report["localisation"]
    assert (where["step"], where["phase"], where["differs"]) == (2, "forward", "input")
    assert where["module"].endswith(MODULE) or where["module"].endswith(f"{MODULE}.base_layer")
    assert where["was_written_outside"]
    (tensor,) = where["tensors"]
    assert tensor["differing"] == 1
    assert tensor["largest_ulps"] == 1
    assert report["diagnosis"]["cause"] == "untraced-write"
    # Run again from the checkpoint of step 1; traces stay, weights and kept tensors do not.
    kept = {path.name for path in (tmp_path / "repro_output" / "explanation").rglob("*")}
    assert kept == {"1-trace-of-run-1", "2-trace-of-run-2", "trace", "main.jsonl"}


@pytest.mark.long
def test_the_tensor_that_parts_is_named(
    mltune: MltuneRun, planted: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    fault = (
        "name, weight = list(state.parameters.items())[5]; "
        "state.optimizer.state[weight]['exp_avg'].view(-1)[3] += 1e-3"
    )
    result = mltune(
        "repro-check", "--json", *SHORT, cwd=tmp_path,
        env=planted(BEFORE_STEP.format(step=2, fault=fault)), timeout=600,
    )  # fmt: skip
    report = report_of(result)
    difference = report["first_difference"]
    assert (difference["step"], difference["stage"]) == (2, "optimizer")
    (name,) = report["tensors"]
    assert "lora_" in name
    assert "exp_avg" in name


@pytest.mark.long
def test_a_varied_key_is_found_at_the_optimizer(mltune: MltuneRun, tmp_path: Path) -> None:
    result = mltune(
        "repro-check", "--json", *SHORT, "--set", "train.schedule=constant",
        "--vary", "train.schedule=linear", cwd=tmp_path,
    )  # fmt: skip
    report = report_of(result)
    assert report["variation"] == ["train.schedule=linear"]
    assert report["first_difference"]["stage"] == "hyperparameters"
    assert report["localisation"]["phase"] == "optimizer"
    assert report["diagnosis"]["cause"] == "recipe-key"


def test_nothing_is_looked_for_where_it_is_not_wanted(mltune: MltuneRun, tmp_path: Path) -> None:
    result = mltune(
        "repro-check", "--json", "--no-explain", *SHORT, "--vary", "train.learning_rate=0.004",
        cwd=tmp_path,
    )  # fmt: skip
    report = report_of(result)
    assert (report["localisation"], report["diagnosis"]) == (None, None)
    assert not (tmp_path / "repro_output" / "explanation").exists()


# Two processes that never meet: the one that draws unseeded numbers is the slower one.
LATE = """
import os, time
import torch
rank = int(os.environ["RANK"])
if rank == 0:
    torch.manual_seed(1)
weight = torch.nn.Parameter(torch.ones(4))
optimizer = torch.optim.SGD([weight], lr=0.1)
for step in range(2):
    if rank == 1:
        time.sleep(1)
    (weight * torch.rand(4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


@pytest.mark.long
def test_experiments_wait_for_the_slowest_process(mltune: MltuneRun, tmp_path: Path) -> None:
    """Stopped at the first process's report, runs that part in the other one seem to agree."""
    (tmp_path / "late.py").write_text(LATE)
    torchrun = Path(sys.executable).parent / "torchrun"
    result = mltune(
        "repro-check", "--json", "--", torchrun, "--nproc-per-node", "2", "late.py", cwd=tmp_path
    )
    report = report_of(result)
    assert report["first_difference"]["process"] == "rank-1"
    assert report["diagnosis"]["cause"] == "unseeded-random-numbers", result.stdout
