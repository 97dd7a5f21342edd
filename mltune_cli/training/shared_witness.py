"""The witness of a step that several processes computed: one record, and no process that drifts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mltune_cli.errors import NoVerdictError
from mltune_cli.training.processes import Processes
from mltune_cli.training.readback import Readback, to_device
from mltune_cli.training.sharding import is_divided, own_part
from mltune_cli.witness.digest import PendingDigest, pending_digest, tensors_digest
from mltune_cli.witness.record import chained_digest

_WORDS = 3
_ALL_BITS = (1 << 64) - 1
# What every process must have alike after a step.
_REPLICATED = ("gradients", "optimizer", "parameters")


@dataclass(frozen=True)
class SeenMicroBatch:
    """Digests of a micro-batch's tensors and of the generators after it; its tokens."""

    batch: str
    rng: str
    input_tokens: int


class StepDigests:
    """Takes the digests of a step's stages, and reads them all at once when they are wanted.

    Args:
        processes: who computes the step.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._pending: dict[str, PendingDigest] = {}
        self._known: dict[str, str] = {}

    def take(self, stage: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take the digest of tensors as they are now. All processes must, in one order."""
        if any(is_divided(tensor) for tensor in tensors.values()):
            self._known[stage] = digest_of_all_parts(tensors, self._processes)
        else:
            self._pending[stage] = pending_digest(tensors)

    def share(
        self, numbers: Sequence[torch.Tensor], seen: Sequence[SeenMicroBatch], count: int, stop: int
    ) -> "SharedStep":
        """Begin to tell all processes what this one saw and came to.

        Args:
            numbers: int64 without dimensions, the same on every process.
            seen: this process's micro-batches, in order.
            count: micro-batches of the whole step.
            stop: exit code with which this process was asked to stop; 0 for none.
        """
        processes = self._processes
        device = processes.device
        sums = [
            sum((value.to(device, non_blocking=True) for value in one.sums), numbers[0] * 0)
            for one in self._pending.values()
        ]
        words = [int(digest, 16) for digest in self._known.values()]
        words += [
            w for one in seen for w in (int(one.batch, 16), int(one.rng, 16), one.input_tokens)
        ]
        most = max(map(len, processes.shares(count)))
        words += [0] * (_WORDS * (most - len(seen))) + [stop]
        own = torch.cat([torch.stack([*numbers, *sums]), to_device(words, device)])
        rows = processes.gather(own)
        return SharedStep(
            processes,
            count,
            len(numbers),
            self._pending,
            self._known,
            Readback(torch.stack([*rows])),
        )


@dataclass(frozen=True)
class SharedStep:
    """What all processes told of a step, on its way.

    Attributes:
        count: micro-batches of the step.
        numbers: how many words stand before the digests'.
        pending: digests whose sums are among the words, by stage.
        known: the others.
    """

    processes: Processes
    count: int
    numbers: int
    pending: Mapping[str, PendingDigest]
    known: Mapping[str, str]
    readback: Readback

    def read(self, step: int) -> "ReadStep":
        """Wait for it.

        Args:
            step: its number, for the error.

        Raises:
            NoVerdictError: another process came to another state: a machine that computes wrongly,
                or one of another kind.
        """
        rows = [[word & _ALL_BITS for word in row] for row in self.readback.rows()]
        mine = rows[self.processes.rank]
        stages = [*self.pending, *self.known]
        first = self.numbers + len(stages)
        shares = self.processes.shares(self.count)
        everybody: list[SeenMicroBatch] = []
        for rank, row in enumerate(rows):
            for place, stage in enumerate(stages, self.numbers):
                if stage in _REPLICATED and row[place] != mine[place]:
                    raise NoVerdictError(
                        f"step {step}: process {rank} came to other {stage} than process "
                        f"{self.processes.rank} from equal sums; their machines differ, or one is "
                        "broken"
                    )
            for start in range(first, first + _WORDS * len(shares[rank]), _WORDS):
                batch, rng, input_tokens = row[start : start + _WORDS]
                everybody.append(SeenMicroBatch(f"{batch:016x}", f"{rng:016x}", input_tokens))
        digests = {
            stage: one.finished(mine[place])
            for place, (stage, one) in enumerate(self.pending.items(), self.numbers)
        }
        return ReadStep(
            mine[: self.numbers], {**digests, **self.known}, everybody, max(row[-1] for row in rows)
        )


@dataclass(frozen=True)
class ReadStep:
    """What all processes told of a step.

    Attributes:
        numbers: as unsigned words.
        digests: by stage.
        seen: all micro-batches, in order.
        stop: the largest exit code that a process was asked to stop with; 0 for none.
    """

    numbers: list[int]
    digests: dict[str, str]
    seen: list[SeenMicroBatch]
    stop: int


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
