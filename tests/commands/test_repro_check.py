"""`repro-check` says reproducible where it is, and catches every planted fault at its place."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MltuneRun = Callable[..., Any]
Planted = Callable[..., dict[str, str]]

# Code that runs `{fault}` on the state just before step `{step}` of the second run.
BEFORE_STEP = """
from mltune_cli.training import loop
take = loop.begin_step
def faulty(state, *args, **kwargs):
    if state.step + 1 == {step}:
        import torch
        {fault}
    return take(state, *args, **kwargs)
loop.begin_step = faulty
"""

SEED = """
return job.model_copy(
    update={"recipe": job.recipe.with_values({"reproducibility.seed": 21})}
)
"""
CHANGED_ROW = """
import pathlib
from mltune_cli.bundled import bundled_data
lines = bundled_data(job.recipe.data.train).read_text().splitlines()
lines[300] = lines[300].replace("e", "a", 1)
changed = pathlib.Path(job.recipe.output_dir).parent / "changed.jsonl"
changed.write_text("\\n".join(lines) + "\\n")
return job.model_copy(update={"recipe": job.recipe.with_values({"data.train": str(changed)})})
"""
OTHER_ROW_AT_STEP_2 = """
from mltune_cli.training.data.stream import BatchStream
pick = BatchStream.micro_batch
def other(self, step, index):
    units = pick(self, step, index)
    return [*units[:-1], (units[-1] + 1) % self.unit_count] if (step, index) == (2, 3) else units
BatchStream.micro_batch = other
"""
INITIAL_ULP = """
from mltune_cli.training import setup
load = setup.load_base_model
def nudged(*args, **kwargs):
    import torch
    base = load(*args, **kwargs)
    weight = base.model.model.layers[2].mlp.up_proj.weight
    weight.data[5, 7] = torch.nextafter(weight.data[5, 7], torch.tensor(9.0))
    return base
setup.load_base_model = nudged
"""
TRAINED_ULP = BEFORE_STEP.format(
    step=3,
    fault="w = state.parameters[sorted(state.parameters)[0]].data.view(-1); "
    "w[0] = torch.nextafter(w[0], torch.tensor(9.0))",
)
EXTRA_DRAW = BEFORE_STEP.format(
    step=2,
    fault="state.model.register_forward_pre_hook(lambda *a: (torch.rand(1), None)[1])",
)
LEARNING_RATE = """
from mltune_cli.training import loop
rate = loop.learning_rate_at
loop.learning_rate_at = lambda step, *rest: rate(step, *rest) * (1 + 1e-12 * (step == 2))
"""
ADAPTER_FILE = """
from mltune_cli.training import loop
save = loop.save_trained
def damaged(*args, **kwargs):
    folder = save(*args, **kwargs)
    file = folder / "adapter_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return folder
