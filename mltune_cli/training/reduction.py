"""Sums of gradients along one fixed binary tree over the micro-batch index.

Floating-point addition is not associative: the order of a sum decides its last bits. The tree over
n micro-batches splits at the largest power of two below n, whatever the number of processes, so
its sum has one value. Each process sums the subtrees that lie in its share; those few partial sums
are gathered, and every process adds them up in the order of the tree.
"""

from collections.abc import Callable, Sequence

import torch

# Partial sums are gathered in pieces of so many float32 elements (256 MiB) over all processes, so
# that gathering needs little memory beside them, however large the model is.
PIECE_ELEMENTS = 1 << 26


def share_of(rank: int, size: int, count: int) -> range:
    """Return the micro-batches that a process computes: an index range, even to within one.

    Args:
        rank: of the process, from 0.
        size: number of processes, at most `count`.
        count: micro-batches of a step.
    """
    return range(rank * count // size, (rank + 1) * count // size)


def subtrees(share: range) -> list[range]:
    """Return the largest aligned blocks, of a power of two each, that make up a share in order.

    Each is a node of the tree over all micro-batches, whichever share it lies in. There are at
    most log2(len(share)) + 1 where a share is the whole step, and at most twice as many elsewhere.
    """
    blocks: list[range] = []
    for index in share:
        blocks.append(range(index, index + 1))
        while len(blocks) > 1 and _are_siblings(blocks[-2], blocks[-1]):
            right = blocks.pop()
            blocks[-1] = range(blocks[-1].start, right.stop)
    return blocks


def _are_siblings(left: range, right: range) -> bool:
    return len(left) == len(right) and left.start % (2 * len(left)) == 0


class TreeSum:
    """Adds up vectors, each the sum of a block of micro-batches, that arrive in their order.

    Like a binary counter, it holds one partial sum for each block of `subtrees`.
    """

    def __init__(self) -> None:
        self._partial_sums: list[tuple[range, torch.Tensor]] = []

    @property
    def held(self) -> int:
        """How many partial sums are in memory."""
        return len(self._partial_sums)

    def add(self, block: range, vector: torch.Tensor) -> None:
        """Add the sum of the next block of micro-batches. The vector is kept and changed."""
        self._partial_sums.append((block, vector))
        while self.held > 1 and _are_siblings(self._partial_sums[-2][0], block):
            block = self._merge_last_two()

    def partial_sums(self) -> list[torch.Tensor]:
        """Return the sums of the blocks of `subtrees`, in order, and start anew."""
        vectors = [vector for _, vector in self._partial_sums]
        self._partial_sums = []
        return vectors

    def total(self) -> torch.Tensor:
        """Return the whole sum, and start anew.

        Raises:
            ValueError: nothing was added.
        """
        if not self._partial_sums:
            raise ValueError("nothing was added")
        while self.held > 1:
            self._merge_last_two()
        return self._partial_sums.pop()[1]

    def _merge_last_two(self) -> range:
        right_block, right = self._partial_sums.pop()
        left_block, left = self._partial_sums.pop()
        block = range(left_block.start, right_block.stop)
        self._partial_sums.append((block, left.add_(right)))
        return block


Gather = Callable[[torch.Tensor], Sequence[torch.Tensor]]


def sum_over_processes(
    own: Sequence[torch.Tensor],
    shares: Sequence[range],
    gather: Gather,
    piece_elements: int = PIECE_ELEMENTS,
) -> torch.Tensor:
    """Return the sum of all micro-batches' vectors, the same bits for every division into shares.

    Args:
        own: this process's partial sums, as `TreeSum.partial_sums` returns them; all vectors of
            all processes have one length.
        shares: of all processes, in the order of their ranks.
        gather: returns every process's tensor, in the order of their ranks, for one of equal shape.
        piece_elements: how many elements are gathered at once, over all processes.

    Returns:
        One float32 vector.
    """
    blocks_by_rank = [subtrees(share) for share in shares]
    most_blocks = max(map(len, blocks_by_rank))
    length = own[0].numel()
    total = torch.empty_like(own[0])
    width = max(1, piece_elements // (most_blocks * len(shares)))
    for first in range(0, length, width):
        piece = slice(first, min(first + width, length))
        # Everybody sends as many rows as the process with the most blocks has.
        rows = [vector[piece] for vector in own]
        rows += [torch.zeros_like(rows[0])] * (most_blocks - len(rows))
        tree = TreeSum()
        for blocks, gathered in zip(blocks_by_rank, gather(torch.stack(rows)), strict=True):
            for block, row in zip(blocks, gathered, strict=False):
                tree.add(block, row)
        total[piece] = tree.total()
    return total
