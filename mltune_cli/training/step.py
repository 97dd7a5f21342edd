"""The mathematics of one optimizer step."""

import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from mltune_cli.errors import NoVerdictError
from mltune_cli.randomness import derived_seed
from mltune_cli.training.data.collating import MicroBatch
from mltune_cli.training.determinism import random_state_bytes, seed_all
from mltune_cli.training.gradients import GradientFlow, step_gradients
from mltune_cli.training.kernels.installing import ModelKernels
from mltune_cli.training.loss import summed_loss
from mltune_cli.training.optimization import hyperparameters, optimizer_tensors
from mltune_cli.training.processes import Processes
from mltune_cli.training.readback import Stopwatch
from mltune_cli.training.sharding import is_divided, whole
from mltune_cli.training.shared_witness import (
    SeenMicroBatch,
    SharedStep,
    StepDigests,
    digests_of_own_parts,
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
        kernels: how the model is computed.
        in_step: every forward pass is a meeting of all processes, since the model is divided.
        step: optimizer steps done.
        last_loss: of the last step; told to the user, and read by no computation.
    """

    model: PreTrainedModel | PeftModel
    parameters: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    device: torch.device
    kernels: ModelKernels
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
        stop_code: asked at the end of the step: the exit code with which this process was asked
            to stop; 0 for none.
    """

    micro_batches: int
    target_tokens: int
    seed: int
    learning_rate: float
    max_grad_norm: float
    per_tensor: bool = False
    stop_code: Callable[[], int] = lambda: 0


@dataclass(frozen=True)
class StepResult:
    """What one step reports, the same on every process.

    Attributes:
        loss: mean negative log-likelihood of the step's target tokens, in nats.
        gradient_norm: before clipping.
        target_tokens: tokens that counted.
        input_tokens: tokens that the model read, without padding.
        witness: the digests of all stages.
        seconds: that the step took this process's device, and what fed it.
        stop_code: the largest one that a process was asked to stop with; 0 for none.
    """

    loss: float
    gradient_norm: float
    target_tokens: int
    input_tokens: int
    witness: WitnessRecord
    seconds: float
    stop_code: int = 0


@dataclass(frozen=True)
class PendingStep:
    """A step that the device may still be computing; the next one can begin meanwhile.

    Attributes:
        state: that it changes.
        step: its number.
        target_tokens: tokens that count.
        shared: loss, gradient norm and digests, on their way.
        digests: what is known of the witness already.
        tensors: digests of single tensors, by stage and name; None where nobody asked.
        watch: stopped at the step's end.
    """

    state: TrainingState
    step: int
    target_tokens: int
    shared: SharedStep
    watch: Stopwatch
    digests: dict[str, str]
    tensors: dict[str, dict[str, str]] | None

    def result(self) -> StepResult:
        """Wait for the step.

        Raises:
            NoVerdictError: loss or gradients are not finite, and the parameters are as before the
                step; or another process came to other parameters.
        """
        read = self.shared.read(self.step)
        loss, norm = (_float_of(bits) for bits in read.numbers)
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                self.state.step = self.step - 1
                _require_finite(self.step, what, value)
        self.state.last_loss = loss
        digests = {
            **self.digests,
            **read.digests,
            "loss": f"{read.numbers[0] & 0xFFFFFFFF:08x}",
            "batch": chained_digest(one.batch for one in read.seen),
            "rng": chained_digest(one.rng for one in read.seen),
        }
        facts = {} if self.tensors is None else {"tensors": self.tensors}
        return StepResult(
            loss,
            norm,
            self.target_tokens,
            sum(one.input_tokens for one in read.seen),
            WitnessRecord(self.step, digests, facts=facts),
            self.watch.seconds(),
            read.stop,
        )


def begin_step(
    state: TrainingState, processes: Processes, micro_batches: Iterable[MicroBatch], plan: StepPlan
) -> PendingStep:
    """Begin a step: state[t+1] = step(state[t], batch(t), rng(t)). Nothing waits for the device.

    Args:
        state: changed in place.
        processes: who computes the step; its number changes no bit.
        micro_batches: those of this process's turns, in their order.
        plan: the rest.

    Raises:
        NoVerdictError: loss or gradients of a divided model are not finite.
        LostProcessError: another process is gone.
    """
    watch = Stopwatch(state.device)
    step = state.step + 1
    state.model.train()
    gradients = step_gradients(
        GradientFlow.of(state.parameters, state.kernels.copies),
        processes,
        plan.micro_batches,
        divided=state.is_divided,
    )
    seen = []
    turns = processes.turns(plan.micro_batches, in_step=state.in_step)
    for turn, batch in zip(turns, micro_batches, strict=True):
        digest = batch_digest(batch)
        seed_all(derived_seed(plan.seed, "micro-batch", step, turn.index))
        loss = summed_loss(state.model, state.kernels, batch, state.device) / plan.target_tokens
        gradients.add(turn, loss)
        if turn.counts:
            rng = bytes_digest(random_state_bytes(state.device))
            seen.append(SeenMicroBatch(digest, rng, batch.input_tokens))
    mean_loss = gradients.finish()
    taken = StepDigests(processes)
    tensors: dict[str, dict[str, str]] | None = {} if plan.per_tensor else None
    norm = _update(state, mean_loss, plan, _Witness(taken, tensors))
    state.step = step
    watch.stop()
    shared = taken.share(
        [_bits(mean_loss), _bits(norm)], seen, plan.micro_batches, plan.stop_code()
    )
    digests = {"hyperparameters": bytes_digest(hyperparameters(state.optimizer).encode())}
    return PendingStep(state, step, plan.target_tokens, shared, watch, digests, tensors)


@dataclass(frozen=True)
class _Witness:
    """Takes digests of the state's tensors, stage by stage.

    Attributes:
        taken: of whole stages.
        tensors: of single tensors, by stage and name; None where nobody asked.
    """

    taken: StepDigests
    tensors: dict[str, dict[str, str]] | None

    def take(self, stage: str, held: Mapping[str, torch.Tensor]) -> None:
        self.taken.take(stage, held)
        if self.tensors is not None and stage != "clipped_gradients":
            self.tensors[stage] = digests_of_own_parts(held)


def _update(
    state: TrainingState, mean_loss: torch.Tensor, plan: StepPlan, witness: _Witness
) -> torch.Tensor:
    """Clip the gradients, let the optimizer step, and return their norm before clipping."""
    witness.take("gradients", _gradients(state))
    norm = whole(torch.nn.utils.get_total_norm(list(_gradients(state).values())))
    _hold_back(state, mean_loss, norm)
    if plan.max_grad_norm:
        torch.nn.utils.clip_grads_with_norm_(state.parameters.values(), plan.max_grad_norm, norm)
        witness.take("clipped_gradients", _gradients(state))
    for group in state.optimizer.param_groups:
        group["lr"] = plan.learning_rate
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if state.kernels.copies is not None:
        state.kernels.copies.renew()
    witness.take("optimizer", optimizer_tensors(state.optimizer, state.parameters))
    witness.take("parameters", dict(state.parameters))
    return norm


def _hold_back(state: TrainingState, mean_loss: torch.Tensor, norm: torch.Tensor) -> None:
    """Keep the optimizer from stepping where a number is not finite, now or in an earlier step.

    It is told on the device, in the way of mixed-precision training, so that nobody waits; what
    was wrong is said when the step is read, one step later, and until then nothing may change.
    """
    if state.is_divided:  # the fused optimizer takes no such word for divided parameters
        for what, value in (("loss", mean_loss), ("gradient norm", norm)):
            _require_finite(state.step + 1, what, float(value))
        return
    bad = torch.isfinite(mean_loss) & torch.isfinite(norm)
    bad = (~bad).float()
    optimizer: Any = state.optimizer
    earlier = getattr(optimizer, "found_inf", None)
    optimizer.found_inf = bad if earlier is None else torch.maximum(earlier, bad)


def batch_digest(batch: MicroBatch) -> str:
    """Return the digest of what one forward pass sees."""
    tensors = (batch.input_ids, batch.labels, batch.position_ids, batch.attention_mask)
    return chained_digest(
        bytes_digest(str(tuple(t.shape)).encode() + t.cpu().numpy().tobytes()) for t in tensors
    )


def _bits(value: torch.Tensor) -> torch.Tensor:
    """Return the bits of a float32 scalar as int64, on its device."""
    return value.float().reshape(()).view(torch.int32).long()


def _float_of(bits: int) -> float:
    """Return the float32 whose bits are the lowest 32 of a word."""
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0])


def _gradients(state: TrainingState) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in state.parameters.items() if p.grad is not None}


def _require_finite(step: int, what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NoVerdictError(
            f"step {step}: the {what} is {value}, so training stopped before the update; lower "
            "train.learning_rate, raise train.warmup_steps, or look at the rows of this step"
        )
