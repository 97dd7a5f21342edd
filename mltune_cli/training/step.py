"""The mathematics of one optimizer step."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from peft import PeftModel
from transformers import PreTrainedModel

from mltune_cli.errors import NoVerdictError
from mltune_cli.randomness import derived_seed
from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.determinism import random_state_bytes, seed_all
from mltune_cli.training.optimization import hyperparameters, optimizer_tensors
from mltune_cli.training.reduction import TreeSum
from mltune_cli.witness.digest import tensors_digest
from mltune_cli.witness.record import WitnessRecord, bytes_digest, chained_digest


@dataclass
class TrainingState:
    """Everything that a step changes, and the model that it changes.

    Attributes:
        model: the network; trained parameters are float32, the others are frozen.
        parameters: trained parameters by name, in a fixed order.
        optimizer: over the same parameters.
        device: where the model is.
        autocast: computes in bfloat16 from float32 weights, where the recipe says so.
        packed: units are packs, kept apart by their positions instead of a padding mask.
        step: optimizer steps done.
        last_loss: of the last step; told to the user, and read by no computation.
    """

    model: PreTrainedModel | PeftModel
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    device: torch.device
    autocast: bool
    packed: bool
    step: int = 0
    last_loss: float | None = None


@dataclass(frozen=True)
class StepResult:
    """What one step reports.

    Attributes:
        loss: mean negative log-likelihood of the step's target tokens, in nats.
        gradient_norm: before clipping.
        target_tokens: tokens that counted.
        witness: the digests of all stages.
    """

    loss: float
    gradient_norm: float
    target_tokens: int
    witness: WitnessRecord


def summed_loss(state: TrainingState, batch: MicroBatch) -> torch.Tensor:
    """Return the summed negative log-likelihood, in nats, of a micro-batch's target tokens."""
    if state.packed:
        # No mask: transformers derives one that separates documents from positions that restart.
        inputs = {"position_ids": batch.position_ids}
    else:
        inputs = {"attention_mask": batch.attention_mask}
    precision: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if state.autocast:
        precision = torch.autocast(state.device.type, dtype=torch.bfloat16)
    with precision:
        logits = state.model(input_ids=batch.input_ids, use_cache=False, **inputs).logits
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1),
        batch.labels[:, 1:].flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
    )


def train_step(
    state: TrainingState,
    micro_batches: Sequence[Callable[[], MicroBatch]],
    target_tokens: int,
    seed: int,
    learning_rate: float,
    max_grad_norm: float,
) -> StepResult:
    """Take one step: state[t+1] = step(state[t], batch(t), rng(t)).

    Args:
        state: changed in place.
        micro_batches: the step's micro-batches in the order of their index, made when needed.
        target_tokens: tokens that count in the whole step; the loss is their mean.
        seed: the recipe's seed; each micro-batch starts from a generator of its own.
        learning_rate: of this step.
        max_grad_norm: 0 for no clipping.

    Raises:
        NoVerdictError: loss or gradients are not finite; the parameters are as before the step.
    """
    step = state.step + 1
    state.model.train()
    gradients, losses = TreeSum(), TreeSum()
    batch_digests, rng_digests = [], []
    for index, make_micro_batch in enumerate(micro_batches):
        batch = make_micro_batch()
        batch_digests.append(batch_digest(batch))
        seed_all(derived_seed(seed, "micro-batch", step, index))
        loss = summed_loss(state, batch.to(state.device)) / target_tokens
        torch.autograd.backward(loss)
        gradients.add(_taken_gradients(state.parameters))
        losses.add([loss.detach()])
        rng_digests.append(bytes_digest(random_state_bytes(state.device)))
    mean_loss = losses.total()[0]
    _require_finite(step, "loss", float(mean_loss))
    for parameter, gradient in zip(state.parameters.values(), gradients.total(), strict=True):
        parameter.grad = gradient
    digests = {
        "batch": chained_digest(batch_digests),
        "rng": chained_digest(rng_digests),
        "loss": float_bits(mean_loss),
        "gradients": tensors_digest(_gradients(state)),
    }
    norm = torch.nn.utils.get_total_norm(list(_gradients(state).values()))
    _require_finite(step, "gradient norm", float(norm))
    if max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(state.parameters.values(), max_grad_norm, norm)
        digests["clipped_gradients"] = tensors_digest(_gradients(state))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    digests["hyperparameters"] = bytes_digest(hyperparameters(state.optimizer).encode())
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step, state.last_loss = step, float(mean_loss)
    digests["optimizer"] = tensors_digest(optimizer_tensors(state.optimizer, state.parameters))
    digests["parameters"] = tensors_digest(dict(state.parameters))
    return StepResult(float(mean_loss), float(norm), target_tokens, WitnessRecord(step, digests))


def batch_digest(batch: MicroBatch) -> str:
    """Return the digest of what one forward pass sees."""
    tensors = (batch.input_ids, batch.labels, batch.position_ids, batch.attention_mask)
    return chained_digest(
        bytes_digest(str(tuple(t.shape)).encode() + t.cpu().numpy().tobytes()) for t in tensors
    )


def float_bits(value: torch.Tensor) -> str:
    """Return the 8 hexadecimal digits of a float32 scalar's bits."""
    return f"{int(value.float().cpu().view(torch.int32).item()) & 0xFFFFFFFF:08x}"


def _taken_gradients(parameters: dict[str, torch.nn.Parameter]) -> list[torch.Tensor]:
    """Take the gradients off the parameters, in float32; no gradient is a gradient of zero."""
    taken = []
    for parameter in parameters.values():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        taken.append(gradient.float())
        parameter.grad = None
    return taken


def _gradients(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in state.parameters.items() if p.grad is not None}


def _require_finite(step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NoVerdictError(
            f"step {step}: the {what} is {value}, so training stopped before the update; lower "
            "train.learning_rate, raise train.warmup_steps, or look at the rows of this step"
        )
