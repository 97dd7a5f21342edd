"""Children of `multiprocessing`, paired by the order in which they were started."""

import random

import pytest

from mltune_cli.reproduction.child_streams import paired
from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.reproduction.witness_files import OrderedComparison
from mltune_cli.witness.record import WitnessRecord

Streams = dict[str, str]


def records(model: str, steps: int = 2) -> list[WitnessRecord]:
    return [
        WitnessRecord(step, {"parameters": f"{model}{step}"}, "A", {}) for step in range(steps + 1)
    ]


def fill(comparison: OrderedComparison, run: int, streams: Streams) -> list[FirstDifference]:
    """Let a run's children, by name with what each trains, take their steps side by side."""
    found = []
    for step in range(3):
        for stream, model in streams.items():
            found.append(comparison.add(run, stream, records(model)[step]))
    return [one for one in found if one is not None]


def compared(*runs: Streams) -> FirstDifference | None:
    """Compare runs that come one after the other to their ends."""
    comparison = OrderedComparison(len(runs))
    for number, streams in enumerate(runs):
        found = fill(comparison, number, streams)
        assert comparison.steps(number) == 2
        found += [one for one in [comparison.end(number)] if one is not None]
        if found:
            return found[0]
    return comparison.missing()


@pytest.mark.parametrize(
    "runs",
    [
        ({"child-5": "a"}, {"child-1": "a"}),
        ({"child-1": "a"}, {"child-5": "a"}, {"child-3": "a"}),
        ({"child-9": "a", "child-10": "b"}, {"child-1": "a", "child-2": "b"}),
        ({"child-2": "a", "child-5": "b"}, {"child-2": "b", "child-1": "a"}),
        ({"child-2": "a", "child-5": "b"}, {"child-5": "b", "child-2": "a"}),
        ({"child-4": "a", "child-4-3": "b"}, {"child-1-1": "b", "child-1": "a"}),
        ({"child-1": "a", "child-1-2": "b", "child-4": "c"},
         {"child-1": "a", "child-2": "c", "child-1-1": "b"}),
        ({"child-3": "a", "child-3.2": "b"}, {"child-1": "a", "child-1.2": "b"}),
        ({"main": "m", "child-3": "a"}, {"child-1": "a", "main": "m"}),
    ],
)  # fmt: skip
def test_children_with_other_numbers_are_the_same_children(runs: tuple[Streams, ...]) -> None:
    assert compared(*runs) is None


@pytest.mark.parametrize(
    ("runs", "process"),
    [
        (({"child-5": "a"}, {"child-1": "x"}), "child-5"),
        (({"child-5": "a"}, {"child-1": "a"}, {"child-1": "x"}), "child-5"),
        (({"child-2": "a", "child-5": "b"}, {"child-1": "a", "child-2": "x"}), "child-5"),
        (({"child-1": "a", "child-2": "b"}, {"child-1": "b", "child-2": "a"}), "child-1"),
    ],
)
def test_a_difference_has_the_first_runs_name(runs: tuple[Streams, ...], process: str) -> None:
    found = compared(*runs)
    assert found is not None
    assert (found.stage, found.step, found.process) == ("parameters", 0, process)
    assert found.runs == (1, len(runs))


@pytest.mark.parametrize(
    ("runs", "process"),
    [
        (({"child-5": "a", "child-6": "b"}, {"child-1": "a"}), "child-6"),
        (({"child-5": "a"}, {"child-1": "a", "child-2": "b"}), "child-2"),
        (({"child-2": "a", "child-4": "b"}, {"child-4": "b"}), "child-2"),
        (({"child-2": "a"}, {"child-1": "a", "child-2": "b"}), "child-2.2"),
        (({"main": "a"}, {"main": "a", "child-2": "b"}), "child-2"),
        (({"main": "a", "child-2": "b"}, {"main": "a"}), "child-2"),
    ],
)
def test_only_a_child_without_its_like_is_missing(runs: tuple[Streams, ...], process: str) -> None:
    found = compared(*runs)
    assert found is not None
    assert (found.stage, found.step, found.process) == ("missing", 0, process)


def test_a_difference_is_told_as_soon_as_it_is_certain() -> None:
    comparison = OrderedComparison(2)
    fill(comparison, 0, {"child-1": "a", "child-2": "b", "child-7": "c"})
    comparison.end(0)
    # No child can come before the first and the second.
    assert [one.process for one in fill(comparison, 1, {"child-1": "x"})] == ["child-1"] * 3
    assert [one.process for one in fill(comparison, 1, {"child-2": "x"})] == ["child-2"] * 3
    comparison = OrderedComparison(2)
    fill(comparison, 0, {"child-2": "a", "child-7": "b"})
    comparison.end(0)
    # It may be the like of either.
    assert fill(comparison, 1, {"child-2": "b"}) == []
    assert fill(comparison, 1, {"child-1": "a"}) == []
    assert (comparison.end(1), comparison.missing()) == (None, None)


def test_runs_side_by_side_wait_for_each_other() -> None:
    comparison = OrderedComparison(3)
    for run in (1, 2):
        assert fill(comparison, run, {f"child-{run}": "a", f"child-{run + 3}": "b"}) == []
        assert comparison.end(run) is None
    assert fill(comparison, 0, {"child-9": "b", "child-8": "a"}) == []
    assert [comparison.steps(run) for run in range(3)] == [2, 2, 2]
    assert (comparison.end(0), comparison.missing()) == (None, None)
    assert comparison.compared_steps == 2


def test_a_second_start_may_number_its_children_otherwise() -> None:
    comparison = OrderedComparison(2)
    fill(comparison, 0, {"child-5": "a"})
    assert comparison.end(0) is None
    for one in records("a")[:2]:
        assert comparison.add(1, "child-3", one) is None
    assert comparison.end(1) is None
    comparison.begin_again(1)
    again = [
        WitnessRecord(0, {"parameters": "a1"}, "A"), WitnessRecord(1, {"parameters": "a2"}, "A"),
    ]  # fmt: skip
    for one in again:
        assert comparison.add(1, "child-1", one) is None
    assert (comparison.end(1), comparison.missing()) == (None, None)
    assert comparison.steps(1) == 2


def test_pairs_are_those_of_any_order_of_arrival() -> None:
    first = [f"child-{number}" for number in (3, 20, 100)] + ["child-3-2", "child-100-1"]
    second = [f"child-{number}" for number in (1, 2, 3)] + ["child-1-1", "child-3-9"]
    expected = dict(zip(second, first, strict=True))
    for seed in range(20):
        own = random.Random(seed).sample(second, len(second))
        assert paired(first, own) == expected
