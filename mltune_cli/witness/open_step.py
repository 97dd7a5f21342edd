"""A step of an optimizer while it is open, and what was seen since the one before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch

from mltune_cli.witness.digest import PendingDigest, resolved
from mltune_cli.witness.record import chained_digest
from mltune_cli.witness.stages import pending_held


@dataclass
class Seen:
    """What was seen since the last step.

    Attributes:
        batches: each with its iterator, and one digest for each row.
        unclipped: of the gradients, each time they were clipped.
        losses_before: how many losses there were before an iterator's first batch.
    """

    batches: list[tuple[int, str, list[str]]] = field(default_factory=list)
    losses_before: dict[int, int] = field(default_factory=dict)
    losses: list[PendingDigest] = field(default_factory=list)
    unclipped: list[PendingDigest] = field(default_factory=list)

    def add_batch(self, iterator: int, digest: str, rows: list[str]) -> None:
        """Note a batch that a loader's iterator gave."""
        self.losses_before.setdefault(iterator, len(self.losses))
        self.batches.append((iterator, digest, rows))

    def forget_evaluation(self, iterator: int) -> None:
        """Drop the batches of an iterator that ended without a loss: none was trained on."""
        if self.losses_before.pop(iterator, -1) == len(self.losses):
            self.batches = [batch for batch in self.batches if batch[0] != iterator]


@dataclass
class OpenStep:
    """A step between the optimizer's beginning and its end.

    Attributes:
        digests: that are known.
        pending: digests on their way from the device, by stage; read once, at the end.
        chained: stages that are one digest of several.
        has_closure: whether losses and gradients come while the optimizer steps.
    """

    digests: dict[str, str]
    facts: dict[str, Any]
    pending: dict[str, list[PendingDigest]] = field(default_factory=dict)
    chained: set[str] = field(default_factory=set)
    has_closure: bool = False

    def add(self, seen: Seen, gradients: Mapping[str, torch.Tensor]) -> None:
        """Add what was seen of a batch, its losses and its gradients."""
        self.chained = {"loss", "gradients"} if seen.unclipped else {"loss"}
        if seen.batches:
            self.digests["batch"] = chained_digest(digest for _, digest, _ in seen.batches)
            self.facts["rows"] = [row for _, _, rows in seen.batches for row in rows]
        if seen.losses:
            self.pending["loss"] = seen.losses
        if seen.unclipped:
            self.pending["gradients"] = seen.unclipped
        now = "clipped_gradients" if seen.unclipped else "gradients"
        self.pending[now] = [pending_held(gradients)]

    def resolve(self) -> dict[str, str]:
        """Return all digests; waits for the device."""
        values = iter(resolved([one for several in self.pending.values() for one in several]))
        digests = dict(self.digests)
        for stage, several in self.pending.items():
            found = [next(values) for _ in several]
            digests[stage] = chained_digest(found) if stage in self.chained else found[0]
        return digests


def is_inside_its_step(optimizer: torch.optim.Optimizer, caller: FrameType) -> bool:
    """Tell whether an optimizer takes a step for a part of another one of its own.

    A subclass may call its parent's `step`, and torch's hooks run for both. Only calls that go on
    count: a step that ended by an error holds nothing.

    Args:
        optimizer: whose hook runs.
        caller: what called the hook, torch's wrapper around the step.
    """
    frame = caller.f_back
    while frame is not None:
        if frame.f_code is caller.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def gradients(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the gradients that parameters have."""
    return {name: p.grad for name, p in parameters.items() if p.grad is not None}
