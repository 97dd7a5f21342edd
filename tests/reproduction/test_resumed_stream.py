"""A resumed process against one that went through: where it stands, and where they part."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.reproduction.resumed_stream import ResumedStream
from mltune_cli.reproduction.witness_files import OrderedComparison
from mltune_cli.witness.record import WitnessRecord


def record(step: int, parameters: str, source: str = "A", **digests: str) -> WitnessRecord:
    facts = {"rows": digests.pop("rows").split()} if "rows" in digests else {}
    if step:
        digests = {"rng": f"r{parameters}", "loss": f"l{parameters}", **digests}
    return WitnessRecord(step, {**digests, "parameters": parameters}, source, facts)


def late(parameters: str, source: str, after: int) -> WitnessRecord:
    return WitnessRecord(0, {"parameters": parameters}, source, after=after)


WHOLE = [record(step, f"p{step}") for step in range(6)]


def resumed(*records: WitnessRecord, killed: int = 3, whole: list[WitnessRecord] = WHOLE):  # type: ignore[no-untyped-def]
    stream = ResumedStream(whole, killed, "main", 1, set())
    for one in records:
        difference = stream.add(one)
        if difference is not None:
            return difference
    return stream.missing()


def steps(first: int, last: int = 5) -> list[WitnessRecord]:
    """What a process writes that started from the state after step `first`."""
    later = [
        WitnessRecord(r.step - first, r.digests, r.source) for r in WHOLE[first + 1 : last + 1]
    ]
    return [record(0, f"p{first}"), *later]


@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_it_may_start_from_any_earlier_state(start: int) -> None:
    assert resumed(*steps(start)) is None


def test_a_state_that_was_never_there_is_a_difference() -> None:
    difference = resumed(record(0, "other"))
    assert (difference.step, difference.stage, difference.runs) == (3, "resume", (1, 2))
    assert difference.values == ("p3", "other")


def test_what_is_read_after_the_difference_shows_the_same_one() -> None:
    """A process writes several steps before anybody looks."""
    stream = ResumedStream(WHOLE, 3, "main", 1, set())
    found = [stream.add(one) for one in (record(0, "other"), record(1, "x"), record(2, "y"))]
    assert found[0] is None  # the next step could still show that it is right
    assert {(one.step, one.stage) for one in [*found[1:], stream.missing()]} == {(3, "resume")}


def test_a_state_from_after_the_kill_is_a_difference() -> None:
    assert resumed(record(0, "p4")).stage == "resume"


def test_the_first_step_that_parts_is_counted_from_the_start_of_the_training() -> None:
    difference = resumed(*steps(2, last=3), record(2, "p4", loss="other"))
    assert (difference.step, difference.stage) == (4, "loss")


def test_a_step_too_few_or_too_many_is_a_difference() -> None:
    few, many = resumed(*steps(2, last=4)), resumed(*steps(2), record(4, "p6"))
    assert (few.step, few.stage) == (5, "missing")
    assert (many.step, many.stage) == (6, "missing")


def test_equal_states_leave_open_which_one_it_was() -> None:
    """A learning rate of 0 in the first step leaves the parameters as they are."""
    whole = [record(0, "p"), record(1, "p", loss="a"), record(2, "q", loss="b")]
    for start in (0, 1):
        later = [WitnessRecord(r.step - start, r.digests, "A") for r in whole[start + 1 :]]
        assert resumed(record(0, "p"), *later, killed=1, whole=whole) is None


def test_generators_are_a_difference_where_something_comes_of_it() -> None:
    alone = [record(0, "p3"), record(1, "p4", rng="x"), record(2, "p5", rng="x")]
    assert resumed(*alone) is None
    used = resumed(record(0, "p3"), record(1, "other", rng="x", loss="y"))
    assert (used.step, used.stage) == (4, "rng")


def test_batches_that_were_skipped_are_no_difference() -> None:
    whole = [
        record(0, "p0"),
        *(record(n, f"p{n}", batch=f"b{n}", rows=f"{n} {n}") for n in (1, 2, 3)),
    ]
    skipped = record(1, "p3", batch="b1-3", rows="1 1 2 2 3 3")
    assert resumed(record(0, "p2"), skipped, killed=2, whole=whole) is None
    others = record(1, "other", batch="b1-3", rows="1 1 3 3 2 2", loss="z")
    assert resumed(record(0, "p2"), others, killed=2, whole=whole).stage == "batch"


def test_of_several_optimizers_the_one_that_steps_next_tells_where() -> None:
    whole = [record(0, "a0"), record(1, "a1"), late("b0", "B", 1), record(2, "b2", "B")]
    whole += [record(3, "a3"), record(4, "b4", "B"), record(5, "a5"), record(6, "b6", "B")]
    later = [record(0, "a3"), record(1, "a5"), late("b4", "B", 1), record(2, "b6", "B")]
    assert resumed(*later, killed=4, whole=whole) is None
    later[2:] = [late("b2", "B", 1), record(2, "other", "B")]
    assert resumed(*later, killed=4, whole=whole).stage == "parameters"


def test_files_of_the_second_start_are_matched_with_those_of_the_first() -> None:
    comparison = OrderedComparison(2)
    for one in WHOLE:
        for stream in ("rank-0", "rank-1"):
            assert comparison.add(0, stream, one) is None
    for one in WHOLE[:4]:
        for stream in ("rank-0", "rank-1"):
            assert comparison.add(1, stream, one) is None
    comparison.begin_again(1)
    for one in steps(2):
        for stream in ("rank-0.2", "rank-1.2"):
            assert comparison.add(1, stream, one) is None
    assert comparison.missing() is None
    assert (comparison.steps(1), comparison.compared_steps) == (5, 5)


def test_a_second_start_that_has_nothing_left_to_do_is_right() -> None:
    for last, stage in ((5, None), (4, "missing")):
        comparison = OrderedComparison(2)
        for one in WHOLE:
            comparison.add(0, "main", one)
        for one in WHOLE[: last + 1]:
            comparison.add(1, "main", one)
        comparison.begin_again(1)
        found = comparison.missing()
        assert (found and found.stage) == stage


def test_a_second_phase_is_known_whatever_its_optimizer_is_called() -> None:
    phases = [record(0, "a0", "Adam 1"), record(1, "a1", "Adam 1"), record(2, "a2", "Adam 1")]
    phases += [late("b0", "Adam 2", after=2)]
    phases += [record(n, f"b{n}", "Adam 2") for n in (3, 4, 5)]
    renamed = [WitnessRecord(r.step - 3, r.digests, "Adam 1") for r in phases if r.step > 3]
    assert resumed(record(0, "b3", "Adam 1"), *renamed, killed=4, whole=phases) is None
    renamed = [WitnessRecord(r.step - 2, r.digests, "Adam 1") for r in phases if r.step > 2]
    assert resumed(record(0, "b0", "Adam 1"), *renamed, killed=4, whole=phases) is None
    parts = [record(0, "b0", "Adam 1"), *renamed[:-1], record(3, "b5", "Adam 1", loss="other")]
    difference = resumed(*parts, killed=4, whole=phases)
    assert (difference.step, difference.stage, difference.optimizer) == (5, "loss", "Adam 2")


def test_a_first_phase_goes_on_into_the_second() -> None:
    phases = [record(0, "a0", "Adam 1"), record(1, "a1", "Adam 1"), record(2, "a2", "Adam 1")]
    phases += [late("b0", "Adam 2", after=2), record(3, "b3", "Adam 2")]
    again = [record(0, "a1", "Adam 1"), WitnessRecord(1, phases[2].digests, "Adam 1")]
    again += [late("b0", "Adam 2", after=1), WitnessRecord(2, phases[4].digests, "Adam 2")]
    assert resumed(*again, killed=1, whole=phases) is None
    again[2:] = [late("other", "Adam 2", after=1), record(2, "other", "Adam 2")]
    difference = resumed(*again, killed=1, whole=phases)
    assert (difference.step, difference.stage, difference.is_start) == (3, "parameters", True)


def test_optimizers_of_one_type_that_come_in_another_order_are_told_apart() -> None:
    whole = [record(0, "a0", "Adam 1"), record(1, "a1", "Adam 1")]
    whole += [late("b0", "Adam 2", after=1), record(2, "b2", "Adam 2")]
    whole += [record(3, "a3", "Adam 1"), record(4, "b4", "Adam 2")]
    # Killed after step 3, resumed after step 1: the second one steps first.
    again = [record(0, "b0", "Adam 1"), WitnessRecord(1, whole[3].digests, "Adam 1")]
    again += [late("a1", "Adam 2", after=1), WitnessRecord(2, whole[4].digests, "Adam 2")]
    again += [WitnessRecord(3, whole[5].digests, "Adam 1")]
    assert resumed(*again, killed=3, whole=whole) is None


def test_only_what_is_resumed_keeps_its_rows() -> None:
    for is_resumed in (True, False):
        comparison = OrderedComparison(2, is_resumed=is_resumed)
        for run in (0, 1):
            comparison.add(run, "main", record(1, "p1", rows="1 2"))
        kept = [run["main"][0].facts for run in comparison._records]
        assert kept == [{"rows": ["1", "2"]} if is_resumed else {}, {}]


def test_parameters_that_were_changed_between_two_steps_are_no_other_state() -> None:
    """Weights are clipped after the step, or another optimizer trains them as well."""
    assert resumed(record(0, "clipped"), *steps(2)[1:]) is None
    wrong = [record(0, "damaged"), record(1, "p3", loss="other")]
    difference = resumed(*wrong)
    assert (difference.step, difference.stage) == (3, "resume")
    # The second optimizer's are known by no step of its own.
    whole = [record(0, "a0"), record(1, "a1"), late("b0", "B", 1), record(2, "b2", "B")]
    whole += [record(3, "a3"), record(4, "b4", "B")]
    again = [record(0, "shared"), WitnessRecord(1, whole[4].digests, "A")]
    again += [late("shared too", "B", 1), WitnessRecord(2, whole[5].digests, "B")]
    assert resumed(*again, killed=3, whole=whole) is None
    again[-1] = record(2, "other", "B")
    difference = resumed(*again, killed=3, whole=whole)
    assert (difference.step, difference.stage, difference.is_start) == (4, "parameters", True)


def test_of_several_places_the_one_nearest_to_the_kill_is_told() -> None:
    folds = [record(0, "p0", "SGD 1"), *(record(n, f"a{n}", "SGD 1") for n in (1, 2, 3))]
    folds += [late("p0", "SGD 2", 3), *(record(n, f"b{n}", "SGD 2") for n in (4, 5))]
    difference = resumed(
        record(0, "p0", "SGD 1"), record(1, "b4", "SGD 1", loss="x"), killed=4, whole=folds
    )
    assert (difference.step, difference.optimizer) == (4, "SGD 2")


def test_a_fork_counts_on_from_its_parents_steps() -> None:
    whole = [late("p0", "A", 3), *(record(n, f"p{n}") for n in (4, 5, 6))]
    again = [late("p0", "A", 1)]
    again += [WitnessRecord(r.step - 2, r.digests, "A") for r in whole if r.step]
    assert resumed(*again, killed=4, whole=whole) is None


def test_two_optimizers_of_the_same_parameters_are_told_apart_by_what_follows() -> None:
    """Whose state it was is no sign of whose turn it is."""
    turns = [late("p0", "Adam 1", 0), record(1, "p1", "Adam 1"), late("p1", "Adam 2", 1)]
    turns += [record(n, f"p{n}", f"Adam {2 - n % 2}") for n in range(2, 7)]
    by_step = {r.step: r for r in turns if r.step}
    again = [record(0, "p2", "Adam 1"), WitnessRecord(1, by_step[3].digests, "Adam 1")]
    again += [late("p3", "Adam 2", 1)]
    again += [WitnessRecord(n - 2, by_step[n].digests, by_step[n].source) for n in (4, 5, 6)]
    assert resumed(*again, killed=3, whole=turns) is None
    again[-1] = record(4, "other", "Adam 2")
    assert resumed(*again, killed=3, whole=turns).step == 6


def training(
    turns: str, *, first: int = 0, is_shared: bool = True, damaged: int | None = None
) -> list[WitnessRecord]:
    """Return the records of a process that goes on after step `first`.

    Args:
        turns: one letter for each step of the whole training: whose it is.
        first: how many steps were taken before.
        is_shared: all optimizers train the same parameters.
        damaged: the step from which on something is not as it was.
    """
    states: dict[str, str] = {}
    numbers: dict[str, str] = {}
    written: list[WitnessRecord] = []
    for step, letter in enumerate(turns, start=1):
        trained = "shared" if is_shared else letter
        before = states.get(trained, f"start of {trained}")
        change = " damaged" if damaged is not None and step >= damaged else ""
        states[trained] = f"{trained} {step}{change}"
        if step <= first:
            continue
        if letter not in numbers:
            numbers[letter] = f"Adam {len(numbers) + 1}"
            written.append(late(before, numbers[letter], step - 1 - first))
        written.append(record(step - first, states[trained], numbers[letter]))
    return written


@settings(max_examples=400, deadline=None)
@given(
    turns=st.text("ab", min_size=1, max_size=8),
    is_shared=st.booleans(),
    data=st.data(),
)
def test_what_resumes_well_is_equal_and_what_does_not_is_not(
    turns: str, is_shared: bool, data: st.DataObject
) -> None:
    killed = data.draw(st.integers(0, len(turns) - 1), label="killed after")
    first = data.draw(st.integers(0, killed), label="resumed after")
    whole = training(turns, is_shared=is_shared)
    again = training(turns, first=first, is_shared=is_shared)
    assert resumed(*again, killed=killed, whole=whole) is None
    damaged = data.draw(st.integers(first + 1, len(turns)), label="damaged at")
    wrong = training(turns, first=first, is_shared=is_shared, damaged=damaged)
    assert resumed(*wrong, killed=killed, whole=whole) is not None
