"""Disks that fill up, and faults planted from outside: production code knows of no tests.

A `sitecustomize.py` on PYTHONPATH wraps the function that reads the worker's job, and runs the
fault's code when the job is the second run's.
"""

import subprocess
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many KiB: `disk_of(128)`."""
    mounted = []

    def mount(kibibytes: int) -> Path:
        folder = tmp_path / f"disk-{kibibytes}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)
