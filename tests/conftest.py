"""Fixtures that drive the installed command in real processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit code and what it printed."""

    code: int
    stdout: str
    stderr: str


Mltune = Callable[..., Finished]


@pytest.fixture(scope="session")
def project() -> Path:
    """The root of the checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def mltune_command() -> Path:
    """The installed `mltune` command of this environment."""
    command = Path(sys.executable).parent / "mltune"
    assert command.is_file(), "install the project into this environment first"
    return command


@pytest.fixture(scope="session")
def mltune(mltune_command: Path, tmp_path_factory: pytest.TempPathFactory) -> Mltune:
    """Run the installed `mltune` and return how it ended.

    Called as `mltune("train", "--seed", "3", cwd=..., env={...}, timeout=...)`; `env` is added to
    the inherited variables. All calls of a session share one cache of tokenised data.
    """
    cache = tmp_path_factory.mktemp("cache")

    def run(
        *arguments: str | Path,
        cwd: Path,
        env: dict[str, str] | None = None,
        timeout: float = 180,
    ) -> Finished:
        completed = subprocess.run(
            [mltune_command, *map(str, arguments)],
            cwd=cwd,
            env={**os.environ, "MLTUNE_CACHE": str(cache), "COLUMNS": "200", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return Finished(completed.returncode, completed.stdout, completed.stderr)

    return run


# Small enough to train in a blink once Python has started, large enough to be training.
SHORT = (
    "--set",
    "train.max_steps=3",
    "--set",
    "train.warmup_steps=0",
    "--set",
    "evaluate.every_steps=0",
)


@pytest.fixture(scope="session")
def short() -> tuple[str, ...]:
    """Arguments that make the smoke recipe three steps long, without evaluation."""
    return SHORT


@pytest.fixture(scope="session")
def finished_run(mltune: Mltune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A three-step run of the smoke recipe. Read it, copy it, never change it."""
    folder = tmp_path_factory.mktemp("finished")
    result = mltune("train", *SHORT, "--output-dir", "run", cwd=folder)
    assert result.code == 0, result.stderr
    return folder / "run"


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


# Root passes every permission by these two.
_DROPPED = "-dac_override,-dac_read_search"


@pytest.fixture
def ordinary() -> list[str]:
    """What stands before a command so that permissions hold for it, for root as well."""
    if os.getuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root's capabilities are dropped by setpriv, and there is none")
    return ["setpriv", f"--bounding-set={_DROPPED}", f"--inh-caps={_DROPPED}"]


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """A folder of another user, where that can be made, that nobody else may enter."""
    folder = tmp_path / "locked"
    folder.mkdir()
    if os.getuid() == 0:
        os.chown(folder, 12345, 12345)
    folder.chmod(0o700 if os.getuid() == 0 else 0)
    return folder
