"""`repro_output/`: only a whole check replaces what an earlier one left there."""

from pathlib import Path

import pytest

from mltune_cli.errors import UsageError
from mltune_cli.reproduction import output_folder as module
from mltune_cli.reproduction.output_folder import MARK, output_folder
from mltune_cli.run_folder import LOCK, remove


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != LOCK
    }


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The output of an earlier check."""
    folder = tmp_path / "repro_output"
    with output_folder(folder):
        (folder / "run-1").mkdir()
        (folder / "run-1" / "log").write_text("earlier")
        (folder / "report.json").write_text("earlier")
    return folder


def test_a_whole_check_replaces_the_earlier_one(earlier: Path) -> None:
    with output_folder(earlier):
        assert not (earlier / "report.json").exists()
        (earlier / "report.json").write_text("new")
    assert {name: text for name, text in tree(earlier).items() if name != MARK} == {
        "report.json": "new"
    }


@pytest.mark.parametrize("end", [UsageError("wrong"), KeyboardInterrupt(), SystemExit(1)])
def test_a_check_that_does_not_end_puts_everything_back(earlier: Path, end: BaseException) -> None:
    before = tree(earlier)

    def check() -> None:
        with output_folder(earlier):
            (earlier / "run-1").mkdir()
            (earlier / "run-1" / "log").write_text("new")
            raise end

    with pytest.raises(type(end)):
        check()
    assert tree(earlier) == before


def test_what_a_killed_check_left_is_put_in_order_first(earlier: Path) -> None:
    """SIGKILL lets nobody put anything back; the next check does."""
    before = tree(earlier)
    killed = output_folder(earlier)
    killed.__enter__()
    (earlier / "half").write_text("new")
    (earlier / ".lock").unlink()

    def check() -> None:
        with output_folder(earlier):
            raise UsageError("wrong")

    with pytest.raises(UsageError, match="wrong"):
        check()
    assert tree(earlier) == before
    killed.gen.close()  # type: ignore[attr-defined]


def test_two_checks_do_not_share_a_folder(earlier: Path) -> None:
    before = tree(earlier)
    with output_folder(earlier):
        (earlier / "report.json").write_text("first")
        with pytest.raises(UsageError, match="another run is writing into it"):
            output_folder(earlier).__enter__()
        assert (earlier / "report.json").read_text() == "first"
    assert tree(earlier) != before


def test_a_new_folder_that_came_to_nothing_is_gone(tmp_path: Path) -> None:
    def check() -> None:
        with output_folder(tmp_path / "new"):
            raise UsageError("wrong")

    with pytest.raises(UsageError, match="wrong"):
        check()
    assert not (tmp_path / "new").exists()


def test_somebody_elses_folder_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds files that repro-check did not write"):
        output_folder(tmp_path).__enter__()
    assert tree(tmp_path) == {"thesis.tex": "years of work"}


def test_a_finished_check_stands_though_the_earlier_one_was_not_yet_removed(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(entry: Path) -> None:
        if entry.is_dir():
            (entry / "report.json").unlink()
            raise KeyboardInterrupt
        remove(entry)

    monkeypatch.setattr(module, "remove", half)
    with pytest.raises(KeyboardInterrupt), output_folder(earlier):
        (earlier / "report.json").write_text("finished")
    monkeypatch.undo()
    with pytest.raises(UsageError), output_folder(earlier):
        raise UsageError("the next one has a wrong recipe")
    assert tree(earlier) == {"report.json": "finished", MARK: (earlier / MARK).read_text()}
