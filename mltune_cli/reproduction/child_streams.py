"""Children of `multiprocessing` in several runs, told apart by the order of their start.

The number in a child's name counts everything that its parent started, workers of pools and loaders
included: a run that finds a cache filled may start fewer of them before the child that trains. What
can be relied on is the order of the children that train. In every run they get the names of their
likes in the first one.
"""

import itertools
import re
from collections.abc import Iterable, Mapping

from mltune_cli.witness.record import WitnessRecord

# A record, with the number of its run from 0 and the name of its process in the first run.
Arrival = tuple[int, str, WitnessRecord]

_NAME = re.compile(r"child((?:-\d+)+)(?:\.(\d+))?")


def is_child(stream: str) -> bool:
    """Tell whether a stream is that of a child of `multiprocessing`."""
    return _NAME.fullmatch(stream) is not None


def _place(stream: str) -> tuple[int, int, list[int]]:
    """Return what children are ordered by: the numbers themselves, however they are spelled.

    A child's own children come after all that are as near to the first process.
    """
    found = _NAME.fullmatch(stream)
    if found is None:
        return 0, 0, []
    numbers = [int(number) for number in found[1].split("-")[1:]]
    return int(found[2] or 1), len(numbers), numbers


def _children(streams: Iterable[str]) -> list[str]:
    return sorted(filter(is_child, streams), key=_place)


def paired(
    reference: Iterable[str], own: Iterable[str], known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the names that children of a run have in the first one, by their own names.

    Where all of one run's names are names of the other, they tell the pairs. Else the first child
    is the first one's like, the second the second one's.

    Args:
        reference: streams of the first run.
        own: streams of the other one.
        known: pairs that stay.
    """
    names = dict(known or {})
    free = [name for name in _children(reference) if name not in names.values()]
    rest = [name for name in _children(own) if name not in names]
    if set(rest) <= set(free) or set(rest) >= set(free):
        names |= {name: name for name in rest if name in free}
    else:
        names |= dict(zip(rest, free, strict=False))
    for name in rest:
        if name not in names:  # no child of the first run is its like
            names[name] = _free_name(name, {*names.values(), *free})
    return names


def _free_name(name: str, taken: set[str]) -> str:
    stem = name.partition(".")[0]
    others = (f"{stem}.{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], others) if one not in taken)


def certain(
    reference: Iterable[str], own: Iterable[str], *, is_whole: bool = True
) -> dict[str, str]:
    """Return the pairs that no child which is still to come can change.

    Args:
        reference: streams of the first run.
        own: streams of the other one, which goes on.
        is_whole: whether the first run is at its end.
    """
    mine, theirs = _children(own), _children(reference)
    if is_whole and len(mine) >= len(theirs):
        return paired(theirs, mine)
    dense = {}
    for number, names in enumerate(zip(mine, theirs, strict=False), start=1):
        if set(names) != {f"child-{number}"}:
            break
        dense[names[0]] = names[1]
    return dense


class ChildStreams:
    """Gives the children of every run the names that they have in the first.

    Records wait until it is certain whose they are.
    """

    def __init__(self, run_count: int) -> None:
        self._seen: list[set[str]] = [set() for _ in range(run_count)]
        self._names: list[dict[str, str]] = [{} for _ in range(run_count)]
        self._held: list[list[Arrival]] = [[] for _ in range(run_count)]
        self._ended: set[int] = set()

    def take(self, run: int, stream: str, record: WitnessRecord) -> list[Arrival]:
        """Take the next record of a run; return those that can be compared now."""
        if not is_child(stream):
            return [(run, stream, record)]
        if stream in self._names[run]:
            return [(run, self._names[run][stream], record)]
        is_new = stream not in self._seen[run]
        self._seen[run].add(stream)
        if run == 0:
            return [(run, stream, record), *(self._settled() if is_new else [])]
        self._held[run].append((run, stream, record))
        return self._settled() if is_new else []

    def end(self, run: int) -> list[Arrival]:
        """Take note that a run is at its end; return the records that waited for it."""
        self._ended.add(run)
        return self._settled()

    def begin_again(self, run: int) -> None:
        """Take note that what comes now of a run is from its second start."""
        self._seen[run], self._names[run], self._held[run] = set(), {}, []
        self._ended.discard(run)

    def held_steps(self, run: int) -> list[int]:
        """Return the last step of each process whose records wait."""
        last: dict[str, int] = {}
        for _, stream, record in self._held[run]:
            last[stream] = max(record.step, last.get(stream, 0))
        return list(last.values())

    def _settled(self) -> list[Arrival]:
        found: list[Arrival] = []
        for run in range(1, len(self._seen)):
            self._settle(run)
            names = self._names[run]
            found += [(run, names[name], one) for _, name, one in self._held[run] if name in names]
            self._held[run] = [held for held in self._held[run] if held[1] not in names]
        return found

    def _settle(self, run: int) -> None:
        if {0, run} <= self._ended:
            self._names[run] = paired(self._seen[0], self._seen[run], self._names[run])
            return
        now = certain(self._seen[0], self._seen[run], is_whole=0 in self._ended)
        if now.keys() > self._names[run].keys():
            self._names[run] = paired(self._seen[0], now, self._names[run])
