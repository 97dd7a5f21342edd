"""The installed command: its flags, its start, its exit codes, its end by signals and pipes."""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mltune_cli.commands.export
from mltune_cli import cli
from mltune_cli.errors import (
    ExitCode,
    MltuneError,
    NoVerdictError,
    RecipeValueError,
    StoppedBySignalError,
    UsageError,
)

SNAPSHOTS = Path(__file__).parent / "snapshots"
COMMANDS = ("train", "repro-check", "diff", "export")
HEAVY = ("torch", "transformers", "peft", "datasets", "docker", "pandas", "pyarrow", "rich")


def assert_frozen(name: str, text: str) -> None:
    """Compare a text with its snapshot; `UPDATE_SNAPSHOTS=1` rewrites the snapshot instead."""
    path = SNAPSHOTS / name
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return
    frozen = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = difflib.unified_diff(
        frozen.splitlines(True), text.splitlines(True), f"snapshots/{name}", "now"
    )
    assert text == frozen, (
        f"{name} changed. If that is wanted, run UPDATE_SNAPSHOTS=1 pytest tests/test_cli.py and "
        f"commit the snapshot:\n{''.join(lines)}"
    )


def locked_version(package: str) -> str:
    lock = (Path(__file__).parent.parent / "requirements.txt").read_text(encoding="utf-8")
    found = re.search(rf"(?m)^{package}==(\S+)", lock)
    assert found is not None
    return found[1]


def help_commands(mltune: Any, cwd: Path) -> tuple[str, ...]:
    """Every command that `mltune --help` lists."""
    listed = mltune("--help", cwd=cwd, env={"COLUMNS": "80"}).stdout.partition("Commands:\n")[2]
    return tuple(re.findall(r"(?m)^  ([a-z][a-z-]*)  ", listed))


def test_the_flags_are_those_of_the_snapshots(mltune: Any, tmp_path: Path) -> None:
    """The whole `--help` of every command: no flag comes, goes or changes without notice."""
    if version("typer") != locked_version("typer"):
        pytest.skip("another typer lays the help out in another way")
    commands = help_commands(mltune, tmp_path)
    assert set(commands) >= set(COMMANDS)
    for command in ("", *commands):
        arguments = [command, "--help"] if command else ["--help"]
        shown = mltune(*arguments, cwd=tmp_path, env={"COLUMNS": "80"})
        assert (shown.code, shown.stderr) == (0, "")
        assert_frozen(f"help-{command or 'mltune'}.txt", shown.stdout)
    if not os.environ.get("UPDATE_SNAPSHOTS"):
        names = {path.stem.removeprefix("help-") for path in SNAPSHOTS.glob("help-*.txt")}
        assert names == {"mltune", *commands}, "a snapshot is left over or missing"


def test_the_dry_run_shows_every_value_with_its_origin(mltune: Any, tmp_path: Path) -> None:
    """All four layers at once, as one golden text; and the text is itself a recipe."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model:\n  name_or_path: mltune/tiny\ndata:\n  train: mltune/repro_dataset/train.jsonl\n"
        "train:\n  max_steps: 9\n  learning_rate: 2e-4\nlog: {every_steps: epoch}\n"
    )
    shown = mltune(
        "train", "--dry-run", "--config", "mine.yaml", "--max_steps", "7", "--seed=3",
        "--set", "train.learning_rate=1e-3", "--set", "adapter.target_modules=[q_proj, v_proj]",
        cwd=tmp_path,
    )  # fmt: skip
    assert (shown.code, shown.stderr) == (0, "")
    assert_frozen("dry-run.txt", shown.stdout)
    (tmp_path / "shown.yaml").write_text(shown.stdout)
    again = mltune("train", "--dry-run", "--config", "shown.yaml", cwd=tmp_path)

    def values(text: str) -> list[str]:
        return [line.partition("#")[0].rstrip() for line in text.splitlines()]

    assert values(again.stdout) == values(shown.stdout)
    assert not (tmp_path / "runs").exists()


MODULES_PROBE = """
import runpy, sys, json
sys.argv = ["mltune", *sys.argv[1:]]
try:
    runpy.run_module("mltune_cli", run_name="__main__")
except SystemExit as end:
    code = end.code
