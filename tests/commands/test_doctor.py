"""`mltune doctor`: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mltune_cli.diagnosis.registry import CHECKS
from mltune_cli.diagnosis.report import DoctorReport


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder without a repository."""
    (tmp_path / "home").mkdir()
    return tmp_path


@pytest.fixture
def doctor(mltune: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    def run(*arguments: str | Path, **env: str) -> Any:
        given = {"HOME": str(folder / "home"), "GIT_CEILING_DIRECTORIES": str(folder.parent), **env}
        return mltune("doctor", *arguments, cwd=folder, env=given)

    return run


def test_a_full_run_on_the_bundled_recipe(doctor: Any) -> None:
    told = doctor()
    assert (told.code, told.stderr) == (0, ""), told.stdout
    first, *rest = told.stdout.splitlines()
    assert first.startswith("healthy")
    assert f"{len(CHECKS)} checks for the recipe smoke" in first
    assert "in order: " in rest[0]
    for name in ("python", "requirements", "torch", "recipe", "model", "data", "memory"):
        assert f" {name}," in rest[0]
    assert "run: export PYTHONHASHSEED=0" in told.stdout


def test_json_is_one_object_of_the_published_shape(doctor: Any, project: Path) -> None:
    told = doctor("--json")
    report = DoctorReport.model_validate_json(told.stdout)
    assert report.schema_name == "mltune.doctor/1"
    assert [check.name for check in report.checks] == [check.name for check in CHECKS]
    assert all(check.findings for check in report.checks)
    assert report.exit_code == told.code == 0
    assert report.machine.torch is not None
    assert report.machine.packages["transformers"]


def test_a_fault_is_told_with_its_reason_and_remedy(doctor: Any) -> None:
    told = doctor("--only", "cpu-kernels", "--only", "git", ATEN_CPU_CAPABILITY="avx2")
    assert told.code == 0
    assert told.stdout.splitlines()[0] == (
        "healthy, with warnings: 2 checks for the recipe smoke, 1 warning, 1 note"
    )
    assert "warning cpu-kernels (your own scripts): ATEN_CPU_CAPABILITY=avx2; mltune" in told.stdout
    for part in ("why: your own scripts compute with", "remedy: take", "run: unset ATEN_CPU"):
        assert part in told.stdout
    assert "note git: this folder is in no git repository" in told.stdout
    assert doctor("--only", "cpu-kernels", "--strict", ATEN_CPU_CAPABILITY="avx2").code == 1


def test_what_is_in_order_is_told_where_little_was_asked(doctor: Any) -> None:
    told = doctor("--only", "python", "--only", "recipe")
    assert "in order: python: CPython 3." in told.stdout
    assert "in order: recipe: smoke: lora on mltune/tiny, 20 steps" in told.stdout


def test_an_error_ends_with_1(doctor: Any, folder: Path) -> None:
    (folder / "recipe.yaml").write_text(
        "model: {name_or_path: mltune/tiny}\ndata: {train: mltune/none.jsonl}\n"
    )
    told = doctor("--config", "recipe.yaml", "--only", "data")
    assert (told.code, told.stderr) == (1, "")
    assert told.stdout.startswith("not healthy: 1 check for the recipe recipe, 1 error")
    assert "error data: data.train: mltune/none.jsonl: no such bundled data" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--only", "hash-sed"],
            "--only hash-sed: no such check; did you mean hash-seed? there are",
        ),
        (
            ["--json", "--report"],
            "--report: prints Markdown, and --json was given as well; drop one",
        ),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--config", "."], "."),
        (["--set", "train.max_step=1"], "did you mean train.max_steps?"),
        (["smoke.yaml"], "smoke.yaml"),
    ],
)
def test_a_mistake_ends_with_2(doctor: Any, arguments: list[str], sentence: str) -> None:
    told = doctor(*arguments)
    assert (told.code, told.stdout) == (2, "")
    assert sentence in told.stderr
    assert len(told.stderr.splitlines()) == 1
    assert told.stderr.startswith("mltune: ")


def test_a_value_can_be_tried_by_set(doctor: Any) -> None:
    told = doctor("--only", "model", "--set", "data.max_length=4096")
    assert told.code == 1
    assert "data.max_length is 4096" in told.stdout


def test_the_bug_report_is_markdown(doctor: Any) -> None:
    told = doctor("--report")
    lines = told.stdout.splitlines()
    assert lines[0] == "### mltune doctor"
    for part in ("| mltune | ", "| Python | CPython", "<details><summary>packages</summary>"):
        assert part in told.stdout
    assert told.stdout.count("<details>") == told.stdout.count("</details>") >= 2
    assert sum(line.startswith(("| ok |", "| info |", "| warning |")) for line in lines) >= 32


def test_markup_in_what_is_seen_stays_text(doctor: Any, folder: Path) -> None:
    """Rich's markup in the terminal, Markdown's and HTML's in the report."""
    name = "[bold]a|b`<script>"
    told = doctor("--only", "cpu-kernels", MKL_CBWR=name)
    assert name in told.stdout
    told = doctor("--only", "cpu-kernels", "--report", MKL_CBWR=name)
    assert "\\[bold\\]a\\|b\\`\\<script\\>" in told.stdout


def test_torch_stays_out_of_the_command(doctor: Any, folder: Path) -> None:
    """A torch that cannot be imported at all stops no check but its own."""
    (folder / "site" / "torch").mkdir(parents=True)
    (folder / "site" / "torch" / "__init__.py").write_text("raise ImportError('planted')")
    told = doctor("--json", PYTHONPATH=str(folder / "site"))
    report = DoctorReport.model_validate_json(told.stdout)
    assert told.code == 1
    assert [check.name for check in report.checks if check.severity == "error"] == ["torch"]


def test_ctrl_c_ends_it_at_once_with_what_it_started(mltune_command: Path, folder: Path) -> None:
    (folder / "site" / "torch").mkdir(parents=True)
    mark = folder / "pid"
    source = f"import os, time\nopen({str(mark)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    (folder / "site" / "torch" / "__init__.py").write_text(source)
    process = subprocess.Popen(
        [mltune_command, "doctor"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder / "site")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert not Path(f"/proc/{mark.read_text()}").exists()


def test_a_reader_that_goes_away(mltune_command: Path, folder: Path) -> None:
    process = subprocess.Popen(
        [mltune_command, "doctor", "--json", "--only", "python"], cwd=folder,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=20) == 125


def test_nothing_is_written_by_looking(doctor: Any, folder: Path) -> None:
    assert doctor().code == 0
    left = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    assert left == ["home"]
    assert json.loads(doctor("--json", "--only", "caches").stdout)["verdict"] == "healthy"
