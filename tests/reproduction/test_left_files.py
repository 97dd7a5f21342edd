"""Files that a run left where the next one may read them."""

from pathlib import Path

import pytest

from mltune_cli.reproduction import left_files
from mltune_cli.reproduction.left_files import list_folder, note_of_left_files


def test_new_and_changed_files_are_named_and_caches_are_not(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("1")
    (tmp_path / "changed").write_text("1")
    before = list_folder(tmp_path, tmp_path / "out")
    (tmp_path / "changed").write_text("12")
    for name in ("new", "out/a", ".git/a", "package/__pycache__/a.pyc", "deep/er/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    note = note_of_left_files(before, list_folder(tmp_path, tmp_path / "out"))
    assert note == "run 1 left files that run 2 may have read: changed, deep/er/b, new"
    for number in range(3):
        (tmp_path / f"more-{number}").touch()
    note = note_of_left_files(before, list_folder(tmp_path, tmp_path / "out"))
    assert note is not None
    assert note.endswith("changed, deep/er/b, more-0, ... (6 in all)")
    assert note_of_left_files(before, before) is None


def test_a_large_folder_is_listed_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(left_files, "_MOST_ENTRIES", 5)
    for number in range(8):
        (tmp_path / f"{number}").touch()
    before = list_folder(tmp_path, tmp_path / "out")
    assert (len(before.files), before.is_whole) == (5, False)
    (tmp_path / "0").unlink()  # another old file comes into the listing
    assert note_of_left_files(before, list_folder(tmp_path, tmp_path / "out")) is None
    (tmp_path / "0").write_text("new")
    assert note_of_left_files(before, list_folder(tmp_path, tmp_path / "out")) is not None
