"""The loss in pieces, against the loss of all scores at once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from mltune_cli.training.kernels import cross_entropy
from mltune_cli.training.kernels.cross_entropy import (
    IGNORED,
    OutputLayer,
    Targets,
    linear_cross_entropy,
)

FEATURES, VOCABULARY = 6, 37


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)


def targets_of(labels: torch.Tensor, extra: int = 0) -> Targets:
    """Return the tokens that count, and some more that do not."""
    rows = torch.nonzero(labels != IGNORED)[:, 0]
    rows = torch.cat([rows, torch.nonzero(labels == IGNORED)[:extra, 0]])
    places = torch.full_like(labels, rows.shape[0])
    places[rows] = torch.arange(rows.shape[0])
    return Targets(rows, labels[rows], places)


def reference(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, softcap: float | None
) -> torch.Tensor:
    scores = hidden @ weight.t()
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return F.cross_entropy(scores, labels, ignore_index=IGNORED, reduction="sum")


@given(
    labels=st.lists(
        st.one_of(st.just(IGNORED), st.integers(0, VOCABULARY - 1)), min_size=1, max_size=15
    ),
    softcap=st.sampled_from([None, 1.5]),
    extra=st.integers(0, 5),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_are_those_of_all_scores(
    labels: list[int], softcap: float | None, extra: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(labels), FEATURES, generator=generator, requires_grad=True)
    weight = torch.randn(VOCABULARY, FEATURES, generator=generator, requires_grad=True)
    wanted = torch.tensor(labels)
    ours = linear_cross_entropy(hidden, weight, targets_of(wanted, extra), OutputLayer(softcap))
    theirs = reference(hidden, weight, wanted, softcap)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    # What is divided by the tokens of a step arrives in the gradients.
    for mine, other in zip(
        torch.autograd.grad(ours / 7, [hidden, weight]),
        torch.autograd.grad(theirs / 7, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes how many elements the largest tensor had that was made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return result


def test_the_scores_of_all_tokens_never_exist() -> None:
    tokens = 40
    hidden = torch.randn(tokens, FEATURES, requires_grad=True)
    weight = torch.randn(VOCABULARY, FEATURES)
    labels = torch.randint(VOCABULARY, (tokens,))
    with Largest() as made:
        linear_cross_entropy(hidden, weight, targets_of(labels), OutputLayer(None)).backward()  # type: ignore[no-untyped-call]
    assert made.elements <= max(4 * VOCABULARY, (tokens + 1) * FEATURES)
    with Largest() as control:
        reference(hidden, weight, labels, None)
    assert control.elements == tokens * VOCABULARY


def test_without_a_backward_pass_no_gradient_is_kept() -> None:
    hidden, weight = torch.randn(5, FEATURES), torch.randn(VOCABULARY, FEATURES)
    labels = torch.tensor([1, 2, IGNORED, 3, 4])
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets_of(labels), OutputLayer(None))
    assert not loss.requires_grad
    torch.testing.assert_close(loss, reference(hidden, weight, labels, None))


def test_bfloat16_scores_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(64, FEATURES).bfloat16().requires_grad_()
    weight = torch.randn(VOCABULARY, FEATURES).bfloat16()
    labels = torch.randint(VOCABULARY, (64,))
    loss = linear_cross_entropy(hidden, weight, targets_of(labels), OutputLayer(None))
    assert loss.dtype == torch.float32
    scores = (hidden @ weight.t()).float()
    exact = F.cross_entropy(scores, labels, reduction="sum")
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.dtype == torch.bfloat16
