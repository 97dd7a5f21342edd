"""Micro-batches as one row: every document is there once, as it was, and nothing else counts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.training.data.collating import IGNORED_LABEL, MicroBatch
from mltune_cli.training.data.flattening import FlatBatch, flatten

CPU = torch.device("cpu")
LONGEST = 12
# Rows of documents; of each token its id and whether it counts. The first never does.
documents = st.lists(st.tuples(st.integers(1, 50), st.booleans()), min_size=1, max_size=LONGEST)
rows = st.lists(st.lists(documents, min_size=1, max_size=3), min_size=1, max_size=4)
Rows = list[list[list[tuple[int, bool]]]]


def micro_batch(given_rows: Rows) -> MicroBatch:
    width = max(sum(map(len, row)) for row in given_rows) + 3
    shape = (len(given_rows), width)
    ids, labels = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED_LABEL)
    positions, mask = (torch.zeros(shape, dtype=torch.int64) for _ in range(2))
    for number, row in enumerate(given_rows):
        cursor = 0
        for document in row:
            for place, (token, counts) in enumerate(document):
                ids[number, cursor], positions[number, cursor], mask[number, cursor] = (
                    token,
                    place,
                    1,
                )
                if counts and place:
                    labels[number, cursor] = token
                cursor += 1
        positions[number, cursor:] = torch.arange(width - cursor)
    return MicroBatch(ids, labels, positions, mask, int((labels != IGNORED_LABEL).sum()))


def pieces(flat: FlatBatch) -> list[list[int]]:
    return [
        flat.input_ids[0, first:end].tolist()
        for first, end in zip(flat.starts.tolist(), flat.starts.tolist()[1:], strict=False)
    ]


@given(rows=rows, width=st.sampled_from([None, 192]))
def test_documents_are_as_they_were(rows: Rows, width: int | None) -> None:
    batch = micro_batch(rows)
    flat = flatten(batch, LONGEST, width, CPU)
    expected = [[token for token, _ in document] for row in rows for document in row]
    assert pieces(flat)[: len(expected)] == expected
    tokens = flat.input_ids.shape[1]
    assert tokens == (width or -(-sum(map(len, expected)) // 64) * 64)
    assert flat.starts.tolist()[-1] == tokens
    assert max(map(len, pieces(flat))) <= LONGEST
    lengths = flat.starts.diff()
    assert torch.equal(flat.position_ids[0], torch.cat([torch.arange(n) for n in lengths]))


@given(rows=rows)
def test_what_counts_is_what_counted(rows: Rows) -> None:
    batch = micro_batch(rows)
    flat = flatten(batch, LONGEST, None, CPU)
    ids, targets = flat.input_ids[0], flat.targets
    counting = targets.labels != IGNORED_LABEL
    assert int(counting.sum()) == batch.target_count
    # What a token predicts is the token after it, in the same document.
    places = targets.rows[counting]
    assert torch.equal(ids[places + 1], targets.labels[counting])
    assert not set((places + 1).tolist()) & set(flat.starts.tolist())
    assert sorted(set(targets.rows.tolist())) == sorted(targets.rows.tolist())
    assert len(targets.rows) % 8 == 0
    assert len(targets.rows) > 0
    inverse = torch.full_like(ids, len(targets.rows))
    inverse[targets.rows] = torch.arange(len(targets.rows))
    assert torch.equal(targets.places, inverse)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65])
def test_widths_are_multiples(tokens: int) -> None:
    ids = torch.ones((1, tokens), dtype=torch.int64)
    positions = torch.arange(tokens)[None] % LONGEST
    batch = MicroBatch(ids, torch.full_like(ids, IGNORED_LABEL), positions, ids, 0)
    assert flatten(batch, LONGEST, None, CPU).input_ids.shape[1] == -(-tokens // 64) * 64


@given(rows=rows, width=st.sampled_from([None, 192, 193]))
def test_no_micro_batch_is_read_otherwise_than_another(rows: Rows, width: int | None) -> None:
    """How a kernel is compiled depends on where the numbers begin that it sees first."""
    flat = flatten(micro_batch(rows), LONGEST, width, CPU)
    parts = (
        flat.input_ids, flat.position_ids, flat.targets.rows, flat.targets.labels,
        flat.targets.places,
    )  # fmt: skip
    assert all(part.storage_offset() % 8 == 0 for part in parts)
