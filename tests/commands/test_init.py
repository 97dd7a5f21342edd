"""`mltune init`: what it writes runs, and nothing that was there is lost."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Mltune = Callable[..., Any]
WRITTEN = {
    ".dockerignore", ".gitignore", "Dockerfile", "recipe.yaml", "repro_dataset/train.jsonl",
    "repro_dataset/val.jsonl", "requirements.txt", "run_repro.sh", "train.py",
}  # fmt: skip
WORKFLOW = ".github/workflows/smoke-repro.yml"
# What the script that mltune grew out of was called with.
ORIGINAL = (
    "--model_name_or_path", "mltune/tiny", "--train_file", "repro_dataset/train.jsonl",
    "--output_dir", "my run", "--max_steps", "2", "--per_device_train_batch_size", "2",
    "--seed", "42", "--logging_strategy", "steps",
)  # fmt: skip


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".git/" not in f"{path}")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_what_it_writes_runs(mltune: Mltune, tmp_path: Path) -> None:
    result = mltune("init", "project", cwd=tmp_path)
    assert result.code == 0, result.stderr
    project = tmp_path / "project"
    assert set(files_below(project)) == WRITTEN
    for name in WRITTEN:
        assert f"{Path(name).name}  (" in result.stdout
    # The commands that it names next, word for word.
    *_, check, record = result.stdout.strip().splitlines()
    assert "  cd project" in result.stdout
    checked = mltune(*check.split()[1:], cwd=project)
    assert checked.code == 0, checked.stderr
    assert "reproducible: 2 runs of recipe" in checked.stdout
    assert record.split()[1:] == [*check.split()[1:], "--record", "golden.json"]
    # No place of this machine is in what a project commits.
    assert not any(str(tmp_path).encode() in content for content in files_below(project).values()
                   if b"run-1" not in content)  # fmt: skip


def test_pipelines_of_the_original_script_go_on(mltune: Mltune, tmp_path: Path) -> None:
    assert mltune("init", cwd=tmp_path, env={}).code == 0
    programs = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}",
                   "MLTUNE_CACHE": str(tmp_path / "cache")}  # fmt: skip

    def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True
        )

    trained = run("python", "train.py", *ORIGINAL)
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "my run" / "adapter" / "adapter_model.safetensors").is_file()
    wrong = run("python", "train.py", "--no_such_flag")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr
    checked = run("./run_repro.sh", "--set", "train.max_steps=2", "--set", "train.warmup_steps=0")
    assert checked.returncode == 0, checked.stderr
    assert "reproducible: " in checked.stdout
    # A Python without mltune says so.
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    absent = run(str(bare / "bin" / "python"), "train.py")
    assert absent.returncode == 1
    assert "install mltune there" in absent.stderr


def test_flags_choose_what_is_written(mltune: Mltune, tmp_path: Path) -> None:
    result = mltune("init", "--gpu", "--ci", "github", cwd=tmp_path)
    assert result.code == 0
    assert set(files_below(tmp_path)) == WRITTEN | {WORKFLOW, "requirements-gpu.txt"}
    recipe = (tmp_path / "recipe.yaml").read_text()
    assert "dtype: bfloat16" in recipe
    assert "device: auto" in recipe
    shown = mltune("train", "--config", "recipe.yaml", "--dry-run", cwd=tmp_path)
    assert shown.code == 0, shown.stderr
    built = mltune("build-image", "--gpu", "--dry-run", cwd=tmp_path)
    assert built.code == 0, built.stderr
    assert "recipe.yaml" in built.stdout
    wrong = mltune("init", "other", "--ci", "gitlab", cwd=tmp_path)
    assert wrong.code == 2
    assert "--ci gitlab: must be github" in wrong.stderr
    assert not (tmp_path / "other").exists()


def test_a_repository_with_files_keeps_them(mltune: Mltune, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    own = {"train.py": b"print('mine')\n", "Dockerfile": b"FROM mine\n", "notes.md": b"notes"}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".gitignore").write_bytes(b"/runs/\nsecrets.txt")
    before = files_below(tmp_path)
    refused = mltune("init", cwd=tmp_path)
    assert refused.code == 2
    assert "has its own train.py, Dockerfile; nothing was written; --force" in refused.stderr
    assert files_below(tmp_path) == before

    forced = mltune("init", "--force", cwd=tmp_path)
    assert forced.code == 0
    after = files_below(tmp_path)
    assert set(after) == WRITTEN | {
        "notes.md", "train.py.before-mltune", "Dockerfile.before-mltune",
    }  # fmt: skip
    for name in ("train.py", "Dockerfile"):
        assert after[f"{name}.before-mltune"] == own[name]
        assert after[name] != own[name]
    # A list is added to: what was in it stays as it was, and comes first.
    assert after[".gitignore"].startswith(b"/runs/\nsecrets.txt\n")
    assert b"/repro_output/\n" in after[".gitignore"]
    assert after[".gitignore"].count(b"/runs/") == 1
    assert "added to" in forced.stdout
    assert "yours is train.py.before-mltune now" in forced.stdout


def test_a_second_time_changes_nothing(mltune: Mltune, tmp_path: Path) -> None:
    assert mltune("init", "--ci", "github", cwd=tmp_path).code == 0
    before = files_below(tmp_path)
    again = mltune("init", "--ci", "github", cwd=tmp_path)
    assert again.code == 0
    assert files_below(tmp_path) == before
    assert again.stdout.count("; unchanged)") == len(before)
    # A second replacement gets a name of its own.
    for number in (1, 2):
        (tmp_path / "train.py").write_text(f"# version {number}\n")
        assert mltune("init", "--force", cwd=tmp_path).code == 0
    assert (tmp_path / "train.py.before-mltune").read_text() == "# version 1\n"
    assert (tmp_path / "train.py.before-mltune-2").read_text() == "# version 2\n"


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that not even root can write into."""
    folder = tmp_path / "read-only"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            pytest.skip("no folder can be made unwritable here")
    yield folder
    if mounted.returncode == 0:
        subprocess.run(["umount", folder], check=True)
    folder.chmod(0o700)


