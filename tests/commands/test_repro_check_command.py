"""`repro-check -- COMMAND`: somebody else's script, run unchanged, its training compared."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Check = Callable[..., tuple[int, dict[str, Any], str]]

SCRIPT = """
import os, random, sys
{before}
import numpy
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)
torch.manual_seed(1)
{start}
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 1))
optimizer = torch.optim.{optimizer}
loader = DataLoader(TensorDataset(torch.arange(80.0).view(20, 4) / 80), batch_size=4, shuffle=True)
run = sum(name.startswith("run-2") for name in os.environ["MLTUNE_WITNESS_FOLDER"].split("/"))
for step, (rows,) in enumerate(loader, start=1):
    {at_step}
    loss = model(rows).square().mean()
    loss.backward()
    {before_update}
    optimizer.step()
    {after_update}
    optimizer.zero_grad()
print("trained in", sys.argv[-1])
{end}
"""
CLEAN = {
    "before": "", "start": "", "optimizer": "AdamW(model.parameters(), lr=1e-3)",
    "at_step": "pass", "before_update": "pass", "after_update": "pass", "end": "",
}  # fmt: skip


@pytest.fixture
def check(mltune: Any, tmp_path: Path) -> Check:
    """Write the script with some of its places filled in, check it, and read the report."""

    def run(*flags: str, launcher: tuple[str, ...] = (sys.executable,), **places: str) -> Any:
        script = tmp_path / "train.py"
        filled = {name: textwrap.dedent(text).strip() for name, text in places.items()}
        for name in ("at_step", "before_update", "after_update"):
            filled[name] = filled.get(name, "pass").replace("\n", "\n    ")
        script.write_text(SCRIPT.format(**{**CLEAN, **filled}))
        result = mltune(
            "repro-check", "--no-explain", *flags, "--", *launcher, script, "{run}", cwd=tmp_path
        )
        report = tmp_path / "repro_output" / "report.json"
        fields = json.loads(report.read_text()) if report.is_file() else {}
        return result.code, fields, result.stdout + result.stderr

    return run


def test_a_clean_script_is_reproducible(check: Check, tmp_path: Path) -> None:
    code, report, output = check()
    assert code == 0, output
    assert report["verdict"] == "reproducible"
    assert report["compared_steps"] == 5
    for number in (1, 2):
        folder = tmp_path / "repro_output" / f"run-{number}" / "files"
        assert f"[run {number}] trained in {folder}" in output
    lines = (tmp_path / "repro_output/run-1/witness/main.jsonl").read_text().splitlines()
    assert set(json.loads(lines[1])) == {
        "step", "source", "batch", "rng", "rng_python", "rng_numpy", "loss", "gradients",
        "hyperparameters", "optimizer", "parameters", "facts",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("places", "step", "stage"),
    [
        ({"start": "torch.seed()"}, 0, "parameters"),
        ({"at_step": "if step == 3 and run: rows = rows * 1.001"}, 3, "loss"),
        ({"at_step": "if step == 2 and run: torch.rand(1)"}, 2, "rng"),
        ({"start": "random.seed(1)", "at_step": "if step == 2 and run: random.random()"},
         2, "rng_python"),
        ({"before_update": "if step == 4 and run: model[0].weight.grad[0, 0] *= 1.0000002"},
         4, "gradients"),
        ({"before_update": "if step == 2 and run: optimizer.param_groups[0]['lr'] *= 1 + 1e-12"},
         2, "hyperparameters"),
        ({"after_update": "if step == 3 and run: model[0].bias.detach().numpy()[0] += 1"},
         4, "loss"),
        ({"at_step": "if step == 4 and run: break"}, 4, "missing"),
    ],
)  # fmt: skip
def test_a_planted_difference_is_found_where_it_is(
    check: Check, places: dict[str, str], step: int, stage: str
) -> None:
    code, report, output = check(**places)
    assert code == 1, output
    difference = report["first_difference"]
    assert (difference["step"], difference["stage"]) == (step, stage)


def test_a_shuffled_data_set_is_seen_in_the_batches(check: Check) -> None:
    code, report, output = check(
        start="real = TensorDataset.__getitem__\n"
        "pid = os.getpid()\n"
        "TensorDataset.__getitem__ = lambda self, i: real(self, (i + pid) % 20)"
    )
    assert code == 1, output
    assert (report["first_difference"]["step"], report["first_difference"]["stage"]) == (1, "batch")


@pytest.mark.parametrize(
    "optimizer",
    [
        "SGD(model.parameters(), lr=1e-2, momentum=0.9)",
        "Adam(model.parameters(), fused=True)",
        "Adagrad(model.parameters())",
    ],
)
def test_other_optimizers_are_seen(check: Check, optimizer: str) -> None:
    code, report, output = check(optimizer=optimizer)
    assert (code, report["compared_steps"]) == (0, 5), output


def test_several_optimizers_a_closure_and_accumulation(check: Check) -> None:
    code, report, output = check(
        start="other = torch.nn.Linear(4, 1)\nlbfgs = torch.optim.LBFGS(other.parameters())",
        at_step="""
        def closure():
            lbfgs.zero_grad()
            value = other(rows).square().mean()
            value.backward()
            return value
        lbfgs.step(closure)
        (model(rows).mean() / 2).backward()
        """,
    )
    assert (code, report["compared_steps"]) == (0, 10), output


def test_each_rank_of_torchrun_is_compared(check: Check, tmp_path: Path) -> None:
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    fault = "if step == 3 and run and os.environ['RANK'] == '1': torch.rand(1)"
    code, report, output = check("--runs", "2", launcher=torchrun, at_step=fault)
    assert code == 1, output
    difference = report["first_difference"]
    assert (difference["step"], difference["stage"]) == (3, "rng")
    assert difference["process"] == "rank-1"


def test_parallel_runs_are_compared_as_they_go(check: Check) -> None:
    code, report, output = check("--parallel", "--runs", "3")
    assert (code, len(report["runs"])) == (0, 3), output


def test_a_users_own_sitecustomize_still_runs(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 'was run'\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    code, _, output = check(end="print('sitecustomize', mine)")
    assert code == 0, output
    assert "[run 1] sitecustomize was run" in output


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({"end": "raise SystemExit(3)"}, "ended with status 3"),
        ({"end": "print('the last line'); raise ValueError('broken')"}, "ValueError: broken"),
        ({"at_step": "os.kill(os.getpid(), 9)"}, "killed by signal 9"),
        ({"before": "sys.exit(0)"}, "no optimizer of torch took a step"),
    ],
)
def test_a_run_that_fails_gives_no_verdict(check: Check, places: dict[str, str], said: str) -> None:
    code, report, output = check(**places)
    assert code == 125, output
    assert report["verdict"] == "no_verdict"
    assert said in report["reason"]


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A control group of 600 MiB; a process joins it by writing its number into `cgroup.procs`."""
    version_1, version_2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    root, limit = version_2, "memory.max"
    if version_1.is_dir():
        root, limit = version_1, "memory.limit_in_bytes"
    folder = root / f"mltune-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / limit).write_text(str(600 << 20))
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    yield folder
    for _ in range(50):  # the last process may be on its way out
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.1)
        else:
            break


