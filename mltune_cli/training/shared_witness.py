"""The witness of a step that several processes computed: one record, and no process that drifts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mltune_cli.errors import NoVerdictError
from mltune_cli.training.processes import Processes
from mltune_cli.training.sharding import is_divided, own_part
from mltune_cli.witness.digest import tensors_digest
from mltune_cli.witness.record import chained_digest

_WORDS = 3
# What every process must have alike after a step.
_REPLICATED = ("gradients", "optimizer", "parameters")


@dataclass(frozen=True)
class SeenMicroBatch:
    """Digests of a micro-batch's tensors and of the generators after it; its tokens."""

    batch: str
    rng: str
    input_tokens: int


def share_witness(
    processes: Processes,
    step: int,
    seen: Sequence[SeenMicroBatch],
    digests: Mapping[str, str],
    micro_batches: int,
) -> list[SeenMicroBatch]:
    """Return what all processes saw, in the order of the micro-batches.

    Args:
        processes: who computed the step.
        step: its number, for the error.
        seen: this process's micro-batches, in order.
        digests: of the state after the step; all processes must have come to the same.
        micro_batches: of the whole step.

    Raises:
        NoVerdictError: another process came to another state: a machine that computes wrongly, or
            one of another kind.
        LostProcessError: a process is gone.
    """
    if processes.size == 1:
        return list(seen)
    state = [int(digests[stage], 16) for stage in _REPLICATED]
    words = [w for one in seen for w in (int(one.batch, 16), int(one.rng, 16), one.input_tokens)]
    shares = processes.shares(micro_batches)
    padding = [0] * (_WORDS * max(map(len, shares)) - len(words))
    everybody: list[SeenMicroBatch] = []
    for rank, row in enumerate(processes.gather_words(state + words + padding)):
        for stage, mine, theirs in zip(_REPLICATED, state, row, strict=False):
            if mine != theirs:
                raise NoVerdictError(
                    f"step {step}: process {rank} came to other {stage} than process "
                    f"{processes.rank} from equal sums; their machines differ, or one is broken"
                )
        for first in range(len(state), len(state) + _WORDS * len(shares[rank]), _WORDS):
            batch, rng, input_tokens = row[first : first + _WORDS]
            everybody.append(SeenMicroBatch(f"{batch:016x}", f"{rng:016x}", input_tokens))
    return everybody


def digests_of_own_parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return a digest for each tensor, or for what this process holds of it."""
    # What is computed here is no operation of the training, and no trace may show it.
    with torch.utils._python_dispatch._disable_current_modes():
        return {name: tensors_digest({"": own_part(t)}) for name, t in tensors.items()}


def digest_of_all_parts(tensors: Mapping[str, torch.Tensor], processes: Processes) -> str:
    """Return the digest of named tensors; where they are divided, of all parts in order."""
    digest = tensors_digest({name: own_part(tensor) for name, tensor in tensors.items()})
    if not any(is_divided(tensor) for tensor in tensors.values()):
        return digest
    rows = processes.gather_words([int(digest, 16)])
    return chained_digest(f"{row[0]:016x}" for row in rows)
