"""The run folder: who may write into it, which number is free, and its manifest and logs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.bundled import bundled_data, bundled_model, bundled_recipe
from mltune_cli.digests import canonical_json, file_digest, files_digest, json_digest
from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.manifest import MANIFEST_FILE, read_manifest
from mltune_cli.run_folder import (
    RUN_ENTRIES,
    JsonLog,
    claim_folder,
    claim_next_folder,
    require_writable_target,
)


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def claim(folder: Path, overwrite: bool = False) -> None:
    """Claim a folder and let go of it at once, as a process does that ends."""
    claim_folder(folder, overwrite).close()


def entries(folder: Path) -> list[str]:
    """What is in a run folder besides its lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def an_earlier_run(folder: Path) -> Path:
    folder.mkdir()
    for name in ("manifest.json", "training_log.jsonl"):
        (folder / name).write_text("{}\n")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"old")
    return folder


def test_a_new_and_an_empty_folder_may_be_used(tmp_path: Path) -> None:
    """Asking changes nothing; claiming makes the folder with those above it."""
    target = tmp_path / "a" / "b"
    require_writable_target(target, overwrite=False)
    assert listing(tmp_path) == {}
    claim(target)
    assert entries(target) == []
    claim(target)


@pytest.mark.parametrize(
    ("target", "overwrite", "problem"),
    [
        ("file", True, "is a file, and a run needs a folder; choose another"),
        ("file/below", True, "cannot be written: Not a directory"),
        ("file/below/deeper", False, "cannot be written: Not a directory"),
        ("x" * 300, False, "cannot be read: File name too long"),
        ("foreign", False, "holds a.txt, which is no run of mltune; choose an empty folder"),
        ("foreign", True, "holds a.txt, which is no run of mltune; choose an empty folder"),
        ("mixed", True, ("holds a run and also a.txt, which mltune did not write; move it away, or "
                         "choose another folder")),
        ("run", False, "holds another run; pass --"),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_is_refused_and_left_alone(
    tmp_path: Path, target: str, overwrite: bool, problem: str
) -> None:
    """Foreign files are safe even from `--overwrite`."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "a.txt").write_text("mine")
    an_earlier_run(tmp_path / "run")
    (an_earlier_run(tmp_path / "mixed") / "a.txt").write_text("mine")
    before = listing(tmp_path)
    for refuse in (require_writable_target, claim_folder):
        with pytest.raises(UsageError) as caught:
            refuse(tmp_path / target, overwrite)
        assert caught.value.message.startswith(f"{tmp_path / target}: {problem}")
        assert listing(tmp_path) == before


def test_overwrite_replaces_an_earlier_run_whole(tmp_path: Path) -> None:
    run = an_earlier_run(tmp_path / "run")
    require_writable_target(run, overwrite=True)
    assert (run / "adapter").is_dir()
    claim(run, overwrite=True)
    assert entries(run) == []


def test_overwrite_replaces_a_run_that_was_killed_while_writing_its_manifest(
    tmp_path: Path,
) -> None:
    run = an_earlier_run(tmp_path / "run")
    (run / "manifest.json.part").write_text("{")
    claim(run, overwrite=True)
    assert entries(run) == []


def test_overwrite_follows_no_link_out_of_the_folder(tmp_path: Path) -> None:
    """A link inside a run is removed; what it points at stays."""
    run, precious = an_earlier_run(tmp_path / "run"), tmp_path / "precious"
    precious.mkdir()
    (precious / "a.txt").write_text("mine")
    (run / "checkpoints").symlink_to(precious)
    claim(run, overwrite=True)
    assert entries(run) == []
    assert (precious / "a.txt").read_text() == "mine"


def test_a_finished_run_holds_nothing_that_overwrite_would_refuse(finished_run: Path) -> None:
    names = {path.name for path in finished_run.iterdir()}
    assert MANIFEST_FILE in names
    assert names <= RUN_ENTRIES
    require_writable_target(finished_run, overwrite=True)


def test_the_next_folder_follows_the_highest_number(tmp_path: Path) -> None:
    base = tmp_path / "deep" / "runs"
    assert claim_next_folder(base, "smoke") == base / "smoke-001"
    (base / "smoke-007").write_text("a file takes its number, too")
    (base / "other-050").mkdir()
    (base / "smoke-0x9").mkdir()
    (base / "smoke-010-old").mkdir()
    assert claim_next_folder(base, "smoke") == base / "smoke-008"
    (base / "smoke-1234").mkdir()
    assert claim_next_folder(base, "smoke") == base / "smoke-1235"
    assert claim_next_folder(base, "a.c") == base / "a.c-001"


def test_processes_that_ask_at_once_get_folders_of_their_own(tmp_path: Path) -> None:
    """Forty claims by eight processes that start together: forty folders, without a gap."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mltune_cli.run_folder import claim_next_folder\n"
        "sys.stdin.readline()\n"
        "for _ in range(5):\n"
        "    print(claim_next_folder(Path(sys.argv[1]), 'r').name)\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / "runs"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(8)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    claimed = [name for process in processes for name in process.communicate()[0].split()]
    assert sorted(claimed) == [f"r-{number:03d}" for number in range(1, 41)]


def test_a_runs_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UsageError) as caught:
        claim_next_folder(tmp_path / "runs", "r")
    assert caught.value.message == f"{tmp_path / 'runs'}: cannot be written: File exists"


def test_a_log_is_whole_lines_at_every_moment(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    for step in range(3):
        log.write({"step": step, "text": "é\n"})
        lines = (tmp_path / "log.jsonl").read_bytes().splitlines(keepends=True)
        assert len(lines) == step + 1
        assert all(line.endswith(b"}\n") for line in lines)
    log.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_verdict() -> None:
    log = JsonLog(Path("/dev/full"))
    with pytest.raises(NoVerdictError) as caught:
        log.write({"step": 1})
    assert caught.value.message == "/dev/full: cannot be written: No space left on device"
    with pytest.raises(OSError, match="No space"):
        log.close()


def test_a_manifest_is_read_as_it_was_written(finished_run: Path, tmp_path: Path) -> None:
    manifest = read_manifest(finished_run)
    manifest.write(tmp_path)
    assert read_manifest(tmp_path) == manifest
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_FILE]
    assert manifest.result.status == "finished"
    assert manifest.environment_class == manifest.environment.environment_class()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is not a run: it holds no manifest.json"),
        (b"", "is damaged: the file: Invalid JSON"),
        (b"{", "is damaged: the file: Invalid JSON"),
        (b"[]", "is damaged: the file: "),
        (b"{}", "is damaged: mltune: Field required"),
        (b"\xff", "cannot be read: "),
    ],
)
def test_a_damaged_manifest_is_one_sentence(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_manifest(tmp_path)
    assert caught.value.message.startswith(str(tmp_path))
    assert problem in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"variables": {"PATH": "x"}}, True),
        ({"python": "3.99"}, True),
        ({"packages": {"torch": "9"}}, False),
        ({"processor": "another"}, False),
        ({"instruction_set": "another"}, False),
        ({"settings": {"threads": 99}}, False),
        ({"gpu": "another"}, False),
        ({"driver": "another"}, False),
    ],
)
def test_the_environment_class_is_of_what_changes_bits(
    finished_run: Path, change: dict[str, Any], same: bool
) -> None:
    facts = read_manifest(finished_run).environment
    other = facts.model_copy(update=change)
    assert (other.environment_class() == facts.environment_class()) is same


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.floats(allow_nan=False,
              allow_infinity=False)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(value=st.dictionaries(st.text(), JSON, max_size=4))
