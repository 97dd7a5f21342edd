"""What the launcher leaves in the control folder, workers find there whole, whenever they look."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mltune_cli.errors import ExitCode
from mltune_cli.launching.control_folder import ControlFolder, Round


def test_nobody_has_asked_and_nothing_is_claimed_at_first(tmp_path: Path) -> None:
    control = ControlFolder(tmp_path)
    assert control.stop_code() is None
    assert control.run_folder() is None
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


@pytest.mark.parametrize("code", [ExitCode.INTERRUPTED, ExitCode.TERMINATED])
def test_a_request_to_stop_reaches_whoever_looks_later(tmp_path: Path, code: ExitCode) -> None:
    """Workers that are started in place of dead ones have a view of their own."""
    ControlFolder(tmp_path).ask_to_stop(code)
    for _ in range(2):
        assert ControlFolder(tmp_path).stop_code() is code


def test_the_last_request_counts(tmp_path: Path) -> None:
    control = ControlFolder(tmp_path)
    control.ask_to_stop(ExitCode.INTERRUPTED)
    control.ask_to_stop(ExitCode.TERMINATED)
    assert control.stop_code() is ExitCode.TERMINATED


def test_a_request_is_never_seen_half(tmp_path: Path) -> None:
    """A worker may look in the very moment in which the launcher writes."""
    writing, reading = ControlFolder(tmp_path), ControlFolder(tmp_path)
    is_done = threading.Event()

    def ask() -> None:
        for _ in range(1500):
            writing.ask_to_stop(ExitCode.INTERRUPTED)
            writing.ask_to_stop(ExitCode.TERMINATED)
        is_done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    seen = set()
    while not is_done.is_set():
        seen.add(reading.stop_code())
    thread.join(timeout=30)
    assert seen - {None} == {ExitCode.INTERRUPTED, ExitCode.TERMINATED}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    name=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=60
    )
)
def test_every_name_of_a_run_folder_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    """Spaces, line ends and letters of any script are allowed in a folder's name."""
    folder = Path("/runs") / name
    ControlFolder(tmp_path).remember_run_folder(folder)
    assert ControlFolder(tmp_path).run_folder() == folder


def test_each_round_of_workers_is_told_of_the_one_before(tmp_path: Path) -> None:
    rounds = [Round(2, 0), Round(2, 1), Round(10, 1)]
    found = [ControlFolder(tmp_path).begin_round(one) for one in rounds]
    assert found == [None, *rounds[:-1]]


@pytest.mark.parametrize(
    ("earlier", "later", "told"),
    [
        pytest.param(Round(2, 0), Round(2, 1), "a process died", id="replaced"),
        pytest.param(Round(2, 1), Round(1, 2), "a process died", id="its machine is lost"),
        pytest.param(Round(2, 3), Round(1, 0), "a process died", id="one fewer, another agent"),
        pytest.param(Round(1, 0), Round(2, 0), "more machines joined", id="joined"),
        # The agent of one machine may see the end of its workers before it sees who joins.
        pytest.param(Round(2, 0), Round(3, 1), "more machines joined", id="joined, and counted"),
        pytest.param(Round(2, 1), Round(2, 1), "processes went or came", id="neither is known"),
    ],
)
def test_a_restart_has_the_reason_that_can_be_known(
    earlier: Round, later: Round, told: str
) -> None:
    assert later.change_since(earlier) == told


def test_entries_do_not_disturb_each_other(tmp_path: Path) -> None:
    control = ControlFolder(tmp_path)
    control.job.write_text("{}")
    control.remember_run_folder(Path("run"))
    control.ask_to_stop(ExitCode.TERMINATED)
    control.begin_round(Round(1, 0))
    assert control.job.read_text() == "{}"
    assert control.run_folder() == Path("run"), "a relative name stays one"
    assert control.stop_code() is ExitCode.TERMINATED
    assert not list(tmp_path.glob("*.part"))


def test_looking_at_it_needs_nothing_heavy(tmp_path: Path) -> None:
    """Workers ask before torch is there, and the launcher need not have it at all."""
    program = (
        "import sys; from pathlib import Path\n"
        "from mltune_cli.launching.control_folder import ControlFolder\n"
        "ControlFolder(Path(sys.argv[1])).stop_code()\n"
        "print([name for name in ('torch', 'pydantic', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "[]\n", done.stderr
