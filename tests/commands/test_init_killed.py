"""`mltune init` killed at each of its changes: what is there is whole, and another time goes on."""

import subprocess
import sys
from pathlib import Path

# `init` again and again, each time in a process of its own that has everything imported already.
# Given a number, the process is killed before that change below the folder that the project is to
# lie in. A file that is opened to be written counts twice: once opened, there is nothing in it.
DRIVER = """
import itertools, os, signal, sys
from pathlib import Path
from mltune_cli.cli import main

CHANGES = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

def run(place):
    sys.argv[1:] = ["init", str(place / "project")]
    try:
        main()
    except SystemExit as end:
        return end.code

def init(place, killed_at=None):
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    numbers = itertools.count(1)

    def die_in_time(event, arguments):
        if event not in CHANGES or not str(arguments[0]).startswith(str(place)):
            return
        if event == "open" and not arguments[2] & WRITING:
            return
        if next(numbers) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "open" and next(numbers) == killed_at:
            os.close(os.open(arguments[0], arguments[2]))
            os.kill(os.getpid(), signal.SIGKILL)

    if killed_at is not None:
        sys.addaudithook(die_in_time)
    os._exit(run(place))  # Python's own end takes longer than all the rest

root = Path(sys.argv[2])
again = sys.argv[1] == "again"
run(root / "whole")  # imports everything
if again:
    sys.exit(any([init(place) for place in sorted(root.iterdir())]))
ends = (init(root / f"killed-{number:03}", number) for number in itertools.count(1))
sys.exit(next(end for end in ends if end != -signal.SIGKILL))
"""


def files_below(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_kill_leaves_whole_files_and_another_time_goes_on(tmp_path: Path) -> None:
    driver, root = tmp_path / "driver.py", tmp_path / "projects"
    driver.write_text(DRIVER)

    def drive(what: str) -> None:
        subprocess.run([sys.executable, driver, what, root], cwd=tmp_path, check=True,
                       capture_output=True)  # fmt: skip

    drive("killed")
    expected = files_below(root / "whole" / "project")
    *killed, survivor = sorted(root.glob("killed-*"))
    assert files_below(survivor / "project") == expected
    # Of each file at least: its draft opened, and empty, then whole, then moved to its place.
    assert len(expected) > 5
    assert len(killed) >= 4 * len(expected)
    whole, drafts = set(), set()
    for place in killed:
        for name, content in files_below(place / "project").items():
            if name in expected:
                assert content == expected[name]
                whole.add(name)
            else:
                assert name.endswith(".mltune-part")
                drafts.add(name)
    assert whole == expected.keys()
    assert len(drafts) == len(expected)

    drive("again")
    for place in killed:
        assert files_below(place / "project") == expected, place.name
