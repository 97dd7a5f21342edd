"""The pictures of the README: drawn from the real commands, and nothing but pictures."""

import html
import importlib.util
import re
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


def words_of(svg: str) -> str:
    return "\n".join(
        html.unescape(re.sub("<[^>]+>", "", text)).replace("\xa0", " ")
        for text in re.findall(r"<text[^>]*>.*?</text>", svg)
    )


def require_plain_picture(svg: str) -> None:
    root = ElementTree.fromstring(svg)
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert not names & {"script", "image", "foreignObject", "use", "a"}
    # Namespaces and a comment aside, nothing is fetched from anywhere.
    assert "url(http" not in svg
    assert "@font-face" not in svg


def test_a_command_is_recorded_as_it_printed(recorder: ModuleType, tmp_path: Path) -> None:
    recording = recorder.Recording("version", ("--version",), (0,))
    svg = recorder.record(recording, tmp_path).read_text(encoding="utf-8")
    require_plain_picture(svg)
    assert "$ mltune --version" in words_of(svg)
    assert re.search(r"mltune \d+\.\d+", words_of(svg))
    # The same output gives the same picture.
    assert recorder.record(recording, tmp_path).read_text(encoding="utf-8") == svg


def test_a_command_that_ends_otherwise_is_no_picture(recorder: ModuleType, tmp_path: Path) -> None:
    wrong = recorder.Recording("wrong", ("repro-check", "--config", "absent.yaml"), (0,))
    with pytest.raises(SystemExit, match="ended with 2"):
        recorder.record(wrong, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("doctor", "$ mltune doctor"),
        ("train", "done: last loss"),
        ("repro-check-pass", "reproducible"),
        ("repro-check-fail", "cause: hash-seed"),
    ],
)
def test_the_readmes_pictures_are_there(name: str, expected: str, project: Path) -> None:
    svg = (project / "docs" / "recordings" / f"{name}.svg").read_text(encoding="utf-8")
    require_plain_picture(svg)
    assert expected in words_of(svg)
    assert f"docs/recordings/{name}.svg" in (project / "README.md").read_text(encoding="utf-8")
    assert "/tmp/" not in svg