loop.save_trained = damaged
"""
UNSEEDED_ADAPTER = """
from mltune_cli.training import adapter
import torch
adapter.seed_all = lambda seed: torch.seed()
"""


def test_the_smoke_recipe_is_reproducible(mltune: MltuneRun, tmp_path: Path) -> None:
    """The whole README command: verdict, report, artifacts at the top, and the held-out loss."""
    result = mltune("repro-check", cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert "reproducible: 2 runs of smoke are equal bit for bit over 20 steps" in result.stdout
    output = tmp_path / "repro_output"
    report = json.loads((output / "report.json").read_text())
    assert report["verdict"] == "reproducible"
    assert report["compared_steps"] == 20
    assert [run["status"] for run in report["runs"]] == ["finished", "finished"]
    for name in ("training_log.jsonl", "last_loss.txt", "adapter/adapter_model.safetensors"):
        published = (output / name).read_bytes()
        assert published == (output / "run-1" / name).read_bytes()
        assert published == (output / "run-2" / name).read_bytes()
    evaluated = [
        json.loads(line)["loss"]
        for line in (output / "run-1" / "evaluation_log.jsonl").read_text().splitlines()
    ]
    assert evaluated[0] - evaluated[-1] >= 0.3, "nats that the held-out loss must fall by"
    again = mltune("diff", output / "run-1", output / "run-2", cwd=tmp_path)
    assert again.code == 0
    assert "same" in again.stdout


@pytest.mark.parametrize(
    ("code", "step", "stage"),
    [
        pytest.param(SEED, 0, "parameters", id="another seed"),
        pytest.param(CHANGED_ROW, 1, "batch", id="one row changed"),
        pytest.param(OTHER_ROW_AT_STEP_2, 2, "batch", id="another row in step 2"),
        pytest.param(INITIAL_ULP, 0, "model", id="one frozen weight one ulp off"),
        pytest.param(UNSEEDED_ADAPTER, 0, "parameters", id="adapter made before the seed"),
        pytest.param(EXTRA_DRAW, 2, "rng", id="something draws random numbers"),
        pytest.param(LEARNING_RATE, 2, "hyperparameters", id="learning rate off by 1e-12"),
        pytest.param(ADAPTER_FILE, 3, "file adapter/adapter_model.safetensors", id="file damaged"),
    ],
)
def test_a_planted_difference_is_found_at_its_place(
    mltune: MltuneRun,
    planted: Planted,
    short: tuple[str, ...],
    tmp_path: Path,
    code: str,
    step: int,
    stage: str,
) -> None:
    result = mltune(
        "repro-check", "--json", "--no-explain", *short, cwd=tmp_path, env=planted(code)
    )
    assert result.code == 1, result.stderr
    report = json.loads(result.stdout)
    difference = report["first_difference"]
    assert report["verdict"] == "different"
    assert (difference["step"], difference["stage"]) == (step, stage)
    assert difference["runs"] == [1, 2]
    assert difference["values"][0] != difference["values"][1]
    assert report == json.loads((tmp_path / "repro_output" / "report.json").read_text())


def test_a_trained_weight_one_ulp_off_shows_in_the_next_step(
    mltune: MltuneRun, planted: Planted, short: tuple[str, ...], tmp_path: Path
) -> None:
    result = mltune(
        "repro-check", "--json", "--no-explain", *short, cwd=tmp_path, env=planted(TRAINED_ULP)
    )
    assert result.code == 1, result.stderr
    difference = json.loads(result.stdout)["first_difference"]
    assert difference["step"] == 3
    assert difference["stage"] in ("loss", "gradients", "parameters")
    assert "parameters" in difference["stages"]


def test_both_runs_stop_at_the_first_difference(
    mltune: MltuneRun, planted: Planted, tmp_path: Path
) -> None:
    """Two runs of 2,000 steps that part in step 2 do not run to their end."""
    result = mltune(
        "repro-check", "--json", "--no-explain", "--set", "train.max_steps=2000",
        "--set", "evaluate.every_steps=0", cwd=tmp_path, env=planted(OTHER_ROW_AT_STEP_2),
    )  # fmt: skip
    assert result.code == 1, result.stderr
    report = json.loads(result.stdout)
    assert report["first_difference"]["step"] == 2
    assert [run["status"] for run in report["runs"]] == ["stopped", "stopped"]
    assert all(run["steps"] < 1000 for run in report["runs"])


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        pytest.param(
            BEFORE_STEP.format(step=2, fault="import os; os.kill(os.getpid(), 9)"),
            r"run 2 failed: the worker was killed by SIGKILL",
            id="killed",
        ),
        pytest.param(
            BEFORE_STEP.format(step=2, fault="raise LookupError('planted crash')"),
            r"run 2 failed: the worker ended with status 1.*planted crash",
            id="crashed",
        ),
        pytest.param(
            BEFORE_STEP.format(step=2, fault="import os; os._exit(3)"),
            r"run 2 failed: the worker ended with status 3 and no explanation",
            id="left without a word",
        ),
        pytest.param(
            BEFORE_STEP.format(step=2, fault="import os; os._exit(0)"),
            r"run 2 failed: the worker ended with status 0 and no explanation",
            id="left as if done",
        ),
        pytest.param(
            BEFORE_STEP.format(step=2, fault="torch.zeros(2**50)"),
            r"run 2 failed: the machine is out of memory; lower train.micro_batch_size",
            id="out of memory in torch",
        ),
        pytest.param(
            BEFORE_STEP.format(step=2, fault="raise MemoryError"),
            r"run 2 failed: the machine is out of memory; lower train.micro_batch_size",
            id="out of memory",
        ),
        pytest.param(
            BEFORE_STEP.format(
                step=2, fault="next(iter(state.parameters.values())).data.fill_(float('inf'))"
            ),
            r"run 2 failed: step 2: the loss is nan",
            id="not finite",
        ),
    ],
)
def test_trouble_is_no_verdict(
    mltune: MltuneRun,
    planted: Planted,
    short: tuple[str, ...],
    tmp_path: Path,
    code: str,
    reason: str,
) -> None:
    """A crash must never read as a difference."""
    result = mltune("repro-check", *short, cwd=tmp_path, env=planted(code))
    assert result.code == 125, result.stdout
    assert re.search(reason, result.stdout, re.DOTALL), result.stdout
    report = json.loads((tmp_path / "repro_output" / "report.json").read_text())
    assert report["verdict"] == "no_verdict"
    assert report["first_difference"] is None
    assert report["runs"][1]["status"] == "failed"


def test_a_hanging_run_ends_with_the_time_out(
    mltune: MltuneRun, planted: Planted, short: tuple[str, ...], tmp_path: Path
) -> None:
    hang = planted(BEFORE_STEP.format(step=2, fault="import time; time.sleep(600)"))
    result = mltune("repro-check", "--timeout", "25", *short, cwd=tmp_path, env=hang)
    assert result.code == 125
    assert "not done after --timeout 25 seconds" in result.stdout
    assert not workers_of(tmp_path)


def test_three_runs_name_the_odd_one(
    mltune: MltuneRun, planted: Planted, short: tuple[str, ...], tmp_path: Path
) -> None:
    odd = planted(OTHER_ROW_AT_STEP_2, run="run-3")
    result = mltune("repro-check", "--runs", "3", "--no-explain", *short, cwd=tmp_path, env=odd)
    assert result.code == 1, result.stderr
    assert "(runs 1 and 3)" in result.stdout


def test_an_interrupted_check_leaves_no_worker(
    mltune_command: Path, short: tuple[str, ...], tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [mltune_command, "repro-check", *short], cwd=tmp_path, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while len(workers_of(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(workers_of(tmp_path)) == 2
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not workers_of(tmp_path)


def workers_of(folder: Path) -> list[int]:
    """Return the running workers whose working directory is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            is_worker = b"mltune_cli.training.worker" in command
            if is_worker and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_a_wrong_recipe_leaves_the_earlier_check_in_place(
    mltune: MltuneRun, short: tuple[str, ...], tmp_path: Path
) -> None:
    first = mltune("repro-check", *short, cwd=tmp_path)
    assert first.code == 0, first.stderr
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wrong = mltune("repro-check", "--set", "data.train=missing.jsonl", cwd=tmp_path)
    assert wrong.code == 2
    assert wrong.stderr.startswith("mltune: --set data.train: ")
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
