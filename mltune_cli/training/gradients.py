"""A step's gradients: collected micro-batch by micro-batch, then the same sum on every process."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from mltune_cli.training.kernels.low_rank import ComputeCopies
from mltune_cli.training.processes import Processes, Turn
from mltune_cli.training.reduction import TreeSum, sum_over_processes


@dataclass(frozen=True)
class GradientFlow:
    """Where gradients arrive, and where their sum goes.

    Attributes:
        computing: the tensors that the backward pass gives gradients to, in a fixed order.
        trained: the parameters that get the sum, in the same order.
    """

    computing: list[torch.Tensor]
    trained: list[torch.nn.Parameter]

    @classmethod
    def of(
        cls, parameters: Mapping[str, torch.nn.Parameter], copies: ComputeCopies | None
    ) -> "GradientFlow":
        """Return the flow for trained parameters, or for the copies that compute for them."""
        trained = list(parameters.values())
        return cls(list(trained) if copies is None else [*copies.by_name.values()], trained)


class StepGradients(Protocol):
    """Collects one step's gradients and losses."""

    def add(self, turn: Turn, loss: torch.Tensor) -> None:
        """Run the backward pass of a micro-batch whose part of the step's loss is `loss`."""

    def finish(self) -> torch.Tensor:
        """Leave the step's gradients on the parameters; return its loss, float32."""


def step_gradients(
    flow: GradientFlow, processes: Processes, count: int, *, divided: bool
) -> StepGradients:
    """Return the collector for a step of `count` micro-batches.

    Args:
        flow: from where to where.
        processes: who computes the step.
        count: micro-batches of the step.
        divided: whether a process holds only a part of each trained parameter.
    """
    kind = _DividedGradients if divided else _WholeGradients
    return kind(flow, processes, count)


class _Tree:
    """One tree over the micro-batches of a step, whichever process computes them.

    Args:
        flow: from where to where.
        processes: who computes the step.
        count: micro-batches of the step.
    """

    def __init__(self, flow: GradientFlow, processes: Processes, count: int) -> None:
        self._flow = flow
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
            drop_gradients(self._flow.computing)

    def _taken_vector(self, loss: torch.Tensor) -> torch.Tensor:
        """Take the gradients off the parameters, as one vector with the loss at its end.

        No gradient is a gradient of zero.
        """
        parts = [
            torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
            for p in self._flow.computing
        ]
        drop_gradients(self._flow.computing)
        if any(part.dtype != torch.float32 for part in parts):
            parts = [torch.cat(parts).float()]  # widened in one pass instead of hundreds
        return torch.cat([*parts, loss.detach().float().reshape(1)])

    def finish(self) -> torch.Tensor:
        total = self._total()
        first = 0
        for parameter in self._flow.trained:
            end = first + parameter.numel()
            parameter.grad = total[first:end].view_as(parameter)
            first = end
        return total[-1].clone()


class _DividedGradients(_Tree):
    """FSDP sums each micro-batch's gradients over the processes while the backward pass runs.

    Only the loss is left for the tree.
    """

    def __init__(self, flow: GradientFlow, processes: Processes, count: int) -> None:
        super().__init__(flow, processes, count)
        drop_gradients(flow.computing)

    def add(self, turn: Turn, loss: torch.Tensor) -> None:
        # Every process takes part in every sum; what does not count is a gradient of zero.
        torch.autograd.backward(loss if turn.counts else loss * 0.0)
        if turn.counts:
            self._put(turn, loss.detach().float().reshape(1))

    def finish(self) -> torch.Tensor:
        return self._total()[0]


def drop_gradients(tensors: list[torch.Tensor]) -> None:
    """Forget the gradients that a backward pass gave to tensors."""
    for tensor in tensors:
        tensor.grad = None
