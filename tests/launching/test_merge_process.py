"""The merging process: its notices, its explanations, its deaths.

A small stand-in takes the place of the merging module, so that no test waits for torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.launching.merge_process import MergeJob, run_merge
from mltune_cli.recipe.schema import Recipe

JOB = MergeJob(
    recipe=Recipe().with_values({"model.name_or_path": "mltune/tiny", "data.train": "x.jsonl"}),
    revision=None,
    model_digest="a",
    tokenizer_digest="b",
    run="run",
    adapter="run/adapter",
    output="draft",
    target="out",
)
PROLOGUE = """\
import json, os, signal, sys
job = json.loads(sys.stdin.buffer.read())
def send(**event):
    os.write(int(sys.argv[1]), json.dumps(event).encode() + b"\\n")
"""
Merge = Callable[..., list[str]]


@pytest.fixture
def merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Merge:
    """Run a merge whose module is the given program; return the notices."""

    def begin(program: str, on_notice: Callable[[str], None] | None = None) -> list[str]:
        package = tmp_path / "shadow" / "mltune_cli"
        (package / "training").mkdir(parents=True)
        for folder in (package, package / "training"):
            (folder / "__init__.py").write_text("")
        (package / "training" / "merging.py").write_text(PROLOGUE + program)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))
        notices: list[str] = []
        run_merge(JOB, on_notice or notices.append)
        return notices

    return begin


def test_it_gets_the_job_and_its_notices_are_passed_on(merge: Merge) -> None:
    program = """
send(kind="notice", message=job["target"])
print("noise " * 100_000)
send(kind="notice", message=os.environ["PYTHONHASHSEED"])
"""
    assert merge(program) == ["out", "0"]


@pytest.mark.parametrize(("code", "kind"), [(2, UsageError), (125, NoVerdictError)])
def test_what_it_explains_is_raised(merge: Merge, code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^why$"):
        merge(f"send(kind='failed', exit_code={code}, message='why'); sys.exit({code})")


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("raise ValueError('broken')", r"merge ended with status 1; .*\n  \| ValueError: broken"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"merge was killed by signal 9 \(out of memory"),
        ("os.write(int(sys.argv[1]), b'{torn'); sys.exit(3)", "merge ended with status 3$"),
    ],
)
def test_a_death_without_an_explanation_is_no_verdict(
    merge: Merge, program: str, sentence: str
) -> None:
    with pytest.raises(NoVerdictError) as error:
        merge(program)
    assert re.search(sentence, error.value.message, re.DOTALL)


def test_an_interruption_ends_it(merge: Merge) -> None:
    def interrupt(message: str) -> None:
        raise InterruptedError(message)

    with pytest.raises(InterruptedError) as error:
        merge("send(kind='notice', message=str(os.getpid())); signal.pause()", interrupt)
    assert not Path(f"/proc/{error.value}").exists()
