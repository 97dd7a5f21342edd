"""Frozen weights in eight bits: what is computed, what is held, and what is refused."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mltune_cli.errors import RecipeValueError
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training import model as model_module
from mltune_cli.training.adapter import trained_parameters
from mltune_cli.training.kernels import float8
from mltune_cli.training.kernels.float8 import Float8Linear, hold_in_float8, quantised_rows
from mltune_cli.training.kernels.low_rank import compute_in_base_format
from mltune_cli.training.model import resolved_model_section
from mltune_cli.witness.digest import tensors_digest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def values_of(quantised: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return quantised.double() * scales.double()


@given(
    row=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=9),
    exponent=st.integers(-20, 20),
)
def test_quantised_values_are_near(row: list[float], exponent: int) -> None:
    values = torch.tensor([row], dtype=torch.float32) * 2.0**exponent
    largest = values.abs().max().item()
    result = values_of(*quantised_rows(values))
    # Three bits of fraction: half of an eighth; near zero, steps of the smallest number, 2**-9.
    bound = torch.maximum(values.abs().double() / 16, torch.tensor(largest / 448 / 1024)) * 1.001
    assert ((result - values.double()).abs() <= bound + 1e-36).all()


def test_rows_do_not_know_of_each_other() -> None:
    values = torch.randn(5, 32) * torch.tensor([[1e-20], [1e-3], [1.0], [1e3], [1e20]])
    together = quantised_rows(values)
    for place in range(5):
        alone = quantised_rows(values[place : place + 1])
        assert torch.equal(
            alone[0].view(torch.uint8), together[0][place : place + 1].view(torch.uint8)
        )
        assert torch.equal(alone[1], together[1][place : place + 1])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_stays_so(bad: float) -> None:
    values = torch.ones(2, 16)
    values[0, 3] = bad
    weight, scales = quantised_rows(torch.ones(16, 16))
    out = torch.ops.mltune.float8_linear(
        values, *quantised_rows(values), weight, scales[:, 0], None
    )
    assert not out[0].isfinite().any()
    torch.testing.assert_close(out[1], torch.full((16,), 16.0))


def test_rows_of_zeros_stay_zeros() -> None:
    quantised, scales = quantised_rows(torch.zeros(2, 16))
    assert torch.equal(values_of(quantised, scales), torch.zeros(2, 16, dtype=torch.float64))


@given(
    tokens=st.integers(1, 5), inputs=st.sampled_from([16, 32]), outputs=st.sampled_from([16, 48]),
    has_bias=st.booleans(), rank=st.integers(1, 3), scaling=st.sampled_from([0.5, 2.0]),
)  # fmt: skip
def test_both_directions_are_products_of_quantised_rows(
    tokens: int, inputs: int, outputs: int, has_bias: bool, rank: int, scaling: float
) -> None:
    torch.manual_seed(tokens + inputs + outputs)
    x, a, b = torch.randn(tokens, inputs), torch.randn(rank, inputs), torch.randn(outputs, rank)
    for tensor in (x, a, b):
        tensor.requires_grad_()
    weight, scales = quantised_rows(torch.randn(outputs, inputs))
    bias = torch.randn(outputs) if has_bias else None
    grad = torch.randn(tokens, outputs)
    x8 = quantised_rows(x.detach())

    plain = torch.ops.mltune.float8_linear(x, *x8, weight, scales[:, 0], bias)
    base = values_of(*x8) @ values_of(weight, scales).t() + (0 if bias is None else bias)
    torch.testing.assert_close(plain.double(), base, atol=1e-4, rtol=1e-4)
    (plain_grad,) = torch.autograd.grad(plain, x, grad)
    folded = values_of(*quantised_rows(grad * scales[:, 0]))
    base_grad = folded @ weight.double()
    torch.testing.assert_close(plain_grad.double(), base_grad, atol=1e-4, rtol=1e-4)

    both = torch.ops.mltune.float8_low_rank_linear(
        x, *x8, weight, scales[:, 0], bias, a, b, scaling
    )[0]
    adapter = scaling * (x.double() @ a.double().t()) @ b.double().t()
    torch.testing.assert_close(both.double(), base + adapter, atol=1e-4, rtol=1e-4)
    grads = torch.autograd.grad(both, (x, a, b), grad)
    # The adapter's part is not quantised.
    expected = torch.autograd.grad(adapter, (x, a, b), grad.double())
    for ours, theirs, more in zip(grads, expected, (base_grad, 0, 0), strict=True):
        torch.testing.assert_close(ours.double(), theirs.double() + more, atol=1e-4, rtol=1e-4)


def test_the_operations_keep_their_promises_to_the_compiler() -> None:
    x, a, b = (torch.randn(*s, requires_grad=True) for s in ((5, 16), (2, 16), (32, 2)))
    weight, scales = quantised_rows(torch.randn(32, 16))
    base = (x, *quantised_rows(x.detach()), weight, scales[:, 0].contiguous(), None)
    # Its check of the schema computes with the arguments, which eight bits do not let it.
    checks = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    both = (*base, a, b, 0.5)
    torch.library.opcheck(torch.ops.mltune.float8_linear.default, base, test_utils=checks)
    torch.library.opcheck(torch.ops.mltune.float8_low_rank_linear.default, both, test_utils=checks)


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SMALL))  # type: ignore[arg-type]
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(base, LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def held(model: Any) -> int:
    return hold_in_float8(model.get_base_model().get_decoder(), CPU)[0]


def test_all_frozen_matrices_of_the_layers_are_held_so_and_nothing_else() -> None:
    model = network(target_modules=["q_proj", "down_proj"])
    assert held(model) == 2 * 7
    kinds = {name: tensor.dtype for name, tensor in model.named_parameters()}
    eight = {name for name, dtype in kinds.items() if dtype == float8.FORMAT}
    assert len(eight) == 2 * 7
    assert all(".layers." in name and "lora" not in name for name in eight)
    assert set(kinds.values()) == {float8.FORMAT, torch.float32}
    assert all(parameter.requires_grad for parameter in trained_parameters(model).values())
    assert held(model) == 0


def test_widths_that_tensor_cores_do_not_know_stay_as_they_are() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.Linear(32, 48))
    layers.requires_grad_(requires_grad=False)
    assert hold_in_float8(layers, CPU) == (1, 1)
    assert [type(layer) for layer in layers] == [torch.nn.Linear, Float8Linear]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_our_layers_and_pefts_compute_the_same(dropout: float) -> None:
    tokens = torch.arange(24).reshape(2, 12)
    results = []
    for ours in (False, True):
        model = network(lora_dropout=dropout)
        held(model)
        trained = trained_parameters(model)
        copies = compute_in_base_format(model, trained) if ours else None
        assert (copies is not None) == ours
        model.train()
        torch.manual_seed(1)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        leaves: Any = trained if copies is None else copies.by_name
        results.append((loss, {name: tensor.grad for name, tensor in leaves.items()}))
    (loss, gradients), (our_loss, our_gradients) = results
    # Where a rounding falls to the other side, an eighth of a number changes.
    torch.testing.assert_close(our_loss, loss, atol=2e-3, rtol=0)
    for name, gradient in gradients.items():
        assert torch.dist(our_gradients[name], gradient) <= 0.05 * gradient.norm(), name


def test_a_model_in_eight_bits_is_near_to_the_model() -> None:
    tokens = torch.arange(24).reshape(2, 12)
    model = network()
    expected = model(input_ids=tokens, labels=tokens).loss
    held(model)
    loss = model(input_ids=tokens, labels=tokens).loss
    assert loss != expected
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0)


def test_one_flipped_bit_of_a_weight_or_a_scale_shows_in_the_digest() -> None:
    model = network()
    held(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    before = tensors_digest(tensors)
    weight = next(t for t in tensors.values() if t.dtype == float8.FORMAT)
    weight.data.view(torch.uint8)[0, 0] ^= 1
    flipped = tensors_digest(tensors)
    weight.data.view(torch.uint8)[0, 0] ^= 1
    assert tensors_digest(tensors) == before != flipped
    next(t for n, t in tensors.items() if "weight_scales" in n)[0] *= 2
    assert tensors_digest(tensors) not in (before, flipped)


@pytest.mark.parametrize(
    ("capability", "cuda", "dtype", "message"),
    [
        ((8, 0), "13.0", "auto", "model.base_precision: Some GPU does not multiply in 8 bits"),
        ((9, 4), None, "auto", "model.base_precision: Some GPU does not multiply in 8 bits"),
        ((9, 0), "13.0", "float32", "model.dtype: a product in 8 bits"),
        ((8, 9), "13.0", "auto", None),
    ],
)
def test_gpus_that_cannot_are_told(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    cuda: str | None,
    dtype: str,
    message: str | None,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(model_module.torch.version, "cuda", cuda)
    recipe = Recipe.model_validate({"model": {"base_precision": "fp8", "dtype": dtype}})
    if message is None:
        assert resolved_model_section(recipe).dtype == "bfloat16"
        return
    with pytest.raises(RecipeValueError) as caught:
        resolved_model_section(recipe)
    assert message in str(caught.value)
