"""Runs under way, what they must repeat, disks that fill up, and faults planted from outside.

Production code knows of no tests: a `sitecustomize.py` on PYTHONPATH wraps the function that reads
the worker's job, and runs the fault's code when the job is the second run's.
"""

import contextlib
import os
import signal
import subprocess
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# DoRA with dropout, so that a difference in numbers drawn or in shares of the work would show.
DORA = (
    "--set", "train.max_steps=6", "--set", "train.warmup_steps=0", "--set", "adapter.method=dora",
    "--set", "adapter.dropout=0.1", "--set", "evaluate.every_steps=3",
)  # fmt: skip
REPEATED = ("training_log.jsonl", "witness.jsonl", "evaluation_log.jsonl", "last_loss.txt")

_SITECUSTOMIZE = """
import sys
if "mltune_cli.training.worker" in " ".join(sys.orig_argv):
    from mltune_cli.launching import job as job_module

    read_job = job_module.TrainingJob.model_validate_json

    def read_and_plant(raw, *args, **kwargs):
        job = read_job(raw, *args, **kwargs)
        if (job.recipe.output_dir or "").endswith({run!r}):
            return plant(job) or job
        return job

    job_module.TrainingJob.model_validate_json = read_and_plant


def plant(job):
{code}
"""


@pytest.fixture
def planted(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Return the environment in which run 2 has a fault: `planted("code that sees `job`")`."""

    def plant(code: str, run: str = "run-2") -> dict[str, str]:
        folder = tmp_path / "planted"
        folder.mkdir(exist_ok=True)
        body = textwrap.indent(textwrap.dedent(code), "    ")
        (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE.format(code=body, run=run))
        return {"PYTHONPATH": str(folder)}

    return plant


def repeated_files_of(folder: Path) -> dict[str, bytes]:
    files = [folder / name for name in REPEATED]
    files += [path for name in ("adapter", "best") for path in sorted((folder / name).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="session")
def repeated_files() -> Callable[[Path], dict[str, bytes]]:
    """Return what must repeat of a run, by name: `repeated_files(folder)`."""
    return repeated_files_of


@pytest.fixture(scope="session")
def dora() -> tuple[str, ...]:
    """Arguments of the run that `undisturbed` has: six steps of DoRA, with evaluations."""
    return DORA


@pytest.fixture(scope="session")
def saving(dora: tuple[str, ...]) -> tuple[str, ...]:
    """The same run, with a checkpoint after each step."""
    return (*dora, "--set", "checkpoint.every_steps=1")


@pytest.fixture(scope="session")
def undisturbed(
    mltune: Callable[..., Any], dora: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The `dora` run of one process: no checkpoints, nothing in its way. Never changed."""
    home = tmp_path_factory.mktemp("undisturbed")
    result = mltune("train", *dora, "--output-dir", "run", cwd=home)
    assert result.code == 0, result.stderr
    return home / "run"


class Launched:
    """A command under way, and all that it started: they share a TMPDIR of their own."""

    def __init__(self, command: list[Any], cwd: Path, env: dict[str, str]) -> None:
        self.folder = cwd
        self.temporary = cwd / f"tmp-{time.monotonic_ns()}"
        self.temporary.mkdir(parents=True)
        self.process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
            env={**os.environ, "COLUMNS": "200", **env, "TMPDIR": str(self.temporary)},
        )  # fmt: skip

    def parents(self, module: str = "", rank: int | None = None) -> dict[int, int]:
        """Return what runs, each with its parent: all, one of our modules, or a rank of torch's."""
        wanted = {f"TMPDIR={self.temporary}"} | ({f"RANK={rank}"} if rank is not None else set())
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
                status, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
                if wanted <= set(variables) and module in command and status != "Z":
                    found[int(entry.name)] = int(parent)
        return found

    def pids(self, module: str = "", rank: int | None = None) -> list[int]:
        """Return what runs, as `parents` does."""
        return list(self.parents(module, rank))

    def variables(self, name: str, module: str) -> set[str]:
        """Return what a variable is in the processes of a module."""
        found = set()
        for pid in self.pids(module):
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
                found.update(v.partition("=")[2] for v in variables if v.startswith(f"{name}="))
        return found

    def witnessed(self, run: str = "run") -> int:
        """Return how many lines there are of a run's witness."""
        path = self.folder / run / "witness.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def kill(self, *pids: int) -> None:
        """End processes without a word."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """End everything at once, as a machine does that loses its power."""
        self.kill(*self.pids())

    def wait_for(self, holds: Callable[[], object], seconds: float = 120) -> None:
        """Wait until something holds, while the command goes on."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.process.poll() is None, self.process.communicate(timeout=30)[1]
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self, seconds: float = 120, *, tidy: bool = True) -> tuple[int, str]:
        """Wait for the command; nothing that it started may outlive it, or be left behind."""
        printed = self.process.communicate(timeout=seconds)[1]
        deadline = time.monotonic() + 5
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert self.pids() == []
        assert not tidy or list(self.temporary.glob("mltune-*")) == []
        return self.process.returncode, printed


@pytest.fixture
def launch(
    mltune_command: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Launched]]:
    """Start a training: `launch("--seed", "3", env=..., folder=..., within=...)`.

    In `tmp_path` unless a folder is named; `within` are the words of a command that starts ours.
    Whatever a failed test leaves running is killed.
    """
    cache = {"MLTUNE_CACHE": str(tmp_path_factory.getbasetemp() / "cache")}
    started: list[Launched] = []

    def begin(
        *arguments: str,
        env: dict[str, str] | None = None,
        folder: Path = tmp_path,
        within: tuple[str, ...] = (),
    ) -> Launched:
        command = [*within, mltune_command, "train", *arguments]
        started.append(Launched(command, folder, cache | (env or {})))
        return started[-1]

    yield begin
    for one in started:
        one.kill_all()
        one.process.communicate(timeout=30)
