"""The list of faults is whole: every row, every script, every test that it names."""

import runpy
import subprocess
import sys
from pathlib import Path

from mltune_cli.reproduction.causes import CAUSES

HERE = Path(__file__).parent
FAULTS = runpy.run_path(str(HERE / "catalogue.py"))["FAULTS"]
GPU_FAULTS = runpy.run_path(str(HERE / "gpu_catalogue.py"))["FAULTS"]
ROWS = runpy.run_path(str(HERE / "rows.py"))["ROWS"]


def test_every_row_is_planted_or_says_why_not() -> None:
    assert [row.number for row in ROWS if row.number] == list(range(1, 32))
    for row in ROWS:
        on_gpu = [fault for fault in GPU_FAULTS if fault.row == row.number]
        assert bool(row.unplanted) != bool(row.faults or row.tests or on_gpu), row.title
        assert row.unplanted or row.names
        assert set(row.names) <= set(CAUSES)


def test_every_fault_has_a_row_a_script_and_a_cause_that_the_row_names() -> None:
    scripts = {path.stem for path in (HERE / "scripts").glob("*.py")}
    planted = {script for script in scripts if not script.startswith(("clean_", "gpu_"))}
    assert {fault.script for fault in FAULTS} == planted
    assert {script for row in ROWS for script in row.faults} == planted
    assert len(FAULTS) >= 40
    for fault in FAULTS:
        named = {n for row in ROWS if fault.script in row.faults for n in row.names}
        assert fault.cause in named, fault.name


def test_every_fault_of_the_gpu_has_a_script_and_causes_that_its_row_names() -> None:
    scripts = {path.stem for path in (HERE / "scripts").glob("gpu_*.py")}
    assert {fault.script for fault in GPU_FAULTS} == scripts
    named = {row.number: set(row.names) for row in ROWS}
    for fault in GPU_FAULTS:
        assert set(fault.causes) <= named[fault.row], fault.script


def test_there_is_a_fault_of_every_framework_and_a_short_set() -> None:
    assert {fault.framework for fault in FAULTS} == {
        "plain", "HF Trainer", "TRL", "Lightning", "accelerate", "torchrun",
    }  # fmt: skip
    short = [fault for fault in FAULTS if not fault.is_long]
    assert len(short) >= 8
    assert len({fault.framework for fault in short}) >= 3


def test_the_tests_that_rows_name_exist(project: Path) -> None:
    for row in ROWS:
        for test in row.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (project / file).read_text(encoding="utf-8"), test


def test_the_page_of_causes_is_what_the_faults_say(project: Path) -> None:
    done = subprocess.run(
        [sys.executable, project / "tools" / "write_causes.py", "--check"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
