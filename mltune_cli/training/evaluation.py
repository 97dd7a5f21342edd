"""The held-out loss, and what follows from it: the best step so far, and when to stop."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mltune_cli.recipe.schema import EvaluateSection
from mltune_cli.training.data.collating import Collator
from mltune_cli.training.data.dataset import TokenisedDataset
from mltune_cli.training.loss import summed_loss
from mltune_cli.training.processes import Processes
from mltune_cli.training.step import TrainingState


@dataclass(frozen=True)
class EvaluationResult:
    """Mean negative log-likelihood of the held-out target tokens, in nats, and their number."""

    loss: float
    target_tokens: int


def evaluate(
    state: TrainingState,
    processes: Processes,
    dataset: TokenisedDataset,
    collator: Collator,
    micro_batch_size: int,
) -> EvaluationResult:
    """Measure the loss on every held-out row. Draws no random numbers.

    The rows are cut into micro-batches in file order and shared out over the processes. The sums
    of all micro-batches are added up exactly, so neither their order nor who computed them counts.

    Raises:
        LostProcessError: another process is gone.
    """
    state.model.eval()
    starts = range(0, len(dataset), micro_batch_size)
    losses: list[torch.Tensor] = []
    with torch.no_grad():
        for turn in processes.turns(len(starts), in_step=state.in_step):
            first = starts[turn.index]
            batch = collator.collate([*range(first, min(first + micro_batch_size, len(dataset)))])
            loss = summed_loss(state.model, state.kernels, batch, state.device).float()
            if turn.counts:
                losses.append(loss)
    most = max(map(len, processes.shares(len(starts))))
    padded = torch.zeros(most, dtype=torch.float32, device=state.device)
    if losses:
        padded[: len(losses)] = torch.stack(losses)
    total = math.fsum(value for part in processes.gather(padded) for value in part.tolist())
    target_tokens = int(dataset.unit_target_counts.sum())
    return EvaluationResult(total / target_tokens, target_tokens)


@dataclass(frozen=True)
class Evaluation:
    """One line of the evaluation log: steps done, and the held-out loss in nats per token."""

    step: int
    loss: float


@dataclass(frozen=True)
class Standing:
    """What the evaluations so far say; a function of the evaluation log and of nothing else.

    Attributes:
        best_step: with the lowest loss, of those after training began; None before the first.
        since_improvement: evaluations since the last one that counts as an improvement.
    """

    best_step: int | None
    since_improvement: int

    def ends_training(self, section: EvaluateSection) -> bool:
        """Tell whether early stopping ends the run here."""
        patience = section.early_stopping_patience
        return bool(patience) and self.since_improvement >= patience


def standing(evaluations: Sequence[Evaluation], threshold: float) -> Standing:
    """Read the best step and the time since the last improvement off the evaluations.

    Args:
        evaluations: in the order of their steps. The one of step 0 sets the mark that the others
            have to improve on; nothing has been trained there, so it is never the best.
        threshold: by how much, in nats, a loss must be lower to count as an improvement.
    """
    best_step: int | None = None
    mark: float | None = None
    lowest, since = math.inf, 0
    for evaluation in evaluations:
        # A loss that is no number is worse than any that is one.
        loss = math.inf if math.isnan(evaluation.loss) else evaluation.loss
        if evaluation.step > 0 and loss < lowest:
            best_step, lowest = evaluation.step, loss
        if mark is None or loss < mark - threshold:
            mark, since = loss, 0
        else:
            since += 1
    return Standing(best_step, since)
