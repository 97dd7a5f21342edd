"""The target of an export: whole, or as it was, whatever goes wrong and when."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mltune_cli.errors import ExitCode, NoVerdictError, StoppedBySignalError, UsageError
from mltune_cli.exporting.target_folder import filled_folder


def fill(target: Path, action: Callable[[Path], object]) -> None:
    with filled_folder(target) as draft:
        (draft / "file").write_text("ours")
        action(draft)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("target", ["new", "a/b/c", "empty", "link"])
def test_it_is_filled(tmp_path: Path, target: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    (tmp_path / "link").symlink_to("linked")
    with filled_folder(tmp_path / target) as draft:
        (draft / "file").write_text("text")
        (draft / "file").chmod(0o600)
        assert not (tmp_path / target / "file").exists()
    assert tree(tmp_path / target) == ["file"]
    assert (tmp_path / target / "file").stat().st_mode & 0o777 == 0o644
    assert not [name for name in tree(tmp_path) if ".mltune-export-" in name]


@pytest.mark.parametrize("target", ["new", "a/b/c", "empty"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), NoVerdictError),
        (PermissionError(errno.EACCES, "Permission denied"), UsageError),
        (UsageError("wrong"), UsageError),
        (StoppedBySignalError(ExitCode.INTERRUPTED), StoppedBySignalError),
    ],
)
def test_a_failure_leaves_everything_as_it_was(
    tmp_path: Path, target: str, error: BaseException, raised: type[BaseException]
) -> None:
    (tmp_path / "empty").mkdir()

    def fail(draft: Path) -> None:
        raise error

    with pytest.raises(raised):
        fill(tmp_path / target, fail)
    assert tree(tmp_path) == ["empty"]


def test_a_failure_while_files_are_moved_takes_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fail_at_second(path: Path, target: Path) -> Path:
        if path.name == "later":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_at_second)

    def write_more(draft: Path) -> None:
        for name in ("a", "later", "z"):
            (draft / name).write_text(name)

    with pytest.raises(NoVerdictError, match="cannot be written: Input/output error"):
        fill(tmp_path, write_more)
    assert tree(tmp_path) == []


def test_somebody_else_s_files_are_never_touched(tmp_path: Path) -> None:
    """Also when they appear while the export is under way."""
    place = tmp_path / "a" / "new"

    def appear(draft: Path) -> None:
        place.mkdir()
        (place / "file").write_text("theirs")

    with pytest.raises(UsageError, match="cannot be written: Directory not empty"):
        fill(place, appear)
    assert tree(tmp_path) == ["a", "a/new", "a/new/file"]
    assert (place / "file").read_text() == "theirs"
