"""Folders that belong to somebody else, and a working directory that was removed: one sentence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mltune_cli.errors import UsageError
from mltune_cli.paths import is_file, is_folder, is_there, sight_problem, working_folder


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("repro-check --record locked/g.json", "--record locked/g.json: cannot be written"),
        ("repro-check --record locked/a/g.json", "--record locked/a/g.json: cannot be written"),
        ("repro-check --against locked/g.json", "locked/g.json: cannot be read"),
        ("repro-check --against locked/a/g.json", "locked/a/g.json: cannot be read"),
        ("repro-check --junit locked/a/j.xml", "--junit locked/a/j.xml: cannot be written"),
        ("repro-check --output locked/out", "locked/out: cannot be written"),
        ("diff locked/a locked/b", "locked/a: cannot be read"),
        ("build-image --wheelhouse locked/w --dry-run", "locked/w: cannot be read"),
        ("train --output-dir locked/a/run", "locked/a/run: cannot be read"),
        ("init locked/project", "locked/project: cannot be written"),
        ("doctor --config locked/recipe.yaml", "locked/recipe.yaml: cannot be read"),
    ],
)
def test_a_folder_that_may_not_be_entered(
    mltune_command: Path, locked: Path, ordinary: list[str], arguments: str, sentence: str
) -> None:
    done = subprocess.run(
        [*ordinary, mltune_command, *arguments.split()],
        cwd=locked.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert sentence in done.stderr
    assert "Permission denied" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    ["doctor", "init", "init {there}", "train", "repro-check", "repro-check -- true",
     "build-image --dry-run"],
)  # fmt: skip
def test_a_working_directory_that_was_removed(
    mltune_command: Path, tmp_path: Path, arguments: str
) -> None:
    script = 'cd "$0" && rmdir "$0" && exec "$@"'
    gone = tmp_path / "gone"
    gone.mkdir()
    words = arguments.format(there=tmp_path / "there").split()
    done = subprocess.run(
        ["bash", "-c", script, gone, mltune_command, *words],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "mltune: the working directory cannot be used: No such file or directory; change to one "
        "that is there\n"
    )
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "missing", "file/below"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / name
    assert not is_there(path)
    assert not is_folder(path)
    assert not is_file(path)
    assert (sight_problem(path) is None) == (name in ("missing", "file/below"))


def test_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert working_folder() == tmp_path
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="change to one that is there"):
        working_folder()
    monkeypatch.chdir(tmp_path)
