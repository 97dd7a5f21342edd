"""From units to the tensors of one micro-batch."""

from dataclasses import dataclass

import numpy as np
import torch

from mltune_cli.training.data.dataset import TokenisedDataset

IGNORED_LABEL = -100
_PADDING_MULTIPLE = 8


@dataclass(frozen=True)
class MicroBatch:
    """What one forward pass sees; every tensor has shape (units, tokens).

    Attributes:
        input_ids: int64 token ids.
        labels: int64; the token itself where it counts in the loss, else -100.
        position_ids: int64; restart at 0 with each document, and with the padding.
        attention_mask: int64; 0 on padding. Not passed to the model when units are packs.
        target_count: tokens that count in the loss.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    attention_mask: torch.Tensor
    target_count: int

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the same micro-batch on a device."""
        return MicroBatch(
            self.input_ids.to(device),
            self.labels.to(device),
            self.position_ids.to(device),
            self.attention_mask.to(device),
            self.target_count,
        )

    @property
    def input_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.attention_mask.sum())


class Collator:
    """Builds micro-batches from a data set.

    Args:
        dataset: the tokenised rows.
        pad_token_id: stands where a row is shorter than its micro-batch; it is never learned.
        padded_length: tokens of every row; None pads to the longest, rounded up to 8.
    """

    def __init__(
        self, dataset: TokenisedDataset, pad_token_id: int, padded_length: int | None = None
    ) -> None:
        self._dataset = dataset
        self._pad_token_id = pad_token_id
        self._padded_length = padded_length

    def collate(self, units: list[int]) -> MicroBatch:
        """Return the micro-batch of the given units, in their order."""
        rows = [
            [self._dataset.row(document) for document in self._dataset.documents(unit)]
            for unit in units
        ]
        longest = max(sum(len(ids) for ids, _ in documents) for documents in rows)
        width = self._padded_length or -(-longest // _PADDING_MULTIPLE) * _PADDING_MULTIPLE
        shape = (len(rows), width)
        input_ids = np.full(shape, self._pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
        positions = np.zeros(shape, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for number, documents in enumerate(rows):
            cursor = 0
            for ids, is_target in documents:
                end = cursor + len(ids)
                input_ids[number, cursor:end] = ids
                labels[number, cursor:end] = np.where(is_target, ids, IGNORED_LABEL)
                positions[number, cursor:end] = np.arange(len(ids))
                mask[number, cursor:end] = 1
                cursor = end
            positions[number, cursor:] = np.arange(width - cursor)
        return MicroBatch(
            torch.from_numpy(input_ids),
            torch.from_numpy(labels),
            torch.from_numpy(positions),
            torch.from_numpy(mask),
            int((labels != IGNORED_LABEL).sum()),
        )
