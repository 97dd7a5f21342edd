"""The bundled data set: its formats, its counts, and that its generator still writes it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "repro_dataset"
FILES = {"train.jsonl": 480, "val.jsonl": 60}
SOURCES = ("generate.py", "phrases.py", "world.py")
FORMATS = {
    ("question", "answer"),
    ("prompt", "completion"),
    ("instruction", "input", "output"),
    ("messages",),
    ("conversations",),
    ("text",),
}


def read_rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text("utf-8").splitlines()]


def turns_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    if "messages" in row:
        return [(turn["role"], turn["content"]) for turn in row["messages"]]
    names = {"system": "system", "human": "user", "gpt": "assistant"}
    return [(names[turn["from"]], turn["value"]) for turn in row["conversations"]]


def requests_of(row: dict[str, Any]) -> list[str]:
    """What the row asks, without what it answers."""
    if "messages" in row or "conversations" in row:
        return [text for role, text in turns_of(row) if role == "user"]
    if "instruction" in row:
        return ["\n".join((row["instruction"], row["input"]))]
    return [row.get("question") or row.get("prompt") or row["text"]]


def answers_of(row: dict[str, Any]) -> list[str]:
    if "messages" in row or "conversations" in row:
        return [text for role, text in turns_of(row) if role == "assistant"]
    return [row[key] for key in ("answer", "completion", "output", "text") if key in row]


def copy_sources(tmp_path: Path) -> Path:
    for name in SOURCES:
        shutil.copy(FOLDER / name, tmp_path / name)
    return tmp_path / "generate.py"


def run_generator(script: Path, hash_seed: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C",
    }
    command = [sys.executable, str(script), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("name", "least"), FILES.items())
def test_every_row_is_in_exactly_one_format_and_all_formats_occur(name: str, least: int) -> None:
    rows = read_rows(name)
    assert len(rows) >= least
    counts = Counter(tuple(row) for row in rows)
    assert set(counts) == FORMATS
    assert min(counts.values()) >= least // 8


@pytest.mark.parametrize("name", FILES)
def test_rows_hold_non_empty_text(name: str) -> None:
    for row in read_rows(name):
        for key, value in row.items():
            if key in ("messages", "conversations"):
                assert all(text.strip() == text and text for _, text in turns_of(row))
            elif key != "input":
                assert isinstance(value, str)
                assert value.strip(), row


@pytest.mark.parametrize("name", FILES)
def test_turns_alternate_after_an_optional_system_prompt(name: str) -> None:
    lengths = Counter()
    systems = 0
    for row in read_rows(name):
        if "messages" not in row and "conversations" not in row:
            continue
        roles = [role for role, _ in turns_of(row)]
        if roles[0] == "system":
            systems += 1
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        lengths[len(roles) // 2] += 1
    assert systems >= 5
    assert set(lengths) == {1, 2, 3}


def test_nothing_is_asked_twice_within_or_across_the_files() -> None:
    asked = Counter(text for name in FILES for row in read_rows(name) for text in requests_of(row))
    assert len(asked) >= 800
    assert [text for text, count in asked.items() if count > 1] == []


def test_a_prompt_and_its_completion_join_into_one_text() -> None:
    pairs = [row for name in FILES for row in read_rows(name) if "prompt" in row]
    assert len(pairs) >= 60
    for row in pairs:
        assert not row["prompt"].endswith((" ", "\n"))
        assert row["completion"].startswith(" ")


def test_answers_run_from_one_word_to_several_sentences() -> None:
    answers = [text for name in FILES for row in read_rows(name) for text in answers_of(row)]
    words = [len(text.split()) for text in answers]
    assert min(words) == 1
    assert max(words) >= 20
    assert sum(count == 1 for count in words) >= 20
    assert sum(text.count(". ") >= 2 for text in answers) >= 20


def test_some_inputs_are_empty_and_some_are_not() -> None:
    inputs = [row["input"] for row in read_rows("train.jsonl") if "input" in row]
    assert min(sum(not text for text in inputs), sum(bool(text) for text in inputs)) >= 10


def test_the_files_are_utf8_lines_with_some_letters_beyond_ascii() -> None:
    for name in FILES:
        data = (FOLDER / name).read_bytes()
        assert data.endswith(b"}\n")
        assert b"\r" not in data
        assert not data.isascii()


def test_checksums_are_right_and_complete() -> None:
    lines = (FOLDER / "SHA256SUMS").read_text("utf-8").splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(sums) == set(FILES)
    for name, digest in sums.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_the_generator_writes_the_committed_bytes(tmp_path: Path, hash_seed: str) -> None:
    script = copy_sources(tmp_path)
    done = run_generator(script, hash_seed)
    assert (done.returncode, done.stderr) == (0, "")
    for name in (*FILES, "SHA256SUMS"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name
    assert run_generator(script, hash_seed, "--check").returncode == 0


@pytest.mark.parametrize("change", ["edit", "delete"])
def test_check_reports_a_file_that_differs(tmp_path: Path, change: str) -> None:
    script = copy_sources(tmp_path)
    assert run_generator(script, "0").returncode == 0
    target = tmp_path / "val.jsonl"
    if change == "edit":
        target.write_bytes(target.read_bytes() + b"\n")
    else:
        target.unlink()
    done = run_generator(script, "0", "--check")
    assert done.returncode == 1
    assert "val.jsonl is not what generate.py writes" in done.stdout
