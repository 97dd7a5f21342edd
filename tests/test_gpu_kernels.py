"""Kernels that only a GPU runs, against what a CPU computes of the same numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.training.kernels.float8 import FORMAT, quantised_rows
from mltune_cli.witness import digest
from mltune_cli.witness.digest import sum_on_gpu_by, tensors_digest

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GPU = "cuda"


@settings(max_examples=50, deadline=None)
@given(
    count=st.sampled_from([1, 2, 4095, 4096, 4097, 100_000]),
    position=st.sampled_from([0, 1, 2**22, 2**40]),
    seed=st.integers(0, 5),
)
def test_a_digest_is_the_same_by_its_kernel(count: int, position: int, seed: int) -> None:
    from mltune_cli.training.kernels.digesting import mixed_sum_on_gpu

    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
    expected = digest.mixed_sum(words, position)
    assert mixed_sum_on_gpu(words.to(GPU), position).item() == expected.item()


def test_digests_of_tensors_do_not_tell_how_they_were_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mltune_cli.training.kernels.digesting import mixed_sum_on_gpu

    monkeypatch.setattr(digest, "_gpu_sum", None)
    tensors = {
        "large": torch.randn(3000, 3001), "half": torch.randn(77).bfloat16(),
        "bytes": torch.randn(16, 16).to(FORMAT), "whole": torch.arange(99), "none": torch.empty(0),
    }  # fmt: skip
    expected = tensors_digest(tensors)
    on_gpu = {name: tensor.to(GPU) for name, tensor in tensors.items()}
    assert tensors_digest(on_gpu) == expected
    sum_on_gpu_by(mixed_sum_on_gpu)
    assert tensors_digest(on_gpu) == expected
    on_gpu["large"][2999, 3000] = -on_gpu["large"][2999, 3000]
    assert tensors_digest(on_gpu) != expected


@pytest.mark.parametrize("shape", [(16, 16), (128, 128), (129, 127), (1, 500), (4096, 1040)])
def test_bytes_are_transposed(shape: tuple[int, int]) -> None:
    from mltune_cli.training.kernels.transposing import transposed_on_gpu

    matrix = torch.randint(0, 256, shape, dtype=torch.uint8, device=GPU)
    assert torch.equal(transposed_on_gpu(matrix), matrix.t())


@pytest.mark.parametrize("has_bias", [False, True])
def test_products_in_eight_bits_are_those_of_the_cpu(*, has_bias: bool) -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(70, 256).bfloat16(), torch.randn(70, 512).bfloat16()
    a, b = torch.randn(8, 256).bfloat16(), torch.randn(512, 8).bfloat16()
    weight, scales = quantised_rows(torch.randn(512, 256))
    bias = torch.randn(512).bfloat16() if has_bias else None
    results = []
    for device in ("cpu", GPU, GPU):
        leaves = [t.to(device).requires_grad_() for t in (x, a, b)]
        frozen = [weight.to(device), scales[:, 0].to(device), None]
        frozen[2] = None if bias is None else bias.to(device)
        x8 = quantised_rows(leaves[0].detach())
        out = torch.ops.mltune.float8_low_rank_linear(leaves[0], *x8, *frozen, *leaves[1:], 0.5)[0]
        results.append([out, *torch.autograd.grad(out, leaves, grad.to(device))])
    for expected, first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
        error = (first.cpu().float() - expected.float()).norm() / expected.float().norm()
        assert error < 0.01
