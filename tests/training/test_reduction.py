"""The sum of gradients has one value, whoever adds it up."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.training.reduction import TreeSum


def by_definition(values: list[torch.Tensor]) -> torch.Tensor:
    """The tree as documented: split at the largest power of two below the count."""
    if len(values) == 1:
        return values[0]
    split = 1 << (len(values) - 1).bit_length() - 1
    return by_definition(values[:split]) + by_definition(values[split:])


def gradients(count: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-20, 20, (count, 1), generator=generator).float()
    return list(torch.randn(count, 16, generator=generator) * torch.exp2(exponents))


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_is_the_documented_tree(count: int, seed: int) -> None:
    values = gradients(count, seed)
    tree = TreeSum()
    most_held = 0
    for value in values:
        tree.add([value.clone()])
        most_held = max(most_held, tree.held)
    assert torch.equal(tree.total()[0], by_definition(values))
    assert most_held <= math.floor(math.log2(count)) + 1


def test_is_not_the_running_sum() -> None:
    """The control: another order gives other bits, so the test above can fail."""
    values = gradients(23, seed=1)
    running = values[0].clone()
    for value in values[1:]:
        running += value
    assert not torch.equal(by_definition(values), running)


def test_starts_anew_after_a_total() -> None:
    tree = TreeSum()
    for _ in range(2):
        tree.add([torch.ones(3)])
        tree.add([torch.ones(3)])
        assert torch.equal(tree.total()[0], torch.full((3,), 2.0))
    with pytest.raises(ValueError, match="no gradients"):
        tree.total()