@pytest.mark.parametrize("own_limit", [True, False], ids=["killed", "refused"])
def test_a_command_without_memory_gives_no_verdict(
    check: Check, small_memory: Path, own_limit: bool
) -> None:
    """The kernel kills it, or allocations fail: both are told with what was printed last."""
    if own_limit:
        limit = f"open('{small_memory}/cgroup.procs', 'w').write(str(os.getpid()))"
    else:
        limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))"
    end = f"print('all is well', flush=True); {limit}; torch.ones(8 << 30, dtype=torch.uint8)"
    code, report, output = check(end=end)
    assert code == 125, output
    assert "all is well" in report["reason"]
    said = "killed by signal 9 (out of memory?)" if own_limit else "memory"
    assert said in report["reason"], report["reason"]


def test_an_isolated_interpreter_evades_the_hook_and_gets_a_sentence(check: Check) -> None:
    code, report, _ = check(
        launcher=(sys.executable, "-I"), start="os.environ['MLTUNE_WITNESS_FOLDER']"
    )
    assert code == 125
    assert "started without -I" in report["reason"]


def test_what_could_not_be_watched_to_its_end_gets_no_verdict(check: Check) -> None:
    code, report, output = check(
        start="""
        class Unspeakable(torch.Tensor):
            def detach(self):
                raise RuntimeError("it has no words")
        """,
        before_update="if step == 3: optimizer.state[model[0].bias]['own'] = Unspeakable(3)",
        end="print('trained to the end')",
    )
    assert code == 125, output
    assert "could not be watched: RuntimeError: it has no words" in report["reason"]
    assert "trained to the end" in output


def test_a_hang_ends_with_the_timeout_and_leaves_nothing_running(
    check: Check, tmp_path: Path
) -> None:
    torchrun = (str(Path(sys.executable).parent / "torchrun"), "--nproc-per-node", "2")
    code, report, output = check(
        "--timeout", "20", launcher=torchrun,
        end="print('asleep', flush=True)\nimport time\ntime.sleep(3600 + 77)",
    )  # fmt: skip
    assert code == 125, output
    assert "--timeout 20" in report["reason"]
    assert "run 1 was in step 6" in report["reason"]
    assert "asleep" in report["reason"]
    time.sleep(0.5)
    assert processes_below(tmp_path) == []


def processes_below(folder: Path) -> list[int]:
    """Return what runs in a folder or below it; other tests run scripts of the same names."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (entry / "cwd").readlink().is_relative_to(folder):
                found.append(int(entry.name))
    return found


def test_ctrl_c_ends_the_command_and_keeps_earlier_results(
    mltune_command: Path, tmp_path: Path
) -> None:
    (tmp_path / "loop.py").write_text("import time\nprint('up', flush=True)\ntime.sleep(600)\n")
    process = subprocess.Popen(
        [mltune_command, "repro-check", "--", sys.executable, "loop.py"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert "up" in process.stderr.readline()
    assert len(processes_below(tmp_path)) > 1
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    process.stderr.close()
    assert not (tmp_path / "repro_output").exists()
    assert processes_below(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--",), "a command must follow"),
        (("--", "no-such-program"), "no-such-program: cannot be run"),
        (("--set", "train.max_steps=2", "--", "true"), "--set: is for recipes"),
        (("--nproc-per-node", "2", "--", "true"), "--nproc-per-node: is for recipes"),
        (("--parallel",), "--parallel: is for commands"),
    ],
)
def test_wrong_arguments_get_one_sentence(
    mltune: Any, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    result = mltune("repro-check", *arguments, cwd=tmp_path)
    assert result.code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "repro_output").exists()
