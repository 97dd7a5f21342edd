"""A step's gradients: collected micro-batch by micro-batch, then the same sum on every process."""

from typing import Protocol

import torch

from mltune_cli.training.processes import Processes, Turn
from mltune_cli.training.reduction import TreeSum, sum_over_processes


class StepGradients(Protocol):
    """Collects one step's gradients and losses."""

    def add(self, turn: Turn, loss: torch.Tensor) -> None:
        """Run the backward pass of a micro-batch whose part of the step's loss is `loss`."""

    def finish(self) -> torch.Tensor:
        """Leave the step's gradients on the parameters; return its loss, float32."""


def step_gradients(
    parameters: dict[str, torch.nn.Parameter], processes: Processes, count: int, *, divided: bool
) -> StepGradients:
    """Return the collector for a step of `count` micro-batches.

    Args:
        parameters: the trained ones, in their fixed order.
        processes: who computes the step.
        count: micro-batches of the step.
        divided: whether a process holds only a part of each trained parameter.
    """
    kind = _DividedGradients if divided else _WholeGradients
    return kind(list(parameters.values()), processes, count)


class _Tree:
    """One tree over the micro-batches of a step, whichever process computes them.

    Args:
        parameters: the trained ones.
        processes: who computes the step.
        count: micro-batches of the step.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], processes: Processes, count: int
    ) -> None:
        self._parameters = parameters
        self._processes = processes
        self._count = count
        self._sums = TreeSum()

    def _put(self, turn: Turn, vector: torch.Tensor) -> None:
        """Hang up what a micro-batch came to."""
        self._sums.add(range(turn.index, turn.index + 1), vector)

    def _total(self) -> torch.Tensor:
        """Return the sum over all micro-batches, the same on every process."""
        if self._processes.size == 1:
            return self._sums.total()
        shares = self._processes.shares(self._count)
        return sum_over_processes(self._sums.partial_sums(), shares, self._processes.gather)


class _WholeGradients(_Tree):
    """Every process has all parameters: gradients and loss go into the tree, in float32."""

    def add(self, turn: Turn, loss: torch.Tensor) -> None:
        torch.autograd.backward(loss)
        if turn.counts:
            self._put(turn, self._taken_vector(loss))
        else:
            _drop_gradients(self._parameters)

    def _taken_vector(self, loss: torch.Tensor) -> torch.Tensor:
        """Take the gradients off the parameters, as one vector with the loss at its end.

        No gradient is a gradient of zero.
        """
        parts = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.float().flatten()
            for p in self._parameters
        ]
        _drop_gradients(self._parameters)
        return torch.cat([*parts, loss.detach().float().reshape(1)])

    def finish(self) -> torch.Tensor:
        total = self._total()
        first = 0
        for parameter in self._parameters:
            end = first + parameter.numel()
            parameter.grad = total[first:end].view_as(parameter)
            first = end
        return total[-1].clone()


class _DividedGradients(_Tree):
    """FSDP sums each micro-batch's gradients over the processes while the backward pass runs.

    Only the loss is left for the tree.
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], processes: Processes, count: int
    ) -> None:
        super().__init__(parameters, processes, count)
        _drop_gradients(parameters)

    def add(self, turn: Turn, loss: torch.Tensor) -> None:
        # Every process takes part in every sum; what does not count is a gradient of zero.
        torch.autograd.backward(loss if turn.counts else loss * 0.0)
        if turn.counts:
            self._put(turn, loss.detach().float().reshape(1))

    def finish(self) -> torch.Tensor:
        return self._total()[0]


def _drop_gradients(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