roots = {name.partition(".")[0] for name in sys.modules}
print(json.dumps([code, sorted(roots)]), file=sys.stderr)
"""


def loaded_modules(*arguments: str) -> tuple[int, set[str]]:
    done = subprocess.run(
        [sys.executable, "-c", MODULES_PROBE, *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, modules = json.loads(done.stderr.splitlines()[-1])
    return code, set(modules)


def test_help_and_mistakes_import_nothing_heavy(mltune: Any, tmp_path: Path) -> None:
    """`--help`, `--version` and a mistake answer at once: none of the large packages is read."""
    commands = help_commands(mltune, tmp_path)
    assert len(commands) >= 4
    cases = [(["--help"], 0), (["--version"], 0), ([], 2), (["no-such-command"], 2)]
    cases += [([command, "--help"], 0) for command in commands]
    cases += [([command, "--no-such-flag"], 2) for command in commands]
    for arguments, expected in cases:
        code, modules = loaded_modules(*arguments)
        assert code == expected, arguments
        assert "typer" in modules, "the probe sees no modules at all"
        assert not modules & set(HEAVY), arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--set", "train.lr=1"],
        ["train", "--config", "no-such.yaml"],
        ["train", "--dry-run"],
        ["repro-check", "--set", "nothing"],
        ["export", "no/such-model", "out"],
    ],
)
def test_what_needs_no_training_imports_nothing_heavy(arguments: list[str]) -> None:
    """A wrong recipe is answered by the command itself, which never imports torch."""
    code, modules = loaded_modules(*arguments)
    assert code == (0 if "--dry-run" in arguments else 2)
    assert "pydantic" in modules or "export" in arguments
    assert not modules & set(HEAVY)


def test_the_version_is_the_packages(mltune: Any, tmp_path: Path) -> None:
    shown = mltune("--version", cwd=tmp_path)
    assert (shown.code, shown.stdout, shown.stderr) == (0, f"mltune {version('mltune')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? (see mltune --help)"),
        (["train", "--sed", "3"], "No such option: --sed"),
        (["train", "--seed", "x"], "Invalid value for '--seed'"),
        (["train", "--seed"], "Option '--seed' requires an argument"),
        (["train", "recipe.yaml"], "Got unexpected extra argument"),
        (["diff", "a"], "Missing argument 'B' (see mltune diff --help)"),
        (["repro-check", "--runs", "0"], "Invalid value for '--runs'"),
        (["repro-check", "--runs", "1"], "--runs 1: there is nothing to compare with"),
        (["repro-check", "--timeout", "-1"], "--timeout: must be more than 0 seconds"),
        (["repro-check", "--timeout", "0"], "--timeout: must be more than 0 seconds"),
    ],
)
def test_a_mistake_in_the_command_line_is_one_sentence(
    mltune: Any, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = mltune(*arguments, cwd=tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"mltune: {sentence}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_without_a_command_the_help_is_shown_and_the_code_is_that_of_a_mistake(
    mltune: Any, tmp_path: Path
) -> None:
    done = mltune(cwd=tmp_path)
    assert (done.code, done.stdout) == (2, "")
    assert "Commands:" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UsageError("wrong"), 2, "mltune: wrong\n"),
        (RecipeValueError("a.b", "is wrong"), 2, "mltune: a.b: is wrong\n"),
        (NoVerdictError("broken"), 125, "mltune: broken\n"),
        (MltuneError("odd"), 125, "mltune: odd\n"),
        (StoppedBySignalError(ExitCode.INTERRUPTED), 130, "mltune: interrupted\n"),
        (StoppedBySignalError(ExitCode.TERMINATED), 143, "mltune: terminated\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 125, ""),
        (SystemExit(1), 125, ""),
        (ZeroDivisionError("a\nb"), 125,
         ("mltune: internal error, please report it: ZeroDivisionError: a b "
          "(MLTUNE_TRACEBACK=1 shows where)\n")),
        (AssertionError(), 125, None),
        (EOFError(), 125, None),
        (MemoryError(), 125, None),
        (RecursionError("deep"), 125, None),
        (OSError(28, "No space left on device"), 125, None),
    ],
)  # fmt: skip
def test_every_way_to_fail_has_its_code(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str | None
) -> None:
    """A crash is never a 1, which means "not reproducible"; and it is one sentence."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(mltune_cli.commands.export, "export", fail)
    monkeypatch.setattr("mltune_cli.cli.program._discard_output", lambda: None)
    monkeypatch.setattr("mltune_cli.commands.stopping.raise_on_signals", lambda: None)
    result = CliRunner().invoke(cli.app, ["export", "mltune/tiny", "out"])
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if said is None:
        assert result.stderr.startswith("mltune: internal error, please report it: ")
        assert result.stderr.count("\n") == 1
    else:
        assert result.stderr == said


