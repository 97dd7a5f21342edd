"""Micro-batches in the order in which a process needs them, built ahead where the recipe says so.

Which rows a micro-batch has is a function of step and index alone, so the number of processes that
build them, and how far they are ahead, changes no bit.
"""

from collections.abc import Generator, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from mltune_cli.training.data.collating import Collator, MicroBatch
from mltune_cli.training.data.stream import BatchStream


class _MicroBatches(Dataset[MicroBatch]):
    """All micro-batches of the endless stream, by (step, index)."""

    def __init__(self, stream: BatchStream, collator: Collator) -> None:
        self._stream = stream
        self._collator = collator

    def __getitem__(self, place: tuple[int, int]) -> MicroBatch:
        step, index = place
        return self._collator.collate(self._stream.micro_batch(step, index))


class _Places:
    """The (step, index) pairs that a process computes, in order; read anew by each iterator."""

    def __init__(self, steps: range, indices: Sequence[int]) -> None:
        self._steps = steps
        self._indices = indices

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((step, index) for step in self._steps for index in self._indices)

    def __len__(self) -> int:
        return len(self._steps) * len(self._indices)


def micro_batches(
    stream: BatchStream,
    collator: Collator,
    steps: range,
    indices: Sequence[int],
    loader_workers: int,
) -> Generator[MicroBatch]:
    """Yield a process's micro-batches of all steps; close the iterator to end its workers.

    Args:
        stream: says which rows.
        collator: builds the tensors.
        steps: optimizer steps, from 1.
        indices: of the micro-batches that this process computes in each step.
        loader_workers: processes that build them ahead; 0 builds each when it is asked for.
    """
    loader: DataLoader[MicroBatch] = DataLoader(
        _MicroBatches(stream, collator),
        batch_size=None,
        sampler=_Places(steps, indices),
        num_workers=loader_workers,
        # Without its own, the loader draws a number from the generator that training draws from.
        generator=torch.Generator(),
    )
    yield from loader
