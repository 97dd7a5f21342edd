"""`mltune export`: the bundled model as a folder that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mltune_cli.bundled import bundled_model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("target", ["model", "new/and/deeper", "empty", "."])
def test_the_model_is_written_whole(mltune: Any, tmp_path: Path, target: str) -> None:
    """Into a folder that is new, below new folders, or there and empty; the bytes are the same."""
    work = tmp_path / "work"
    (work / "empty").mkdir(parents=True)
    if target == ".":
        (work / "empty").rmdir()
    done = mltune("export", "mltune/tiny", target, cwd=work)
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout == f"wrote mltune/tiny to {target}\n"
    assert contents(work / target) == contents(bundled_model("mltune/tiny"))
    assert (work / target / "config.json").stat().st_mode & 0o600 == 0o600
    assert not [path for path in work.rglob("*") if path.name.startswith(".")]


def test_another_tool_loads_it(mltune: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert mltune("export", "mltune/tiny", "model", cwd=tmp_path).code == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert model.num_parameters() > 100_000
    assert tokenizer("hello").input_ids


def test_a_folder_through_a_symbolic_link_is_filled(mltune: Any, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mltune("export", "mltune/tiny", "link", cwd=tmp_path).code == 0
    assert (tmp_path / "real" / "config.json").is_file()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("source", "target", "sentence"),
    [
        ("mltune/tiny", "full", "full: exists already; choose an empty folder"),
        ("mltune/tiny", "file", "file: exists already; choose an empty folder"),
        ("mltune/tiny", "file/below", "file/below: cannot be written: File exists"),
        ("mltune/tiny", "x" * 300, f"{'x' * 300}: cannot be written: File name too long"),
        ("mltune/huge", "new", "mltune/huge: no such bundled model; there is mltune/tiny"),
        ("org/model", "new", "org/model: is neither the folder of a run nor a bundled model"),
    ],
)
def test_what_cannot_be_written_is_refused_and_nothing_is_touched(
    mltune: Any, tmp_path: Path, source: str, target: str, sentence: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    done = mltune("export", source, target, cwd=tmp_path)
    assert (done.code, done.stdout, done.stderr) == (2, "", f"mltune: {sentence}\n")
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--merge", "--merge: mltune/tiny has no adapter to merge; drop --merge"),
        ("--best", "--best: mltune/tiny is no run, and has no best step; drop --best"),
        ("--public", "--public: says who may see an upload; pass --push REPO_ID with it"),
    ],
)
def test_flags_that_mean_nothing_for_it_are_refused(
    mltune: Any, tmp_path: Path, flag: str, sentence: str
) -> None:
    done = mltune("export", "mltune/tiny", "new", flag, cwd=tmp_path)
    assert (done.code, done.stdout, done.stderr) == (2, "", f"mltune: {sentence}\n")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_nothing_behind(mltune: Any, disk_of: Any) -> None:
    """On a new folder, on new folders above it, and on the empty mount itself."""
    disk = disk_of(512)
    for target in ("new", "new/and/deeper", "."):
        done = mltune("export", "mltune/tiny", target, cwd=disk)
        assert done.code == 125
        assert done.stderr == f"mltune: {target}: cannot be written: No space left on device\n"
        assert list(disk.iterdir()) == []
