"""One row out of a micro-batch: its documents one after another, without padding between them."""

from dataclasses import dataclass

import torch

from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.kernels.cross_entropy import Targets

# Matrix products want dimensions that are multiples of this.
_MULTIPLE = 64
_TARGET_MULTIPLE = 8
# Numbers of eight bytes.
_ALIGNMENT = 8


@dataclass(frozen=True)
class FlatBatch:
    """What one forward pass over documents in one row sees.

    Attributes:
        input_ids: int64, shape (1, tokens).
        position_ids: int64, shape (1, tokens); restart at 0 with each document.
        starts: int32, shape (documents + 1,): where documents begin, and the end.
        longest: tokens that a document has at most; the same for all micro-batches of a run, for
            a kernel that is compiled for one number would be compiled anew for each.
        targets: the tokens that count.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    starts: torch.Tensor
    longest: int
    targets: Targets


def flatten(batch: MicroBatch, longest: int, width: int | None, device: torch.device) -> FlatBatch:
    """Put the documents of a micro-batch one after another, on a device.

    Args:
        batch: on the CPU.
        longest: tokens that a document has at most.
        width: tokens of the row; None for as many as needed, rounded up.
        device: where the result is wanted. It is copied there in one piece, and nobody waits.
    """
    real = batch.attention_mask.bool()
    count = int(real.sum())
    tokens = width or -(-count // _MULTIPLE) * _MULTIPLE
    # The token after each; the last of a row has none.
    labels = torch.full_like(batch.labels, IGNORED_LABEL)
    labels[:, :-1] = batch.labels[:, 1:]
    positions = torch.arange(tokens) - count
    input_ids = torch.full((tokens,), int(batch.input_ids.flatten()[0]))
    input_ids[:count] = batch.input_ids[real]
    # What is left over is filled with documents that nobody learns from.
    positions = positions.remainder(longest)
    positions[:count] = batch.position_ids[real]
    flat_labels = torch.full((tokens,), IGNORED_LABEL)
    flat_labels[:count] = labels[real]
    begins = torch.nonzero(positions == 0)[:, 0]
    rows = _padded_rows(flat_labels != IGNORED_LABEL)
    places = torch.full((tokens,), rows.shape[0])
    places[rows] = torch.arange(rows.shape[0])
    parts = [
        input_ids, positions, torch.cat([begins, torch.tensor([tokens])]),
        rows, flat_labels[rows], places,
    ]  # fmt: skip
    ids, positions, starts, rows, flat_labels, places = _moved(parts, device)
    return FlatBatch(
        ids[None], positions[None], starts.int(), longest, Targets(rows, flat_labels, places)
    )


def _padded_rows(counts: torch.Tensor) -> torch.Tensor:
    """Return the tokens that count, and some that do not, so that their number is a multiple."""
    rows, others = torch.nonzero(counts)[:, 0], torch.nonzero(~counts)[:, 0]
    missing = max(-rows.shape[0] % _TARGET_MULTIPLE, _TARGET_MULTIPLE - rows.shape[0])
    return torch.cat([rows, others[:missing]])


def _moved(parts: list[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Return int64 vectors on a device: copied at once, from memory that needs no waiting for.

    Each begins at a multiple of 64 bytes, whatever stands before it: where several numbers are read
    at once decides how a kernel is compiled, and no micro-batch may differ from another in that.
    """
    places, first = [], 0
    for part in parts:
        places.append(slice(first, first + part.shape[0]))
        first += -(-part.shape[0] // _ALIGNMENT) * _ALIGNMENT
    joined = torch.zeros(first, dtype=torch.int64, pin_memory=device.type == "cuda")
    for place, part in zip(places, parts, strict=True):
        joined[place] = part
    on_device = joined.to(device, non_blocking=True)
    return tuple(on_device[place] for place in places)
