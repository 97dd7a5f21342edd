"""Attention over documents in one row, against attention over the whole row with a mask."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.training.kernels import attention

DTYPE = torch.float64


def masked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: list[int],
    window: int | None,
) -> torch.Tensor:
    """Return the same by one product over the whole row; what must not be seen is masked."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(len(document))
    distance = place[:, None] - place[None]
    seen = (document[:, None] == document[None]) & (distance >= 0)
    if window is not None:
        seen &= distance < window
    result = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
    return result.transpose(1, 2)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    heads=st.sampled_from([(1, 1), (4, 2), (4, 1)]),
    window=st.one_of(st.none(), st.integers(1, 10)),
    seed=st.integers(0, 2**31),
)
def test_each_document_sees_itself_alone(
    lengths: list[int], heads: tuple[int, int], window: int | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = [
        torch.randn(1, count, sum(lengths), 8, dtype=DTYPE, generator=generator, requires_grad=True)
        for count in (heads[0], heads[1], heads[1])
    ]
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    result, weights = attention.packed_attention(
        torch.nn.Module(), *inputs, None, cu_seq_lens_q=starts, max_length_q=9,
        sliding_window=window, dropout=0.0,
    )  # fmt: skip
    expected = masked(*inputs, lengths, window)
    assert weights is None
    torch.testing.assert_close(result, expected)
    gradient = torch.randn(result.shape, dtype=DTYPE, generator=generator)
    # The backward pass of the reference is computed in float32.
    for ours, theirs in zip(
        torch.autograd.grad(result, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_operation_keeps_its_promises_to_the_compiler() -> None:
    q, k, v = (torch.randn(6, n, 8, requires_grad=True) for n in (4, 2, 2))
    starts = torch.tensor([0, 2, 6], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.mltune.attention_by_documents.default, (q, k, v, starts, 0.3, -1)
    )


def config(**values: Any) -> Any:
    return SimpleNamespace(hidden_size=64, num_attention_heads=4, **values)


@pytest.mark.parametrize(
    ("values", "dtype", "device", "word"),
    [
        ({"attention_dropout": 0.1}, torch.bfloat16, "cuda", "at random"),
        ({"attn_logit_softcapping": 50.0}, torch.bfloat16, "cuda", "caps"),
        ({}, torch.float32, "cuda", "float32"),
        ({"head_dim": 264}, torch.bfloat16, "cuda", "264"),
        ({"head_dim": 20}, torch.bfloat16, "cuda", "20"),
        ({"attention_dropout": 0.1}, torch.float32, "cpu", "at random"),
    ],
)
def test_what_it_cannot_compute_is_said(
    values: dict[str, Any], dtype: torch.dtype, device: str, word: str
) -> None:
    assert word in str(attention.why_unfit(config(**values), dtype, torch.device(device)))


def test_what_it_can_compute() -> None:
    for values in ({}, {"head_dim": 256}, {"attention_dropout": 0.0}):
        assert attention.why_unfit(config(**values), torch.bfloat16, torch.device("cuda")) is None
    assert attention.why_unfit(config(), torch.float32, torch.device("cpu")) is None
