"""The order of rows is a pure function of seed, data set, step and index."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.randomness import derived_seed
from mltune_cli.training.data.stream import BatchStream

streams = st.builds(
    BatchStream,
    unit_count=st.integers(1, 60),
    micro_batch_size=st.integers(1, 9),
    micro_batches_per_step=st.integers(1, 5),
    seed=st.integers(0, 2**63 - 1),
    dataset_digest=st.text(max_size=8),
)
GOLDEN_FIRST_STEP = [[151, 532, 203, 720], [455, 608, 972, 730]]
GOLDEN_LAST_OF_EPOCH = [475, 520, 595, 233]
GOLDEN_FIRST_OF_SECOND_EPOCH = [543, 526, 108, 291]
GOLDEN_SMALL = [[6, 5, 4, 2, 3, 1, 0], [0, 2, 4, 6, 1, 5, 3]]
examples = settings(max_examples=50, deadline=None)


def twin(stream: BatchStream) -> BatchStream:
    return BatchStream(
        stream.unit_count,
        stream.micro_batch_size,
        stream.micro_batches_per_step,
        stream.seed,
        stream.dataset_digest,
    )


def read_in_order(stream: BatchStream, steps: int) -> list[int]:
    return [
        unit
        for step in range(1, steps + 1)
        for index in range(stream.micro_batches_per_step)
        for unit in stream.micro_batch(step, index)
    ]


def written_out(count: int, seed: int, digest: str, epoch: int) -> list[int]:
    """The same permutation in plain integers: sorted by the splitmix64 hash of the index."""
    key, mask = derived_seed(seed, "order", digest, epoch), 2**64 - 1
    hashed = []
    for index in range(1, count + 1):
        value = (index * 0x9E3779B97F4A7C15 + key) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        hashed.append(value ^ (value >> 31))
    return sorted(range(count), key=hashed.__getitem__)


@given(streams)
@examples
def test_every_unit_stands_exactly_once_in_each_epoch(stream: BatchStream) -> None:
    """Steps are always full; an epoch may begin and end inside a micro-batch."""
    epochs = 3
    steps = -(-epochs * stream.unit_count // stream.units_per_step)
    units = read_in_order(stream, steps)
    assert len(units) == steps * stream.units_per_step
    for epoch in range(epochs):
        seen = units[epoch * stream.unit_count : (epoch + 1) * stream.unit_count]
        assert sorted(seen) == list(range(stream.unit_count))


@given(streams, st.randoms(use_true_random=False), st.integers(1, 10**9))
@examples
def test_any_micro_batch_can_be_asked_at_any_time(
    stream: BatchStream, random: object, far: int
) -> None:
    """A fresh instance, asked in another order, for some steps alone, gives the same units."""
    places = [
        (step, index)
        for step in (*range(1, 9), far)
        for index in range(stream.micro_batches_per_step)
    ]
    expected = {place: stream.micro_batch(*place) for place in places}
    random.shuffle(places)  # type: ignore[attr-defined]
    other = twin(stream)
    assert {place: other.micro_batch(*place) for place in places} == expected


@given(streams)
@examples
def test_the_order_is_the_written_out_one(stream: BatchStream) -> None:
    steps = -(-2 * stream.unit_count // stream.units_per_step)
    first, second = (
        written_out(stream.unit_count, stream.seed, stream.dataset_digest, epoch)
        for epoch in (0, 1)
    )
    assert read_in_order(stream, steps)[: 2 * stream.unit_count] == first + second


@given(streams, st.integers(1, 5))
@examples
def test_cutting_the_stream_otherwise_does_not_change_its_order(
    stream: BatchStream, size: int
) -> None:
    """Micro-batches of 8, or of 2 four times as many, see the same rows in the same steps."""
    whole = BatchStream(stream.unit_count, 4 * size, 1, stream.seed, stream.dataset_digest)
    parts = BatchStream(stream.unit_count, size, 4, stream.seed, stream.dataset_digest)
    assert read_in_order(whole, 5) == read_in_order(parts, 5)


def test_the_order_that_every_release_must_give() -> None:
    """A change of these numbers changes every training: no package may cause one unseen."""
    stream = BatchStream(1000, 4, 2, 0, "xxh3_128:golden")
    assert [stream.micro_batch(1, 0), stream.micro_batch(1, 1)] == GOLDEN_FIRST_STEP
    # Micro-batch 1 of step 125 ends the first epoch, and step 126 begins the second.
    assert stream.micro_batch(125, 1) == GOLDEN_LAST_OF_EPOCH
    assert stream.micro_batch(126, 0) == GOLDEN_FIRST_OF_SECOND_EPOCH
    assert [BatchStream(7, 7, 1, 3, "d").micro_batch(step, 0) for step in (1, 2)] == GOLDEN_SMALL


def test_seed_and_data_set_and_epoch_each_give_another_order() -> None:
    orders = {
        tuple(BatchStream(200, 200, 1, seed, digest).micro_batch(epoch, 0))
        for seed in (0, 1, 2**63 - 1)
        for digest in ("xxh3_128:a", "xxh3_128:b")
        for epoch in (1, 2)
    }
    assert len(orders) == 12
    assert tuple(range(200)) not in orders


def test_every_unit_comes_to_every_place_about_as_often() -> None:
    """Over 4000 epochs of 5 units, each of 25 (unit, place) pairs is seen 800 times, +- 12 %."""
    counts = [[0] * 5 for _ in range(5)]
    stream = BatchStream(5, 5, 1, 0, "even")
    for step in range(1, 4001):
        for place, unit in enumerate(stream.micro_batch(step, 0)):
            counts[place][unit] += 1
    assert all(704 <= count <= 896 for row in counts for count in row)


@given(streams, st.integers(1, 400).map(lambda hundredths: hundredths / 100))
@examples
def test_steps_for_is_the_least_number_of_full_steps(stream: BatchStream, epochs: float) -> None:
    steps = stream.steps_for(epochs)
    wanted = Fraction(str(epochs)) * stream.unit_count
    assert steps * stream.units_per_step >= wanted
    assert steps == 1 or (steps - 1) * stream.units_per_step < wanted
    assert stream.epoch_of(steps) >= epochs - 1e-9


@pytest.mark.parametrize(
    ("epochs", "steps"), [(0.07, 7), (0.14, 14), (0.55, 55), (0.29, 29), (1, 100), (0.001, 1)]
)
def test_decimal_epochs_are_taken_as_written(epochs: float, steps: int) -> None:
    """In floats 0.07 * 100 is a little more than 7, which would be a step too many."""
    assert BatchStream(100, 1, 1, 0, "d").steps_for(epochs) == steps
