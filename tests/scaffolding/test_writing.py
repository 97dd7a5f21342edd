"""Writing a project: every step of it fails once, and each time the folder is as it was before."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mltune_cli.errors import ExitCode, MltuneError, StoppedBySignalError, UsageError
from mltune_cli.scaffolding import writing
from mltune_cli.scaffolding.plan import plan_files
from mltune_cli.scaffolding.project_files import ProjectFile, project_files
from mltune_cli.scaffolding.writing import write_project

FILES = (
    ProjectFile(".gitignore", b"/runs/\n__pycache__/\n", "list", adds_lines=True),
    ProjectFile("new/deep/file", b"deep\n", "new"),
    ProjectFile("old", b"new\n", "replaced"),
    ProjectFile("script", b"#!/bin/sh\n", "new", is_executable=True),
)


def state_of(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Every entry below a folder with its mode and content."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mode, path.read_bytes() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".gitignore").write_bytes(b"mine\n")
    (folder / "old").write_bytes(b"old\n")
    return folder


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str, fails_at: int, error: BaseException) -> (
    list[object]
):  # fmt: skip
    """Let the call of that number, of a function of `os`, raise instead."""
    real: Callable[..., object] = getattr(os, name)
    seen: list[object] = []

    def counted(*arguments: object, **keywords: object) -> object:
        seen.append(arguments)
        if len(seen) == fails_at:
            raise error
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, name, counted)
    return seen


def failure_of(step: Callable[[], object]) -> BaseException | None:
    try:
        step()
    except (MltuneError, StoppedBySignalError, KeyboardInterrupt) as error:
        return error
    return None


@pytest.mark.parametrize("error", [
    OSError(errno.EIO, "Input/output error"), StoppedBySignalError(ExitCode.TERMINATED),
    KeyboardInterrupt(),
], ids=lambda error: type(error).__name__)  # fmt: skip
@pytest.mark.parametrize("step", ["mkdir", "fsync", "link", "replace", "fchmod"])
def test_a_failure_at_any_step_is_taken_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    """Each step of writing fails in turn: at its first call, at its second, and so on."""
    before = state_of(folder)
    is_soft = step == "link" and isinstance(error, OSError)  # links have a substitute
    for number in range(1, 10):
        with monkeypatch.context() as patch:
            seen = calls_of(patch, step, number, error)
            failure = failure_of(lambda: write_project(folder, FILES, force=True))
        if failure is not None:
            assert len(seen) >= number
            assert not is_soft
            assert state_of(folder) == before
            continue
        if len(seen) >= number:
            assert is_soft
            assert (folder / "old.before-mltune").read_bytes() == b"old\n"
        break
    else:
        pytest.fail("the step never stopped failing")
    assert is_soft or number > 1, f"{step} is never called"
    assert (folder / "old").read_bytes() == b"new\n"


def test_a_folder_that_was_made_is_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls_of(monkeypatch, "fsync", 2, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(Exception, match="cannot be written: No space left on device"):
        write_project(tmp_path / "a" / "b", FILES)
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_nothing_is_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    done = write_project(folder, FILES, force=True)
    assert (folder / "old.before-mltune").read_bytes() == b"old\n"
    assert (folder / "new/deep/file").read_bytes() == b"deep\n"
    assert [file.action for file in done.files] == ["added to", "written", "replaced", "written"]
    assert not list(folder.rglob("*.mltune-part"))


def test_a_file_that_comes_meanwhile_is_not_overwritten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writing._write_draft

    def draft_and_more(*arguments: object) -> Path:
        made = real(*arguments)  # type: ignore[arg-type]
        (folder / "script").write_bytes(b"somebody else's")
        return made

    monkeypatch.setattr(writing, "_write_draft", draft_and_more)
    with pytest.raises(UsageError, match="was written by somebody else meanwhile"):
        write_project(folder, FILES, force=True)
    assert (folder / "script").read_bytes() == b"somebody else's"
    (folder / "script").unlink()
    contents = {name: content for name, (_, content) in state_of(folder).items()}
    assert contents == {".gitignore": b"mine\n", "old": b"old\n"}


def test_two_at_a_time_are_one_too_many(folder: Path) -> None:
    before = state_of(folder)
    held = os.open(folder, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another mltune init is writing there"):
        write_project(folder, FILES, force=True)
    os.close(held)
    assert state_of(folder) == before
    write_project(folder, FILES, force=True)


@pytest.mark.parametrize(("present", "wanted"), [
    (b"", b"/runs/\n__pycache__/\n"),
    (b"mine", b"mine\n/runs/\n__pycache__/\n"),
    (b"mine\r\n", b"mine\r\n/runs/\r\n__pycache__/\r\n"),
    (b"runs\n__pycache__\n", b"runs\n__pycache__\n"),
    (b"!/runs/\n", b"!/runs/\n__pycache__/\n"),  # somebody wants it tracked
    (b"\xff\n /runs/ \n", b"\xff\n /runs/ \n__pycache__/\n"),
])  # fmt: skip
def test_lines_of_a_list(folder: Path, present: bytes, wanted: bytes) -> None:
    (folder / ".gitignore").write_bytes(present)
    done = write_project(folder, FILES[:1])
    assert (folder / ".gitignore").read_bytes() == wanted
    assert (done.files[0].action == "unchanged") is (present == wanted)
    assert done.files[0].added_lines == wanted.count(b"\n") - len(present.splitlines())
    assert [path.name for path in folder.iterdir() if path.name != "old"] == [".gitignore"]


def test_a_plan_writes_nothing(folder: Path) -> None:
    before = state_of(folder)
    plan = plan_files(folder, FILES, force=True)
    assert [one.action for one in plan] == ["added to", "written", "replaced", "written"]
    with pytest.raises(UsageError, match="has old already"):
        plan_files(folder, FILES, force=False)
    assert state_of(folder) == before


@pytest.mark.parametrize("title", [
    "plain", "with space", "quo\"te'$HOME`id`", "back\\slash\\", "line\nbreak", "\udcff", "",
    "🙂 é", "*/ # <%= title %> {{ x }}",
])  # fmt: skip
def test_any_name_of_a_folder_gives_a_project(title: str, tmp_path: Path) -> None:
    import yaml

    from mltune_cli.imaging.dockerfile import parse_dockerfile
    from mltune_cli.recipe.layers import load_recipe

    files = {file.path: file for file in project_files(title, gpu=False, ci="github")}
    assert list(files) == sorted(files)
    dockerfile = files["Dockerfile"].content.decode()
    assert [c.sources for c in parse_dockerfile(dockerfile).copied[-2:]] == [
        ("recipe.yaml",), ("repro_dataset",),
    ]  # fmt: skip
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(files["recipe.yaml"].content)
    assert load_recipe(recipe, {}).recipe.train.max_steps == 20
    assert yaml.safe_load(files[".github/workflows/smoke-repro.yml"].content)["name"]


def test_the_recipe_trains_what_the_smoke_recipe_does(tmp_path: Path) -> None:
    """A project begins where `mltune repro-check` without a recipe is: the same run."""
    from mltune_cli.bundled import bundled_data
    from mltune_cli.recipe.layers import load_recipe

    write_project(tmp_path, project_files("x", gpu=False, ci="none"))
    mine = load_recipe(tmp_path / "recipe.yaml", {}).recipe.model_dump()
    smoke = load_recipe(None, {}).recipe.model_dump()
    for rows, name in (("train", "train.jsonl"), ("validation", "val.jsonl")):
        copied = Path(mine["data"].pop(rows))
        assert copied == tmp_path / "repro_dataset" / name
        bundled = bundled_data(f"mltune/repro_dataset/{name}")
        assert smoke["data"].pop(rows) in (str(bundled), f"mltune/repro_dataset/{name}")
        assert copied.read_bytes() == bundled.read_bytes()
    assert mine == smoke
