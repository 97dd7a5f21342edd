"""Sums of gradients along one fixed binary tree over the micro-batch index.

Floating-point addition is not associative: the order of a sum decides its last bits. The tree over
n micro-batches splits at the largest power of two below n, whatever the number of processes, so
its sum has one value.
"""

from collections.abc import Sequence

import torch

Gradients = list[torch.Tensor]


class TreeSum:
    """Adds up the gradients of micro-batches that arrive in the order of their index.

    Like a binary counter, it holds one partial sum for each bit set in the number of gradients
    added so far: at most log2(micro-batches) + 1.
    """

    def __init__(self) -> None:
        self._partial_sums: list[tuple[int, Gradients]] = []

    @property
    def held(self) -> int:
        """How many partial sums are in memory."""
        return len(self._partial_sums)

    def add(self, gradients: Sequence[torch.Tensor]) -> None:
        """Add the next micro-batch's gradients. The tensors are kept and changed."""
        self._partial_sums.append((1, list(gradients)))
        while self.held > 1 and self._partial_sums[-1][0] == self._partial_sums[-2][0]:
            self._merge_last_two()

    def total(self) -> Gradients:
        """Return the whole sum, and start anew.

        Raises:
            ValueError: nothing was added.
        """
        if not self._partial_sums:
            raise ValueError("no gradients were added")
        while self.held > 1:
            self._merge_last_two()
        return self._partial_sums.pop()[1]

    def _merge_last_two(self) -> None:
        right_count, right = self._partial_sums.pop()
        left_count, left = self._partial_sums.pop()
        torch._foreach_add_(left, right)
        self._partial_sums.append((left_count + right_count, left))
