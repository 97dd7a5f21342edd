"""The tensor digest sees every change of a bit, and nothing else."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.witness import digest
from mltune_cli.witness.digest import as_words, mixed_sum, tensors_digest

DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64,
)  # fmt: skip


def one(tensor: torch.Tensor) -> str:
    return tensors_digest({"t": tensor})


def swap_two(t: torch.Tensor) -> None:
    t[3], t[700] = t[700].clone(), t[3].clone()


def flip_two_signs(t: torch.Tensor) -> None:
    t[5] *= -1
    t[600] *= -1


def one_ulp(t: torch.Tensor) -> None:
    t[17] = torch.nextafter(t[17], torch.tensor(float("inf"), dtype=t.dtype))


def negative_zero(t: torch.Tensor) -> None:
    t[0] = -0.0


def reverse(t: torch.Tensor) -> None:
    t.copy_(t.flip(0))


def negate_all(t: torch.Tensor) -> None:
    t.neg_()


def shift_by_one(t: torch.Tensor) -> None:
    t.copy_(t.roll(1))


@pytest.mark.parametrize(
    "change",
    [swap_two, flip_two_signs, one_ulp, negative_zero, reverse, negate_all, shift_by_one],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sees_what_checksums_miss(
    change: Callable[[torch.Tensor], None], dtype: torch.dtype
) -> None:
    tensor = torch.arange(1000, dtype=dtype) / 7
    before = one(tensor)
    change(tensor)
    assert one(tensor) != before


def test_equal_nans_are_equal_and_other_nans_are_not() -> None:
    quiet = torch.tensor([float("nan"), 1.0])
    assert one(quiet) == one(quiet.clone())
    payload = torch.tensor(
        [struct.unpack("<i", struct.pack("<I", 0x7FC00001))[0]], dtype=torch.int32
    )
    assert one(torch.cat([payload.view(torch.float32), torch.tensor([1.0])])) != one(quiet)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_every_layout(dtype: torch.dtype) -> None:
    """A transposed view has the digest of its own copy, not of its storage."""
    tensor = (torch.arange(60).reshape(6, 10) % 2).to(dtype)
    assert one(tensor.t()) == one(tensor.t().contiguous())
    assert one(tensor.t()) != one(tensor.reshape(10, 6))
    assert one(tensor) == one(tensor.clone())


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=300),
    data=st.data(),
)
def test_any_single_bit_shows(values: list[int], data: st.DataObject) -> None:
    words = torch.from_numpy(np.array(values, dtype=np.uint32).view(np.int32).copy())
    changed = words.clone()
    index = data.draw(st.integers(0, len(values) - 1))
    bit = data.draw(st.integers(0, 31))
    changed[index] ^= -(1 << 31) if bit == 31 else 1 << bit
    assert one(words) != one(changed)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8), bucket=st.integers(1, 40))
def test_buckets_do_not_show(sizes: list[int], bucket: int) -> None:
    """Joining small tensors and cutting large ones is bookkeeping: the digest is the same."""
    tensors = {
        f"t{number}": torch.arange(size, dtype=torch.float32) + number
        for number, size in enumerate(sizes)
    }
    expected = tensors_digest(tensors)
    whole = digest._CPU_BUCKET_ELEMENTS
    digest._CPU_BUCKET_ELEMENTS = bucket
    try:
        assert tensors_digest(tensors) == expected
    finally:
        digest._CPU_BUCKET_ELEMENTS = whole


def test_thread_count_does_not_show() -> None:
    tensor = torch.arange(3_000_000, dtype=torch.float32).sin()
    threads = torch.get_num_threads()
    digests = set()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            digests.add(int(mixed_sum(as_words(tensor), 0)))
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


def test_names_shapes_and_dtypes_count() -> None:
    tensor = torch.zeros(4)
    digests = {
        one(tensor),
        one(tensor.reshape(2, 2)),
        one(tensor.to(torch.int32)),
        tensors_digest({"u": tensor}),
        tensors_digest({"t": tensor, "u": torch.zeros(0)}),
        tensors_digest({}),
    }
    assert len(digests) == 6


def test_known_value() -> None:
    """The definition does not drift between releases: old witness files stay comparable."""
    assert one(torch.arange(5, dtype=torch.float32)) == "cb389e9ba540a26f"
    assert one(torch.arange(5, dtype=torch.bfloat16)) == "1127f14bd910ef7b"


def test_another_kernel_computes_on_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_gpu_sum", None)
    before = one(torch.arange(5))

    def never(words: torch.Tensor, first: int) -> torch.Tensor:
        raise AssertionError("this is a CPU")

    digest.sum_on_gpu_by(never)
    assert one(torch.arange(5)) == before
