"""Witness files of a command's processes, read while they are written, and compared in order."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.child_streams import Arrival, ChildStreams
from mltune_cli.reproduction.comparison import compare_records
from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.reproduction.resumed_stream import ResumedStream
from mltune_cli.witness.record import STAGES, WitnessRecord

_TROUBLE = "trouble.txt"
# Generators that start from noise unless a script seeds them: where they differ from the first
# step on, they were not seeded, and whether that matters is seen in what they were used for.
_SELF_SEEDED = ("rng_python", "rng_numpy")


class WitnessFiles:
    """The files that the start-up hook of one run writes, one for each process that trains."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}

    def new_records(self) -> Iterator[tuple[str, WitnessRecord]]:
        """Yield the whole lines that came since the last call, with their file's name.

        Raises:
            NoVerdictError: a line is no record.
        """
        if not self._folder.is_dir():
            return
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as stream:
                stream.seek(self._offsets.get(path.stem, 0))
                for line in stream:
                    if not line.endswith(b"\n"):
                        break  # it is being written
                    self._offsets[path.stem] = self._offsets.get(path.stem, 0) + len(line)
                    yield path.stem, _record(path, line)

    def trouble(self) -> str | None:
        """Return why the hook could not watch, where it said so."""
        path = self._folder / _TROUBLE
        if not path.is_file():
            return None
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[0] if lines else "the reason could not be written; is the disk full?"


def _record(path: Path, line: bytes) -> WitnessRecord:
    try:
        fields = json.loads(line)
        if isinstance(fields, dict):
            return WitnessRecord.from_fields(fields)
        error = f"it is a {type(fields).__name__}"
    except ValueError as problem:
        error = str(problem)
    raise NoVerdictError(f"{path}: holds a line that is no record: {error}")


