"""What somebody sees who may not look everywhere: most users are not root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

# Root may read and enter any folder by these two alone.
_RIGHTS = "-dac_override,-dac_read_search"


@pytest.fixture
def limited(clinic: Any) -> tuple[str, ...]:
    """A wrapper under which root may enter no folder of another user; makes such a folder."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to give rights up")
    locked = clinic.folder / "locked"
    locked.mkdir()
    (locked / "golden.json").write_text("{}")
    os.chown(locked, 12345, 12345)
    locked.chmod(0o700)
    return "setpriv", f"--bounding-set={_RIGHTS}", f"--inh-caps={_RIGHTS}"


@pytest.mark.parametrize(
    ("check", "arguments", "env"),
    [
        ("caches", (), {"MLTUNE_CACHE": "locked/cache"}),
        ("disk", ("--set", "output_dir=locked/run"), {}),
        ("recipe", ("--set", "output_dir=locked/run"), {}),
    ],
)
def test_a_folder_that_nobody_may_enter_is_a_finding(
    clinic: Any, limited: tuple[str, ...], check: str, arguments: tuple[str, ...], env: Any
) -> None:
    told = clinic.look(check, *arguments, env=env, wrapper=limited)
    assert "crashed" not in told.stdout
    assert "denied" in told.stdout.lower()
    assert told.severity in ("warning", "error")


@pytest.mark.parametrize("flag", ["--record", "--against"])
def test_a_golden_that_nobody_may_reach_is_wrong_input(
    clinic: Any, limited: tuple[str, ...], flag: str
) -> None:
    done = subprocess.run(
        [*limited, clinic.command, "repro-check", flag, "locked/golden.json"],
        cwd=clinic.folder, env=clinic.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "locked/golden.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["doctor", "init new", "train", "repro-check"])
def test_a_working_directory_that_is_gone_is_said(
    mltune_command: Path, tmp_path: Path, command: str
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        ["sh", "-c", f"rmdir {gone}; exec {mltune_command} {command}"],
        cwd=gone, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "the working directory cannot be used" in done.stderr
    assert len(done.stderr.splitlines()) == 1
