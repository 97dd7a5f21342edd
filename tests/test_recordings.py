"""The pictures of the README: drawn from the real commands, and nothing but pictures."""

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest


@pytest.fixture(scope="module")
def recorder(project: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "record_terminal", project / "tools" / "record_terminal.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def require_plain_picture(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not names & {"script", "image", "foreignObject", "use", "a"}
    # Namespaces and a comment aside, nothing is fetched from anywhere.
    assert "url(http" not in svg
    assert "@font-face" not in svg


def test_a_command_is_recorded_as_it_printed(recorder: ModuleType, tmp_path: Path) -> None:
    words_of = recorder.words_of
    recording = recorder.Recording("version", ("--version",), (0,), "mltune")
    svg = recorder.record(recording, tmp_path).read_text(encoding="utf-8")
    require_plain_picture(svg)
    assert "$ mltune --version" in words_of(svg)
    assert re.search(r"mltune \d+\.\d+", words_of(svg))
    # The same output gives the same picture.
    assert recorder.record(recording, tmp_path).read_text(encoding="utf-8") == svg


def test_a_command_that_ends_otherwise_is_no_picture(recorder: ModuleType, tmp_path: Path) -> None:
    wrong = recorder.Recording("wrong", ("repro-check", "--config", "absent.yaml"), (0,), "")
    with pytest.raises(SystemExit, match="ended with 2"):
        recorder.record(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_readmes_pictures_show_what_they_should(recorder: ModuleType, project: Path) -> None:
    assert len(recorder.RECORDINGS) == 4
    assert recorder.check(project / "docs" / "recordings") == []
    for recording in recorder.RECORDINGS:
        svg = (project / "docs" / "recordings" / f"{recording.name}.svg").read_text("utf-8")
        require_plain_picture(svg)
        assert "/tmp/" not in svg


def test_a_wrong_picture_is_found(recorder: ModuleType, project: Path, tmp_path: Path) -> None:
    folder = tmp_path / "recordings"
    shutil.copytree(project / "docs" / "recordings", folder)
    passed, failed = folder / "repro-check-pass.svg", folder / "repro-check-fail.svg"
    failed.write_text(passed.read_text())
    passed.write_text(passed.read_text()[:-10])
    (folder / "train.svg").unlink()
    (folder / "doctor.svg").write_text("<html/>")
    (folder / "old.svg").write_text("<svg/>")
    faults = "\n".join(recorder.check(folder))
    for fault in (
        "repro-check-pass.svg: is no picture",
        "repro-check-fail.svg: does not show '$ mltune repro-check -- python train.py'",
        "repro-check-fail.svg: does not show 'cause: hash-seed'",
        "train.svg: is no picture", "doctor.svg: is no picture", "old.svg: nothing draws it",
    ):  # fmt: skip
        assert fault in faults


@pytest.mark.parametrize("arguments", [("recheck",), ("repro-check", "--run", "2", "--", "x")])
def test_a_command_that_is_gone_is_found(
    recorder: ModuleType, project: Path, arguments: tuple[str, ...]
) -> None:
    recording = recorder.Recording("train", arguments, (0,), "done: last loss")
    faults = recorder.faults_of(recording, project / "docs" / "recordings")
    assert f"$ mltune {' '.join(arguments)}: there is no such command" in faults