def test_a_folder_that_cannot_be_written(mltune: Mltune, read_only: Path, tmp_path: Path) -> None:
    for target in (read_only, read_only / "inside"):
        result = mltune("init", target, cwd=tmp_path)
        assert result.code == 2
        assert "cannot be written" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert list(read_only.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    result = mltune("init", "file", cwd=tmp_path)
    assert result.code == 2
    assert "is a file" in result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_nothing(
    mltune: Mltune, disk_of: Callable[[int], Path], tmp_path: Path
) -> None:
    disk = disk_of(64)
    (disk / ".gitignore").write_text("mine\n")
    result = mltune("init", disk, cwd=tmp_path)
    assert result.code == 2
    assert "No space left" in result.stderr
    assert files_below(disk) == {".gitignore": b"mine\n"}


def test_links_that_lead_elsewhere_are_not_followed(mltune: Mltune, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "train.py").write_text("mine")
    project = tmp_path / "project"
    project.mkdir()
    for name, target in (("train.py", outside / "train.py"), ("repro_dataset", outside)):
        link = project / name
        link.symlink_to(target)
        result = mltune("init", project, "--force", cwd=tmp_path)
        assert result.code == 2
        assert "leads out of" in result.stderr
        link.unlink()
    assert files_below(outside) == {"train.py": b"mine"}
    (project / "recipe.yaml").mkdir()
    result = mltune("init", project, "--force", cwd=tmp_path)
    assert result.code == 2
    assert "recipe.yaml: is a folder" in result.stderr
    (project / "recipe.yaml").rmdir()
    (project / "repro_dataset").write_text("a file")
    result = mltune("init", project, cwd=tmp_path)
    assert result.code == 2
    assert "repro_dataset: is a file" in result.stderr


def test_rights_follow_the_umask_and_the_file_that_was_there(
    mltune: Mltune, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("mine")
    (tmp_path / "train.py").chmod(0o600)
    assert mltune("init", "--force", cwd=tmp_path).code == 0
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "run_repro.sh").stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE((tmp_path / "recipe.yaml").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "train.py").stat().st_mode) == 0o600


def test_a_kill_leaves_whole_files(mltune_command: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "project"
    subprocess.run([mltune_command, "init", whole], check=True, capture_output=True)
    expected = files_below(whole)
    started = time.monotonic()
    subprocess.run([mltune_command, "init", whole], check=True, capture_output=True)
    takes = time.monotonic() - started
    seen = 0
    for number in range(12):
        folder = tmp_path / f"killed-{number}" / "project"
        process = subprocess.Popen(
            [mltune_command, "init", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(takes * (0.4 + number * 0.05))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, content in files_below(folder).items() if folder.exists() else ():
            if name in expected:
                seen += 1
                assert content == expected[name]
            else:
                assert name.endswith(".part") or name == ".mltune-init"
        # Another time it goes on where it was.
        subprocess.run([mltune_command, "init", folder], check=True, capture_output=True)
        held = files_below(folder)
        assert held == expected
    assert seen
