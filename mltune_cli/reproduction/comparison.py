"""Digest streams of several runs, compared as they arrive."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from mltune_cli.digests import file_digest
from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.witness.record import STAGES, WitnessRecord


class StreamComparison:
    """Compares every run's records with the first run's, step by step.

    Runs may be at different steps: what is ahead waits. Each run sends its steps in order, so the
    first pair that differs is the first differing step.
    """

    def __init__(self, run_count: int) -> None:
        self._records: list[dict[int, WitnessRecord]] = [{} for _ in range(run_count)]
        self._compared: dict[int, WitnessRecord] = {}
        self.compared_steps = 0

    def add(self, run: int, record: WitnessRecord) -> FirstDifference | None:
        """Take the next record of run `run` (from 0); return a difference if it shows one."""
        if record.step in self._compared:
            # Processes that took the place of dead ones take their steps once more.
            return compare_records(self._compared[record.step], record, max(run, 1))
        self._records[run][record.step] = record
        others = range(1, len(self._records)) if run == 0 else (run,)
        for other in others:
            reference = self._records[0].get(record.step)
            candidate = self._records[other].get(record.step)
            if reference is None or candidate is None:
                continue
            difference = compare_records(reference, candidate, other)
            if difference is not None:
                return difference
        if all(record.step in records for records in self._records):
            self.compared_steps = max(self.compared_steps, record.step)
            self._compared[record.step] = record
            for records in self._records:
                del records[record.step]
        return None

    def missing_step(self) -> FirstDifference | None:
        """Return the first step that one finished run has and another lacks, if there is one."""
        reference = self._records[0]
        for other, records in enumerate(self._records[1:], start=1):
            only_one = sorted(reference.keys() ^ records.keys())
            if only_one:
                return FirstDifference(
                    step=only_one[0], stage="missing", stages=["missing"], runs=(1, other + 1),
                    values=None,
                )  # fmt: skip
        return None


def compare_records(
    reference: WitnessRecord, candidate: WitnessRecord, other: int
) -> FirstDifference | None:
    """Return where two records of one step part, or None where they are equal."""
    stages = [
        stage for stage in STAGES
        if reference.digests.get(stage) != candidate.digests.get(stage)
    ]  # fmt: skip
    if not stages:
        return None
    first = stages[0]
    values = (reference.digests.get(first, ""), candidate.digests.get(first, ""))
    return FirstDifference(
        step=reference.step_within, stage=first, stages=stages, runs=(1, other + 1), values=values,
        is_start=reference.step == 0,
    )  # fmt: skip


def compare_files(
    folders: list[Path], names: Mapping[str, int], left_out: Collection[str] = ()
) -> FirstDifference | None:
    """Compare finished runs' files by content, as the last word after equal digests.

    Args:
        folders: the run folders, the first run's first.
        names: file or folder below a run folder, to the step that a difference is reported at.
        left_out: names of files that are not compared.
    """
    reference = _contents(folders[0], names, left_out)
    for other, folder in enumerate(folders[1:], start=1):
        contents = _contents(folder, names, left_out)
        for name in sorted(reference.keys() | contents.keys()):
            pair = (reference.get(name, "missing"), contents.get(name, "missing"))
            if pair[0] != pair[1]:
                return FirstDifference(
                    step=names[name.split("/")[0]],
                    stage=f"file {name}",
                    stages=[f"file {name}"],
                    runs=(1, other + 1),
                    values=pair,
                )
    return None


def compare_common_lines(folders: list[Path], names: Iterable[str]) -> FirstDifference | None:
    """Compare logs of finished runs at the steps that both have, where they have others as well.

    Args:
        folders: the run folders, the first run's first.
        names: logs, of which each line is an object with a `step`.
    """
    for name in names:
        reference = _lines_by_step(folders[0] / name)
        for other, folder in enumerate(folders[1:], start=1):
            candidate = _lines_by_step(folder / name)
            for step in sorted(reference.keys() & candidate.keys()):
                if reference[step] != candidate[step]:
                    return FirstDifference(
                        step=step, stage=f"file {name}", stages=[f"file {name}"],
                        runs=(1, other + 1), values=(reference[step], candidate[step]),
                    )  # fmt: skip
    return None


def _lines_by_step(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["step"]: line for line in lines}


def _contents(folder: Path, names: Mapping[str, int], left_out: Collection[str]) -> dict[str, str]:
    files = [
        path
        for name in names
        for path in ([folder / name] if (folder / name).is_file() else (folder / name).rglob("*"))
        if path.is_file() and path.name not in left_out
    ]
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