def test_a_traceback_is_shown_on_request_and_the_code_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(mltune_cli.commands.export, "export", fail)
    monkeypatch.setattr("mltune_cli.commands.stopping.raise_on_signals", lambda: None)
    monkeypatch.setenv("MLTUNE_TRACEBACK", "1")
    result = CliRunner().invoke(cli.app, ["export", "mltune/tiny", "out"])
    assert result.exit_code == 125
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize("code", list(ExitCode))
def test_a_commands_own_code_is_the_process_s(
    monkeypatch: pytest.MonkeyPatch, code: ExitCode
) -> None:
    monkeypatch.setattr(mltune_cli.commands.export, "export", lambda *_: code)
    monkeypatch.setattr("mltune_cli.commands.stopping.raise_on_signals", lambda: None)
    result = CliRunner().invoke(cli.app, ["export", "mltune/tiny", "out"])
    assert (result.exit_code, result.stderr) == (code, "")


def test_the_codes_are_those_of_the_contract() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "OK": 0, "NEGATIVE": 1, "USAGE": 2, "NO_VERDICT": 125, "INTERRUPTED": 130,
        "TERMINATED": 143,
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--dry-run"], ["train", "--help"]]
)
def test_an_output_that_nobody_reads_is_no_negative_verdict(
    mltune_command: Path, tmp_path: Path, arguments: list[str]
) -> None:
    """`mltune ... | head -1`: neither a 1, nor a traceback, nor Python's complaint at its end."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [mltune_command, *arguments], cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (125, b"")


def test_a_verdict_that_nobody_reads_is_no_negative_verdict(
    mltune_command: Path, tmp_path: Path, finished_run: Path
) -> None:
    """rich ends a process whose output is closed with 1, which would read as "different"."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [mltune_command, "diff", finished_run, finished_run],
            cwd=tmp_path, stdout=write_end, stderr=subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (125, b"")


def workers_of(marker: str) -> list[int]:
    """Living processes whose environment holds the marker, and that are our workers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if marker.encode() in environment and b"mltune_cli.training.worker" in command:
            found.append(int(folder.name))
    return found


@pytest.fixture
def long_run(mltune_command: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running `mltune train` that has taken its first steps, and the mark of its worker."""
    marker = f"MLTUNE_TEST_MARK={tmp_path.name}-{os.getpid()}"
    name, _, value = marker.partition("=")
    process = subprocess.Popen(
        [mltune_command, "train", "--set", "evaluate.every_steps=0", "--max_steps", "1000000"],
        cwd=tmp_path, env={**os.environ, name: value}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 2/"):
            break
    assert process.poll() is None
    assert len(workers_of(marker)) == 1
    try:
        yield process, marker
    finally:
        process.kill()
        process.communicate()
        for worker in workers_of(marker):
            os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_command_and_worker(
    long_run: tuple[subprocess.Popen[str], str], number: int, code: int
) -> None:
    """Ctrl-C and SIGTERM: their code, one sentence, and no worker that goes on in secret."""
    process, marker = long_run
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert stdout == ""
    assert re.fullmatch(
        r"mltune: stopped after step \d+; go on with --resume", stderr.splitlines()[-1]
    )
    assert "Traceback" not in stderr
    assert workers_of(marker) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_worker_does_not_outlive_a_killed_command(
    long_run: tuple[subprocess.Popen[str], str],
) -> None:
    """`kill -9` leaves no time to stop the worker: it ends by itself when nobody listens."""
    process, marker = long_run
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while workers_of(marker):
        assert time.monotonic() < deadline, "the worker goes on without its command"
        time.sleep(0.1)
