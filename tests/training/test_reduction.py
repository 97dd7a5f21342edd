"""The sum of gradients has one value, whoever adds it up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.training.data.stream import BatchStream
from mltune_cli.training.reduction import TreeSum, share_of, subtrees, sum_over_processes


def by_definition(values: list[torch.Tensor]) -> torch.Tensor:
    """The tree as documented: split at the largest power of two below the count."""
    if len(values) == 1:
        return values[0]
    split = 1 << (len(values) - 1).bit_length() - 1
    return by_definition(values[:split]) + by_definition(values[split:])


def gradients(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-20, 20, (count, 1), generator=generator).float()
    return list(torch.randn(count, 16, generator=generator) * torch.exp2(exponents))


def over_processes(values: list[torch.Tensor], size: int, piece_elements: int) -> torch.Tensor:
    """What `size` processes compute; each gathers what the others really send."""
    shares = [share_of(rank, size, len(values)) for rank in range(size)]
    sums = []
    for share in shares:
        tree = TreeSum()
        for index in share:
            tree.add(range(index, index + 1), values[index].clone())
        assert tree.held <= 2 * math.ceil(math.log2(len(share) + 1))
        sums.append(tree.partial_sums())
    most = max(map(len, sums))
    results = []
    for own in sums:
        sent = 0

        def gather(rows: torch.Tensor) -> list[torch.Tensor]:
            nonlocal sent
            first, sent = sent, sent + rows.shape[1]
            piece = slice(first, sent)
            padded = [
                [vector[piece].clone() for vector in vectors]
                + [torch.full_like(vectors[0][piece], math.nan)] * (most - len(vectors))
                for vectors in sums
            ]
            assert rows.shape == (most, rows.shape[1])
            return [torch.stack(vectors) for vectors in padded]

        results.append(sum_over_processes(own, shares, gather, piece_elements))
    for result in results[1:]:
        assert torch.equal(result, results[0])
    return results[0]


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_is_the_documented_tree(count: int, seed: int) -> None:
    values = gradients(count, seed)
    tree = TreeSum()
    most_held = 0
    for index, value in enumerate(values):
        tree.add(range(index, index + 1), value.clone())
        most_held = max(most_held, tree.held)
    assert torch.equal(tree.total(), by_definition(values))
    assert most_held <= math.floor(math.log2(count)) + 1


@settings(max_examples=80, deadline=None)
@given(
    count=st.integers(1, 40),
    size=st.integers(1, 9),
    piece_elements=st.integers(1, 20),
    seed=st.integers(0, 2**31),
)
def test_any_number_of_processes_comes_to_the_same_bits(
    count: int, size: int, piece_elements: int, seed: int
) -> None:
    values = gradients(count, seed)
    total = over_processes(values, min(size, count), piece_elements)
    assert torch.equal(total, by_definition(values))


def test_sums_of_whole_shares_would_not() -> None:
    """The control: what an all-reduce adds up depends on who has which micro-batches."""
    values = gradients(8, seed=1)
    totals = set()
    for size in (1, 2, 3, 4):
        shares = [share_of(rank, size, len(values)) for rank in range(size)]
        partial = []
        for share in shares:
            own = torch.zeros(16)
            for index in share:
                own = own + values[index]
            partial.append(own)
        totals.add(tuple(sum(partial[1:], start=partial[0]).tolist()))
    assert len(totals) > 1


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 200), size=st.integers(1, 20))
def test_shares_are_even_and_made_of_whole_subtrees(count: int, size: int) -> None:
    size = min(size, count)
    shares = [share_of(rank, size, count) for rank in range(size)]
    assert [index for share in shares for index in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for share in shares:
        blocks = subtrees(share)
        assert [index for block in blocks for index in block] == list(share)
        for block in blocks:
            assert len(block).bit_count() == 1
            assert block.start % len(block) == 0
        assert len(blocks) <= 2 * math.ceil(math.log2(len(share) + 1))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    size=st.integers(1, 4),
    micro_batches=st.integers(1, 9),
    processes=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_every_row_is_used_once_in_each_epoch_whoever_computes_it(
    rows: int, size: int, micro_batches: int, processes: int, seed: int
) -> None:
    stream = BatchStream(rows, size, micro_batches, seed, "digest")
    processes = min(processes, micro_batches)
    steps = 2 * rows // stream.units_per_step + 2
    used = [
        unit
        for step in range(1, steps + 1)
        for rank in range(processes)
        for index in share_of(rank, processes, micro_batches)
        for unit in stream.micro_batch(step, index)
    ]
    for epoch in range(2):
        assert sorted(used[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


def test_is_not_the_running_sum() -> None:
    """The control: another order gives other bits, so the test above can fail."""
    values = gradients(23, seed=1)
    running = values[0].clone()
    for value in values[1:]:
        running += value
    assert not torch.equal(by_definition(values), running)


def test_starts_anew_after_a_total() -> None:
    tree = TreeSum()
    for _ in range(2):
        tree.add(range(1), torch.ones(3))
        tree.add(range(1, 2), torch.ones(3))
        assert torch.equal(tree.total(), torch.full((3,), 2.0))
    with pytest.raises(ValueError, match="nothing was added"):
        tree.total()