def test_a_digest_sees_content_and_not_the_order_of_keys(value: dict[str, Any]) -> None:
    turned = dict(reversed(value.items()))
    assert json_digest(turned) == json_digest(value)
    assert json.loads(canonical_json(value)) == value
    assert json_digest([value]) != json_digest(value)


def test_a_digest_of_no_number_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            json_digest({"loss": value})


def test_file_digests_see_content_and_relative_names(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x").write_bytes(b"1" * 5_000_000)
        (tmp_path / folder / "y").write_bytes(b"2")
    (tmp_path / "c" / "x").write_bytes(b"1" * 4_999_999 + b"0")

    def digest(folder: str, *names: str) -> str:
        root = tmp_path / folder
        return files_digest(root, [root / name for name in names])

    assert digest("a", "x", "y") == digest("b", "y", "x")
    assert digest("a", "x", "y") != digest("c", "x", "y")
    assert digest("a", "x") != digest("a", "x", "y")
    assert file_digest(tmp_path / "a" / "x") == file_digest(tmp_path / "b" / "x")
    assert file_digest(tmp_path / "a" / "x").startswith("xxh3_128:")


def test_bundled_things_are_found_by_name_alone() -> None:
    assert bundled_recipe("smoke").is_file()
    assert (bundled_model("mltune/tiny") / "model.safetensors").is_file()
    assert bundled_data("mltune/repro_dataset/train.jsonl").is_file()
    with pytest.raises(UsageError, match="no such bundled data; there is mltune/repro_dataset/"):
        bundled_data("mltune/repro_dataset/../../pyproject.toml")
    with pytest.raises(UsageError, match="no such bundled model"):
        bundled_model("mltune/../x")
