"""A process that was killed and started again, compared with one that went through.

Its witness counts steps from 0 again, and nobody says which checkpoint it started from. Where it
stands in the first run is told by its parameters: they must be those of one of the steps that the
killed process had taken. Where they are not, they may have been changed between two steps, by
another optimizer or by hand: then the next step tells. Optimizers are numbered anew as well: one
that goes on in the second phase of a training is its process's first, and was the second of the
process that went through.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.witness.record import STAGES, WitnessRecord

_GENERATORS = ("rng", "rng_python", "rng_numpy")


@dataclass(frozen=True)
class _Start:
    """Where a resumed process may have begun.

    Attributes:
        step: of the first run, after which its state was that of the process.
        names: the process's optimizers, to those of the first run.
    """

    step: int
    names: Mapping[str, str]

    def naming(self, source: str, name: str) -> "_Start":
        return replace(self, names={**self.names, source: name})


class ResumedStream:
    """Compares the records of one resumed process as they come.

    Args:
        reference: records of the first run's process, whole.
        killed_step: the last step of the killed process.
        stream: name of the first run's process.
        other: number of the resumed run, from 0.
        ignored: stages that say nothing, such as a generator that starts from noise.
    """

    def __init__(
        self,
        reference: list[WitnessRecord],
        killed_step: int,
        stream: str,
        other: int,
        ignored: set[str],
    ) -> None:
        self._reference = reference
        self._by_step = {record.step: record for record in reference if record.step}
        self._killed_step = killed_step
        self._stream = stream
        self._other = other
        self._ignored = ignored
        self._starts: list[_Start] | None = None
        # What is wrong if no step shows that the last optimizer began as it should have.
        self._doubt: FirstDifference | None = None
        self._found: FirstDifference | None = None
        self._steps_before = 0
        self._taken = 0

    @property
    def last_step(self) -> int:
        """The step of the first run that the resumed process has got to."""
        return (self._starts[0].step if self._starts else 0) + self._taken

    def add(self, record: WitnessRecord) -> FirstDifference | None:
        """Take the next record; return what differs, whichever state it started from.

        What differs once is returned ever after.
        """
        if self._found is None:
            self._found = self._added(record)
        return self._found

    def _added(self, record: WitnessRecord) -> FirstDifference | None:
        if self._starts is None:
            # Of a fork whose parent has trained, the first step is not the process's first.
            self._steps_before = record.steps_taken
            self._starts = self._possible_starts(record)
            return None if self._starts else self._doubt
        if record.step == 0:
            return self._other_start(record, self._starts)
        taken = record.step - self._steps_before
        self._taken = max(self._taken, taken)
        found = [(start, self._difference_from(start, taken, record)) for start in self._starts]
        left = [start for start, difference in found if difference is None]
        if not left:
            return self._doubt or found[0][1]
        self._starts, self._doubt = left, None
        return None

    def _possible_starts(self, record: WitnessRecord) -> list[_Start]:
        """Return the steps after which the process may have begun, the last one first.

        There may be several with the same parameters: a first step with a learning rate of 0
        changes nothing.
        """
        likes = self._likes(record.source)
        alike = {(step, name) for name in likes for step in self._steps_with(name, record)}
        if not alike:
            self._doubt = self._unknown_start(record)
        others = {
            (r.step - 1, r.source)
            for r in self._reference
            if 0 < r.step <= self._killed_step + 1 and r.source in likes
        } - alike
        places = [
            place
            for group in (alike, others)
            for place in sorted(group, key=lambda one: (-one[0], likes.index(one[1])))
        ]
        return [_Start(step, {record.source: name}) for step, name in places]

    def _steps_with(self, name: str, record: WitnessRecord) -> Iterator[int]:
        own = [r for r in self._reference if r.source == name]
        for place, state in enumerate(own):
            if state.steps_taken > self._killed_step or _start_of(state) != _start_of(record):
                continue
            later = [r.step for r in own[place + 1 :] if r.step]
            # Of several optimizers, others may step before this one does again.
            start = later[0] - 1 if later else max(self._by_step, default=0)
            if start <= self._killed_step:
                yield start

    def _likes(self, source: str) -> list[str]:
        """Return the first run's optimizers of a type, the one of the same number first."""
        names = dict.fromkeys(r.source for r in self._reference if _type(r.source) == _type(source))
        return sorted(names, key=lambda name: name != source)

    def _unknown_start(self, record: WitnessRecord) -> FirstDifference:
        states = [
            r for r in self._reference
            if r.source == record.source and r.steps_taken <= self._killed_step
        ]  # fmt: skip
        expected = states[-1].digests.get("parameters", "") if states else "missing"
        return self._difference(
            self._killed_step, ["resume"], (expected, record.digests.get("parameters", ""))
        )

    def _difference_from(
        self, start: _Start, taken: int, record: WitnessRecord
    ) -> FirstDifference | None:
        step, source = start.step + taken, start.names[record.source]
        expected = self._by_step.get(step)
        if expected is None:
            return self._difference(step, ["missing"], None)
        if expected.source != source:
            return self._difference(step, ["order"], (expected.source, source))
        stages = [
            stage for stage in STAGES
            if stage not in self._ignored
            and expected.digests.get(stage) != record.digests.get(stage)
        ]  # fmt: skip
        if taken == 1 and "batch" in stages and _rows_are_the_same(expected, record):
            stages.remove("batch")
        if all(stage in _GENERATORS for stage in stages):
            # Nothing came of it: generators that are not restored and not used are no fault.
            return None
        first = stages[0]
        values = (expected.digests.get(first, ""), record.digests.get(first, ""))
        return self._difference(step, stages, values, source)

    def _other_start(self, record: WitnessRecord, starts: list[_Start]) -> FirstDifference | None:
        """See which of the first run's optimizers another one is that takes its first step."""
        free = [
            (start, name)
            for start in starts
            for name in self._likes(record.source)
            if name not in start.names.values()
        ]
        alike = [
            (start, name)
            for start, name in free
            if _start_of(record) in map(_start_of, self._last_state(start, name))
        ]
        if not alike:
            states = self._last_state(starts[0], record.source)
            expected = states[0].digests.get("parameters", "") if states else "missing"
            values = (expected, record.digests.get("parameters", ""))
            self._doubt = self._difference(
                self.last_step + 1, ["parameters"], values, record.source, is_start=True
            )
        others = [place for place in free if place not in alike]
        self._starts = [start.naming(record.source, name) for start, name in [*alike, *others]]
        return None if self._starts else self._doubt

    def _last_state(self, start: _Start, name: str) -> list[WitnessRecord]:
        """Return the state of one of the first run's optimizers, if it had one by then."""
        reached = start.step + self._taken
        states = [r for r in self._reference if r.source == name and r.steps_taken <= reached]
        return states[-1:]

    def _difference(
        self,
        step: int,
        stages: list[str],
        values: tuple[str, str] | None,
        source: str | None = None,
        *,
        is_start: bool = False,
    ) -> FirstDifference:
        return FirstDifference(
            step=step, stage=stages[0], stages=stages, runs=(1, self._other + 1), values=values,
            process=self._stream, optimizer=source, is_start=is_start,
        )  # fmt: skip

    def missing(self) -> FirstDifference | None:
        """Return the first step that the ended process did not take and the first run did."""
        if self._found is not None or self._doubt is not None:
            return self._found or self._doubt
        last = max(self._by_step, default=0)
        if self._starts and any(start.step + self._taken == last for start in self._starts):
            return None
        return self._difference(self.last_step + 1, ["missing"], None)


def _rows_are_the_same(expected: WitnessRecord, record: WitnessRecord) -> bool:
    """Tell whether a resumed process's first step had the rows that it should have had.

    A script that skips the batches of earlier steps has seen them all by then, so that the digest
    of what it saw is another one. The rows that it saw last are those of the step.
    """
    rows, seen = expected.facts.get("rows"), record.facts.get("rows")
    if rows and seen:
        return bool(seen[-len(rows) :] == rows)
    stage = "loss" if "loss" in expected.digests else "gradients"
    return expected.digests.get(stage) == record.digests.get(stage)


def _start_of(record: WitnessRecord) -> str | None:
    return record.digests.get("parameters")


def _type(source: str) -> str:
    """Return the class alone of `Adam 2`."""
    return source.rpartition(" ")[0]
