"""The held-out loss."""

from dataclasses import dataclass

import torch

from mltune_cli.training.data.collating import Collator
from mltune_cli.training.data.dataset import TokenisedDataset
from mltune_cli.training.step import TrainingState, summed_loss


@dataclass(frozen=True)
class EvaluationResult:
    """Mean negative log-likelihood of the held-out target tokens, in nats, and their number."""

    loss: float
    target_tokens: int


def evaluate(
    state: TrainingState, dataset: TokenisedDataset, collator: Collator, micro_batch_size: int
) -> EvaluationResult:
    """Measure the loss on every held-out row, in file order. Draws no random numbers."""
    state.model.eval()
    total = torch.zeros((), dtype=torch.float64, device=state.device)
    target_tokens = 0
    with torch.no_grad():
        for first in range(0, len(dataset), micro_batch_size):
            units = list(range(first, min(first + micro_batch_size, len(dataset))))
            batch = collator.collate(units).to(state.device)
            total += summed_loss(state, batch).double()
            target_tokens += batch.target_count
    return EvaluationResult(float(total) / target_tokens, target_tokens)
