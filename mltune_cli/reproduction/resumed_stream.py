"""A process that was killed and started again, compared with one that went through.

Its witness counts steps from 0 again, and nobody says which checkpoint it started from. Where it
stands in the first run is told by its parameters: they must be those of one of the steps that the
killed process had taken.
"""

from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.witness.record import STAGES, WitnessRecord

_GENERATORS = ("rng", "rng_python", "rng_numpy")


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
        self._starts: list[int] | None = None
        self._no_start: FirstDifference | None = None
        self._taken = 0

    @property
    def last_step(self) -> int:
        """The step of the first run that the resumed process has got to."""
        return (self._starts[0] if self._starts else 0) + self._taken

    def add(self, record: WitnessRecord) -> FirstDifference | None:
        """Take the next record; return what differs, whichever state it started from."""
        if self._starts is None:
            self._starts = self._possible_starts(record)
            if self._starts:
                return None
            self._no_start = self._unknown_start(record)
        if self._no_start is not None:
            return self._no_start
        self._taken = max(self._taken, record.step)
        found = [(start, self._difference_from(start, record)) for start in self._starts]
        left = [start for start, difference in found if difference is None]
        if not left:
            return found[0][1]
        self._starts = left
        return None

    def _possible_starts(self, record: WitnessRecord) -> list[int]:
        """Return the steps after which the parameters were these, the last one first.

        There may be several: a first step with a learning rate of 0 changes nothing.
        """
        own = [r for r in self._reference if r.source == record.source]
        starts = set()
        for place, state in enumerate(own):
            if state.step > self._killed_step or _start_of(state) != _start_of(record):
                continue
            later = [r.step for r in own[place + 1 :] if r.step]
            # Of several optimizers, others may step before this one does again.
            start = later[0] - 1 if later else max(self._by_step, default=0)
            if start <= self._killed_step:
                starts.add(start)
        return sorted(starts, reverse=True)

    def _unknown_start(self, record: WitnessRecord) -> FirstDifference:
        states = [
            r for r in self._reference
            if r.source == record.source and r.step <= self._killed_step
        ]  # fmt: skip
        expected = states[-1].digests.get("parameters", "") if states else "missing"
        return self._difference(
            self._killed_step, ["resume"], (expected, record.digests.get("parameters", ""))
        )

    def _difference_from(self, start: int, record: WitnessRecord) -> FirstDifference | None:
        if record.step == 0:  # another optimizer takes its first step
            return self._other_start(start, record)
        step = start + record.step
        expected = self._by_step.get(step)
        if expected is None:
            return self._difference(step, ["missing"], None)
        if expected.source != record.source:
            return self._difference(step, ["order"], (expected.source, record.source))
        stages = [
            stage for stage in STAGES
            if stage not in self._ignored
            and expected.digests.get(stage) != record.digests.get(stage)
        ]  # fmt: skip
        if record.step == 1 and "batch" in stages and _rows_are_the_same(expected, record):
            stages.remove("batch")
        if all(stage in _GENERATORS for stage in stages):
            # Nothing came of it: generators that are not restored and not used are no fault.
            return None
        first = stages[0]
        values = (expected.digests.get(first, ""), record.digests.get(first, ""))
        return self._difference(step, stages, values, record.source)

    def _other_start(self, start: int, record: WitnessRecord) -> FirstDifference | None:
        reached = start + self._taken
        states = [
            r for r in self._reference if r.source == record.source and r.step <= reached
        ]  # fmt: skip
        if states and _start_of(states[-1]) == _start_of(record):
            return None
        expected = states[-1].digests.get("parameters", "") if states else "missing"
        values = (expected, record.digests.get("parameters", ""))
        return self._difference(reached, ["parameters"], values, record.source)

    def _difference(
        self,
        step: int,
        stages: list[str],
        values: tuple[str, str] | None,
        source: str | None = None,
    ) -> FirstDifference:
        return FirstDifference(
            step=step, stage=stages[0], stages=stages, runs=(1, self._other + 1), values=values,
            process=self._stream, optimizer=source,
        )  # fmt: skip

    def missing(self) -> FirstDifference | None:
        """Return the first step that the ended process did not take and the first run did."""
        if self._no_start is not None:
            return self._no_start
        last = max(self._by_step, default=0)
        if self._starts and any(start + self._taken == last for start in self._starts):
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
