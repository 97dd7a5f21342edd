"""The mathematics of one optimizer step."""

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from peft import PeftModel
from transformers import PreTrainedModel

from mltune_cli.errors import NoVerdictError
from mltune_cli.randomness import derived_seed
from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.determinism import random_state_bytes, seed_all
from mltune_cli.training.gradients import step_gradients
from mltune_cli.training.optimization import hyperparameters, optimizer_tensors
from mltune_cli.training.processes import Processes
from mltune_cli.training.sharding import is_divided, whole
from mltune_cli.training.shared_witness import (
    SeenMicroBatch,
    digest_of_all_parts,
    digests_of_own_parts,
    share_witness,
)
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
        in_step: every forward pass is a meeting of all processes, since the model is divided.
        step: optimizer steps done.
        last_loss: of the last step; told to the user, and read by no computation.
    """

    model: PreTrainedModel | PeftModel
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    device: torch.device
    autocast: bool
    packed: bool
    in_step: bool = False
    step: int = 0
    last_loss: float | None = None

    @property
    def is_divided(self) -> bool:
        """Whether a process holds only a part of each trained parameter."""
        return any(is_divided(parameter) for parameter in self.parameters.values())


@dataclass(frozen=True)
class StepPlan:
    """What decides a step besides the state and its rows.

    Attributes:
        micro_batches: how many the step has, over all processes.
        target_tokens: tokens that count in the whole step; the loss is their mean.
        seed: the recipe's seed; each micro-batch starts from a generator of its own.
        learning_rate: of this step.
        max_grad_norm: 0 for no clipping.
        per_tensor: also witness every tensor by its name; where a difference is being looked for.
    """

    micro_batches: int
    target_tokens: int
    seed: int
    learning_rate: float
    max_grad_norm: float
    per_tensor: bool = False


@dataclass(frozen=True)
class StepResult:
    """What one step reports, the same on every process.

    Attributes:
        loss: mean negative log-likelihood of the step's target tokens, in nats.
        gradient_norm: before clipping.
        target_tokens: tokens that counted.
        input_tokens: tokens that the model read, without padding.
        witness: the digests of all stages.
    """

    loss: float
    gradient_norm: float
    target_tokens: int
    input_tokens: int
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
    state: TrainingState, processes: Processes, micro_batches: Iterable[MicroBatch], plan: StepPlan
) -> StepResult:
    """Take one step: state[t+1] = step(state[t], batch(t), rng(t)).

    Args:
        state: changed in place.
        processes: who computes the step; its number changes no bit.
        micro_batches: those of this process's turns, in their order.
        plan: the rest.

    Raises:
        NoVerdictError: loss or gradients are not finite, and the parameters are as before the
            step; or another process came to other parameters.
        LostProcessError: another process is gone.
    """
    step = state.step + 1
    state.model.train()
    gradients = step_gradients(
        state.parameters, processes, plan.micro_batches, divided=state.is_divided
    )
    seen = []
    turns = processes.turns(plan.micro_batches, in_step=state.in_step)
    for turn, batch in zip(turns, micro_batches, strict=True):
        digest = batch_digest(batch)
        seed_all(derived_seed(plan.seed, "micro-batch", step, turn.index))
        loss = summed_loss(state, batch.to(state.device)) / plan.target_tokens
        gradients.add(turn, loss)
        if turn.counts:
            rng = bytes_digest(random_state_bytes(state.device))
            seen.append(SeenMicroBatch(digest, rng, batch.input_tokens))
    mean_loss = gradients.finish()
    _require_finite(step, "loss", float(mean_loss))
    digests = {"loss": float_bits(mean_loss)}
    tensors: dict[str, dict[str, str]] = {}
    norm = _update(state, step, plan, _Witness(processes, digests, tensors))
    state.step, state.last_loss = step, float(mean_loss)
    everybody = share_witness(processes, step, seen, digests, plan.micro_batches)
    digests["batch"] = chained_digest(one.batch for one in everybody)
    digests["rng"] = chained_digest(one.rng for one in everybody)
    return StepResult(
        float(mean_loss),
        norm,
        plan.target_tokens,
        sum(one.input_tokens for one in everybody),
        WitnessRecord(step, digests, facts={"tensors": tensors} if plan.per_tensor else {}),
    )


@dataclass(frozen=True)
class _Witness:
    """Takes digests of the state's tensors, stage by stage.

    Attributes:
        digests: of whole stages.
        tensors: of single tensors, by stage and name.
    """

    processes: Processes
    digests: dict[str, str]
    tensors: dict[str, dict[str, str]]

    def take(self, stage: str, held: Mapping[str, torch.Tensor], *, per_tensor: bool) -> None:
        self.digests[stage] = digest_of_all_parts(held, self.processes)
        if per_tensor:
            self.tensors[stage] = digests_of_own_parts(held)


def _update(state: TrainingState, step: int, plan: StepPlan, witness: _Witness) -> float:
    """Clip the gradients, let the optimizer step, and return their norm before clipping."""
    witness.take("gradients", _gradients(state), per_tensor=plan.per_tensor)
    norm = whole(torch.nn.utils.get_total_norm(list(_gradients(state).values())))
    _require_finite(step, "gradient norm", float(norm))
    if plan.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(state.parameters.values(), plan.max_grad_norm, norm)
        witness.take("clipped_gradients", _gradients(state), per_tensor=False)
    for group in state.optimizer.param_groups:
        group["lr"] = plan.learning_rate
    witness.digests["hyperparameters"] = bytes_digest(hyperparameters(state.optimizer).encode())
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    moments = optimizer_tensors(state.optimizer, state.parameters)
    witness.take("optimizer", moments, per_tensor=plan.per_tensor)
    witness.take("parameters", dict(state.parameters), per_tensor=plan.per_tensor)
    return float(norm)


def batch_digest(batch: MicroBatch) -> str:
    """Return the digest of what one forward pass sees."""
    tensors = (batch.input_ids, batch.labels, batch.position_ids, batch.attention_mask)
    return chained_digest(
        bytes_digest(str(tuple(t.shape)).encode() + t.cpu().numpy().tobytes()) for t in tensors
    )


def float_bits(value: torch.Tensor) -> str:
    """Return the 8 hexadecimal digits of a float32 scalar's bits."""
    return f"{int(value.float().cpu().view(torch.int32).item()) & 0xFFFFFFFF:08x}"


def _gradients(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in state.parameters.items() if p.grad is not None}


def _require_finite(step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NoVerdictError(
            f"step {step}: the {what} is {value}, so training stopped before the update; lower "
            "train.learning_rate, raise train.warmup_steps, or look at the rows of this step"
        )
