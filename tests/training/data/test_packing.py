"""Packing loses no document, overfills no row, and is the same on every machine."""

import time

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.training.data.packing import pack_by_length

Int64Array = npt.NDArray[np.int64]


@st.composite
def loads(draw: st.DrawFn) -> tuple[Int64Array, int]:
    capacity = draw(st.integers(1, 200))
    lengths = draw(st.lists(st.integers(1, capacity), min_size=1, max_size=120))
    return np.array(lengths, dtype=np.int64), capacity


def rows_of(members: Int64Array, starts: Int64Array) -> list[list[int]]:
    return [row.tolist() for row in np.split(members, starts[1:-1])]


def plain_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The room that each row leaves when every document takes the tightest fit, by search."""
    spaces: list[int] = []
    for length in sorted(lengths, reverse=True):
        space = min((space for space in spaces if space >= length), default=None)
        if space is None:
            space = capacity
        else:
            spaces.remove(space)
        spaces.append(space - length)
    return sorted(spaces)


@st.composite
def cut_rows(draw: st.DrawFn) -> tuple[Int64Array, int, int]:
    """Full rows cut into documents, so that the fewest rows possible are known."""
    capacity, count = draw(st.integers(2, 100)), draw(st.integers(1, 30))
    lengths = []
    for _ in range(count):
        cuts = draw(st.sets(st.integers(1, capacity - 1), max_size=4))
        lengths += np.diff([0, *sorted(cuts), capacity]).tolist()
    return np.array(draw(st.permutations(lengths)), dtype=np.int64), capacity, count


@given(loads())
@settings(max_examples=50, deadline=None)
def test_every_document_stands_once_and_no_row_is_overfull(load: tuple[Int64Array, int]) -> None:
    lengths, capacity = load
    members, starts = pack_by_length(lengths, capacity)
    assert sorted(members.tolist()) == list(range(len(lengths)))
    assert starts[0] == 0
    assert starts[-1] == len(lengths)
    assert (np.diff(starts) >= 1).all()
    assert all(lengths[row].sum() <= capacity for row in rows_of(members, starts))
    assert members.dtype == starts.dtype == np.int64


@given(cut_rows())
@settings(max_examples=50, deadline=None)
def test_few_rows_are_opened(load: tuple[Int64Array, int, int]) -> None:
    """At most 11/9 of the fewest rows possible, and one."""
    lengths, capacity, fewest = load
    _, starts = pack_by_length(lengths, capacity)
    assert fewest <= len(starts) - 1 <= 11 * fewest / 9 + 1


@given(loads())
@settings(max_examples=50, deadline=None)
def test_the_rows_are_those_of_a_plain_search_for_the_tightest_fit(
    load: tuple[Int64Array, int],
) -> None:
    lengths, capacity = load
    rows = rows_of(*pack_by_length(lengths, capacity))
    left = sorted(capacity - int(lengths[row].sum()) for row in rows)
    assert left == plain_best_fit(lengths.tolist(), capacity)


def test_a_packing_that_is_known() -> None:
    """Equal lengths keep their order, and a tie between rows goes to the one used last."""
    lengths = np.array([3, 7, 3, 7, 5, 2, 2, 1], dtype=np.int64)
    members, starts = pack_by_length(lengths, 10)
    assert members.tolist() == [1, 2, 3, 0, 4, 5, 6, 7]
    assert starts.tolist() == [0, 2, 4, 8]
    ties = np.array([6, 6, 2, 2, 2, 2], dtype=np.int64)
    members, starts = pack_by_length(ties, 10)
    assert members.tolist() == [0, 4, 5, 1, 2, 3]
    assert starts.tolist() == [0, 3, 6]


def test_documents_as_long_as_a_row_stand_alone() -> None:
    members, starts = pack_by_length(np.full(5, 16, dtype=np.int64), 16)
    assert members.tolist() == [0, 1, 2, 3, 4]
    assert starts.tolist() == [0, 1, 2, 3, 4, 5]


def test_twenty_thousand_documents_are_packed_at_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 2049, size=20_000)
    started = time.perf_counter()
    members, starts = pack_by_length(lengths, 2048)
    seconds = time.perf_counter() - started
    again = pack_by_length(lengths.copy(), 2048)
    assert np.array_equal(members, again[0])
    assert np.array_equal(starts, again[1])
    # 0.1 s where a search through the open rows would take minutes.
    assert seconds < 5
    assert len(starts) - 1 <= 1.02 * lengths.sum() / 2048
