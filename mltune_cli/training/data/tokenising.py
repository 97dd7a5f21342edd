"""From rendered rows to token ids and the mask of tokens that count in the loss."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mltune_cli.training.data.rendering import RenderedExample


@dataclass(frozen=True)
class TokenisedRow:
    """One row as the model sees it.

    Attributes:
        input_ids: token ids, at most `max_length` of them.
        is_target: for each token, whether predicting it counts in the loss. Never true for the
            first token, which nothing predicts.
        was_cut: whether tokens were dropped at the end.
    """

    input_ids: list[int]
    is_target: list[bool]
    was_cut: bool

    @property
    def target_count(self) -> int:
        """How many tokens count in the loss."""
        return sum(self.is_target)


class Tokeniser:
    """Tokenises rendered rows in batches, which a fast tokenizer does in native code.

    Args:
        tokenizer: a fast tokenizer (its character offsets tell which tokens are learned).
        max_length: tokens a row may have.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length
        first = list(tokenizer("a")["input_ids"])[:1]
        self._bos = first if first == [tokenizer.bos_token_id] else []
        self._eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]

    def tokenise(self, rows: Sequence[RenderedExample]) -> Iterator[TokenisedRow]:
        """Tokenise rows, in order."""
        pieces = [piece for row in rows for piece in row.pieces]
        encoded = self._tokenizer(
            [piece.text for piece in pieces],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        cursor = 0
        for row in rows:
            input_ids: list[int] = list(self._bos) if row.ends_text else []
            is_target = [False] * len(input_ids)
            for piece in row.pieces:
                offsets = encoded["offset_mapping"][cursor]
                input_ids += encoded["input_ids"][cursor]
                is_target += [_inside(offset, piece.learned) for offset in offsets]
                cursor += 1
            if row.ends_text:
                input_ids += self._eos
                is_target += [True] * len(self._eos)
            yield self._cut(input_ids, is_target)

    def _cut(self, input_ids: list[int], is_target: list[bool]) -> TokenisedRow:
        if is_target:
            is_target[0] = False
        limit = self._max_length
        return TokenisedRow(input_ids[:limit], is_target[:limit], len(input_ids) > limit)


def _inside(offset: tuple[int, int], spans: Sequence[tuple[int, int]]) -> bool:
    start, end = offset
    return any(first <= start < last and end <= last for first, last in spans)
