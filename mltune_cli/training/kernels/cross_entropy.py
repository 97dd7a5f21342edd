"""The loss of an output layer, without the scores of all tokens in memory at once.

A vocabulary of 128,256 makes 16,384 tokens into 8 GB of scores. Here a few hundred tokens at a time
go through output layer, softmax and, at once, back: only the gradient of the layer's input is kept.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100
# Tokens at a time: large enough for matrix products at full rate, small against a layer's memory.
CHUNK = 2048

Piece = Callable[[torch.Tensor, torch.Tensor, float | None], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Targets:
    """The tokens whose prediction counts in the loss.

    Attributes:
        rows: of the output layer's input, each once; int64, shape (targets,).
        labels: what is to be predicted there, int64, shape (targets,); `IGNORED` counts nothing.
        places: for each of all tokens its place in `rows`, or the number of targets.
    """

    rows: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor


def scores_to_loss(
    scores: torch.Tensor, labels: torch.Tensor, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss in nats, and its gradient with respect to the scores.

    Args:
        scores: shape (tokens, vocabulary).
        labels: int64, shape (tokens,); `IGNORED` counts nothing.
        softcap: as of `OutputLayer`.

    Returns:
        float32 without dimensions, and the format and shape of `scores`.
    """
    values = scores.float()
    if softcap is not None:
        tanh = torch.tanh(values / softcap)
        values = softcap * tanh
    counts = labels != IGNORED
    target = torch.where(counts, labels, 0)
    log_sum = torch.logsumexp(values, dim=-1, keepdim=True)
    loss = torch.where(counts, log_sum[:, 0] - values.gather(1, target[:, None])[:, 0], 0.0).sum()
    # Compared instead of scattered: one pass that the compiler can join with the others.
    is_target = torch.arange(scores.shape[1], device=scores.device) == target[:, None]
    grad = (torch.exp(values - log_sum) - is_target.float()) * counts[:, None]
    if softcap is not None:
        grad = grad * (1.0 - tanh * tanh)
    return loss, grad.to(scores.dtype)


@dataclass(frozen=True)
class OutputLayer:
    """How scores become a loss.

    Attributes:
        softcap: scores are softcap * tanh(scores / softcap); None leaves them.
        piece: `scores_to_loss`, perhaps compiled.
        is_compiled: whether it is.
    """

    softcap: float | None
    piece: Piece = scores_to_loss
    is_compiled: bool = False


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: Targets, output: OutputLayer
    ) -> torch.Tensor:
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        used = weight.to(hidden.dtype)
        count = targets.rows.shape[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        # One more: what tokens get that count nothing.
        grads = hidden.new_zeros(count + 1, hidden.shape[1]) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        for first in range(0, count, CHUNK):
            part = slice(first, min(first + CHUNK, count))
            some = hidden.index_select(0, targets.rows[part])
            scores = some @ used.t()
            labels = targets.labels[part]
            if output.is_compiled:  # once for any number of tokens
                torch._dynamo.mark_dynamic(scores, 0)
                torch._dynamo.mark_dynamic(labels, 0)
            loss, grad = output.piece(scores, labels, output.softcap)
            total += loss
            if grads is not None:
                torch.mm(grad, used, out=grads[part])
            if grad_weight is not None:
                grad_weight += grad.t() @ some
        # Gathered, not scattered: no order of writing can matter.
        ctx.grad_hidden = None if grads is None else grads.index_select(0, targets.places)
        ctx.grad_weight, ctx.weight_dtype = grad_weight, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight = ctx.grad_hidden, ctx.grad_weight
        # Taken over, not copied: nobody goes back through a micro-batch twice.
        ctx.grad_hidden = ctx.grad_weight = None
        if hidden is not None:
            hidden.mul_(grad)
        if weight is not None:
            weight = weight.mul_(grad).to(ctx.weight_dtype)
        return hidden, weight, None, None


def linear_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: Targets, output: OutputLayer
) -> torch.Tensor:
    """Return the summed negative log-likelihood of the tokens that count, in nats, float32.

    Args:
        hidden: input of the output layer, shape (tokens, features).
        weight: of the output layer, shape (vocabulary, features).
        targets: which tokens count.
        output: how scores become a loss.
    """
    apply: Callable[..., torch.Tensor] = _LinearCrossEntropy.apply
    return apply(hidden, weight, targets, output)
