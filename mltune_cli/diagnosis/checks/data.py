"""The data: readable, with rows that are rows, and pinned where they come from the hub."""

import json
import subprocess
import sys
from collections.abc import Sequence

from mltune_cli.diagnosis.checks.model import hub_problem
from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order, known
from mltune_cli.diagnosis.hub import COMMIT, ask_hub, cached_snapshot, offline_switches
from mltune_cli.diagnosis.subject import Subject, is_hub_name, written
from mltune_cli.errors import NoVerdictError

_STOPS = "the training will not start"
# Of the five seconds that a check has; the rest is for starting Python.
_READ_SECONDS = 2.5
_ANSWER_SECONDS = 4.5


def look(subject: Subject) -> Sequence[Finding]:
    """Read the rows of both data sets as training would, up to the tokenizer."""
    if subject.loaded is None:
        return []
    data = subject.recipe.data
    local: dict[str, str] = {}
    findings = []
    for key, name in (("data.train", data.train), ("data.validation", data.validation)):
        if name is None:
            continue
        if is_hub_name(name) and not name.endswith((".jsonl", ".json", ".csv", ".parquet")):
            findings += _on_the_hub(subject, name)
        else:
            local[key] = name
    if local:
        findings += _read(local, subject)
    return findings


def _read(names: dict[str, str], subject: Subject) -> list[Finding]:
    """Let a process of its own read rows: its packages would hold up every start of mltune."""
    job = {"names": names, "format": subject.recipe.data.format, "seconds": _READ_SECONDS}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "mltune_cli.diagnosis.row_probe"],
            input=json.dumps(job).encode(),
            capture_output=True,
            env=subject.worker_variables(),
            timeout=_ANSWER_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [
            known(
                f"not all rows were read: the disk gave too few within {_ANSWER_SECONDS:g} seconds",
                "training reads them all, however long it takes",
            )
        ]
    if done.returncode:
        last = done.stderr.decode("utf-8", errors="replace").strip().splitlines()[-1:]
        raise NoVerdictError(f"the process that reads rows failed: {' '.join(last)}")
    return [_finding(key, told) for key, told in json.loads(done.stdout).items()]


def _finding(key: str, told: dict[str, object]) -> Finding:
    if told["problem"] is not None:
        return broken(
            str(told["problem"]),
            _STOPS,
            "mend the file at that place; docs/data.md shows the formats that rows may have",
        )
    rows, files = told["rows"], told["files"]
    where = f"{files} files" if files != 1 else "one file"
    if not told["is_all"]:
        return known(
            f"{key}: the first {rows:,} rows of {where} are valid; the rest was not read",
            "the doctor reads for a few seconds; training reads all rows, and stops at a bad one",
        )
    return in_order(f"{key}: {rows:,} valid rows in {where} ({told['formats']})")


def _on_the_hub(subject: Subject, name: str) -> list[Finding]:
    repository, _, _ = name.partition(":")
    revision = subject.recipe.data.revision
    snapshot = cached_snapshot(subject.variables, "dataset", repository, revision)
    if offline_switches(subject.variables):
        state = "is in the cache" if snapshot is not None else "was not asked for"
        return [known(f"{repository} {state}: the hub is switched off")]
    answer = ask_hub("dataset", repository, revision)
    commit = answer.commit or (
        snapshot.name if snapshot is not None and answer.problem == "unreachable" else None
    )
    if commit is None:
        return [hub_problem(repository, revision, answer, "dataset")]
    if revision is not None and COMMIT.fullmatch(revision):
        return [in_order(f"{repository} at {revision[:12]}")]
    return [
        doubtful(
            f"{repository} is not pinned: data.revision is {revision or 'the default branch'}, "
            f"today {commit[:12]}",
            "a branch may move; then the same recipe trains on other rows",
            written(f"data.revision={commit}"),
            command=subject.trial("data", f"data.revision={commit}"),
        )
    ]


CHECK = Check("data", "the data", look)