class OrderedComparison:
    """Compares runs record by record, each process of a run with its like in the first run.

    Processes have the names of the first run.

    Args:
        run_count: how many runs.
        is_resumed: one of them is killed and goes on; then the first run's rows are kept, which
            may be far more than all digests.
    """

    def __init__(self, run_count: int, *, is_resumed: bool = False) -> None:
        self._is_resumed = is_resumed
        self._children = ChildStreams(run_count)
        # As they are written.
        self._streams: list[set[str]] = [set() for _ in range(run_count)]
        self._records: list[dict[str, list[WitnessRecord]]] = [{} for _ in range(run_count)]
        self._unseeded: dict[tuple[int, str], set[str]] = {}
        # Of a run that was killed, the streams that it had written until then.
        self._killed: dict[int, frozenset[str]] = {}
        self._resumed: dict[int, dict[str, ResumedStream]] = {}
        self.compared_steps = 0

    @property
    def has_several_processes(self) -> bool:
        """Whether more than one process of the first run has reported."""
        return len(self._records[0]) > 1

    def steps(self, run: int) -> int:
        """Return the last step that a run's processes have all reported."""
        resumed = self._resumed.get(run, {})
        last = [
            max(record.step for record in records)
            for stream, records in self._records[run].items()
            if stream not in resumed
        ]
        last += self._children.held_steps(run)
        return min([*last, *(stream.last_step for stream in resumed.values())], default=0)

    def begin_again(self, run: int) -> None:
        """Take note that a run was killed: what comes now is from its second start.

        The first run must have come to its end, and `end` must have been called for this one.
        """
        self._killed[run] = frozenset(self._streams[run])
        self._children.begin_again(run)
        self._resumed[run] = {}

    def add(self, run: int, stream: str, record: WitnessRecord) -> FirstDifference | None:
        """Take the next record of a process of run `run` (from 0); return what differs.

        Of a child of `multiprocessing` it may be told later, when it is certain which child of the
        first run is its like.
        """
        self._streams[run].add(stream)
        if run in self._killed:
            stream = _resumed_name(stream, self._killed[run])
        return self._first_of(self._children.take(run, stream, record))

    def end(self, run: int) -> FirstDifference | None:
        """Take note that a run, or its first start, is at its end; return what differs now."""
        return self._first_of(self._children.end(run))

    def _first_of(self, arrivals: Iterable[Arrival]) -> FirstDifference | None:
        found = [self._add(*arrival) for arrival in arrivals]
        return min((one for one in found if one is not None), key=place_of, default=None)

    def _add(self, run: int, stream: str, record: WitnessRecord) -> FirstDifference | None:
        if run in self._killed:
            return self._add_resumed(run, stream, record)
        records = self._records[run].setdefault(stream, [])
        rows = record.facts.get("rows") if self._is_resumed and run == 0 else None
        records.append(replace(record, facts={"rows": rows} if rows else {}))
        place = len(records) - 1
        others = range(1, len(self._records)) if run == 0 else (run,)
        for other in others:
            reference = self._at(0, stream, place)
            candidate = self._at(other, stream, place)
            if reference is None or candidate is None:
                continue
            ignored = self._ignored(reference, candidate, (other, stream))
            pair = (without_stages(reference, ignored), without_stages(candidate, ignored))
            difference = _difference(*pair, stream, other)
            if difference is not None:
                return difference
            self.compared_steps = max(self.compared_steps, record.step)
        return None

    def _add_resumed(self, run: int, name: str, record: WitnessRecord) -> FirstDifference | None:
        reference = self._records[0].get(name, [])
        if name not in self._resumed[run]:
            killed = self._records[run].get(name, [])
            self._resumed[run][name] = ResumedStream(
                reference,
                max((earlier.step for earlier in killed), default=0),
                name,
                run,
                self._unseeded.get((run, name), set()),
            )
        resumed = self._resumed[run][name]
        difference = resumed.add(record)
        if difference is None:
            self.compared_steps = max(self.compared_steps, resumed.last_step)
        return difference

    def _ignored(
        self, reference: WitnessRecord, candidate: WitnessRecord, key: tuple[int, str]
    ) -> set[str]:
        if reference.step and key not in self._unseeded:
            self._unseeded[key] = {
                stage for stage in _SELF_SEEDED
                if reference.digests.get(stage) != candidate.digests.get(stage)
            }  # fmt: skip
        return self._unseeded.get(key, set())

    def _at(self, run: int, stream: str, place: int) -> WitnessRecord | None:
        records = self._records[run].get(stream, [])
        return records[place] if place < len(records) else None

    def missing(self) -> FirstDifference | None:
        """Return the first record that one run has and another lacks, or what else differs now.

        All runs are at their ends.
        """
        for run in range(len(self._records)):
            difference = self.end(run)
            if difference is not None:
                return difference
        first = self._records[0]
        for other, records in enumerate(self._records[1:], start=1):
            for stream in sorted(first.keys() | records.keys()):
                mine, theirs = first.get(stream, []), records.get(stream, [])
                resumed = self._resumed.get(other, {}).get(stream)
                if resumed is not None:
                    difference = resumed.missing()
                    if difference is not None:
                        return difference
                elif len(mine) != len(theirs):
                    longer = max(mine, theirs, key=len)
                    return FirstDifference(
                        step=longer[min(len(mine), len(theirs))].step_within,
                        stage="missing",
                        stages=["missing"],
                        runs=(1, other + 1),
                        values=None,
                        process=stream,
                    )
        return None


def place_of(difference: FirstDifference) -> tuple[int, bool, int, str]:
    """Return what differences are ordered by: the earlier one is what the other came of."""
    known = difference.stage in STAGES
    stage = STAGES.index(difference.stage) if known else len(STAGES)
    return difference.step, not difference.is_start, stage, difference.process or ""


def _resumed_name(stream: str, killed: frozenset[str]) -> str:
    """Return the name that a stream of the second start has in a run that was not killed.

    The files of the first start are still there, so those of the second have higher numbers.
    """
    stem, _, number = stream.partition(".")
    earlier = sum(name.partition(".")[0] == stem for name in killed)
    place = int(number or 1) - earlier
    return stem if place <= 1 else f"{stem}.{place}"


def without_stages(record: WitnessRecord, stages: Collection[str]) -> WitnessRecord:
    """Return a record that has none of some stages."""
    kept = {name: value for name, value in record.digests.items() if name not in stages}
    return replace(record, digests=kept, facts={})


def _difference(
    reference: WitnessRecord, candidate: WitnessRecord, stream: str, other: int
) -> FirstDifference | None:
    same_place = (reference.step, reference.source) == (candidate.step, candidate.source)
    if not same_place:
        return FirstDifference(
            step=reference.step_within,
            stage="order",
            stages=["order"],
            runs=(1, other + 1),
            values=(_place(reference), _place(candidate)),
            process=stream,
        )
    difference = compare_records(reference, candidate, other)
    if difference is None:
        return None
    return difference.model_copy(update={"process": stream, "optimizer": reference.source})


def _place(record: WitnessRecord) -> str:
    name = f"step {record.step}" if record.step else "the first state"
    return f"{name} of {record.source}"
