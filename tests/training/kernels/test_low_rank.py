"""Adapters computed in the base's format: the same mathematics as peft's, in one operation."""

from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

from mltune_cli.training.adapter import trained_parameters
from mltune_cli.training.kernels import low_rank
from mltune_cli.training.kernels.low_rank import compute_in_base_format

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


def network(dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SMALL)).to(dtype)  # type: ignore[arg-type]
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(base, LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # which starts at zero, so that nothing would show
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@given(
    tokens=st.integers(1, 5), inputs=st.integers(1, 6), outputs=st.integers(1, 6),
    rank=st.integers(1, 3), has_bias=st.booleans(), scaling=st.sampled_from([0.5, 2.0]),
)  # fmt: skip
# Wide: the adapter's part becomes columns of one product.
@example(tokens=7, inputs=2, outputs=9, rank=6, has_bias=False, scaling=0.5)
@example(tokens=7, inputs=2, outputs=9, rank=6, has_bias=True, scaling=2.0)
# The same with rows that the fast kernels do not know.
@example(tokens=7, inputs=2, outputs=9, rank=3, has_bias=True, scaling=2.0)
def test_it_is_base_plus_scaled_product(
    tokens: int, inputs: int, outputs: int, rank: int, has_bias: bool, scaling: float
) -> None:
    torch.manual_seed(tokens + 7 * inputs + 49 * outputs)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    x, a, b = make(tokens, inputs), make(rank, inputs), make(outputs, rank)
    for tensor in (x, a, b):
        tensor.requires_grad_()
    weight, bias = make(outputs, inputs), make(outputs) if has_bias else None

    def ours(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.mltune.low_rank_linear(x, weight, bias, a, b, scaling)[0]
        return result

    expected = x @ weight.t() + (0 if bias is None else bias) + scaling * (x @ a.t()) @ b.t()
    torch.testing.assert_close(ours(x, a, b), expected)
    assert torch.autograd.gradcheck(ours, (x, a, b))


def test_the_operation_keeps_its_promises_to_the_compiler() -> None:
    x, a, b = (torch.randn(*s, requires_grad=True) for s in ((5, 8), (2, 8), (6, 2)))
    weight = torch.randn(6, 8)
    torch.library.opcheck(torch.ops.mltune.low_rank_linear.default, (x, weight, None, a, b, 0.5))


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_model_computes_what_peft_computes(dropout: float, *, together: bool) -> None:
    tokens = torch.arange(24).reshape(2, 12)
    results = []
    for ours in (False, True):
        model = network(lora_dropout=dropout)
        trained = trained_parameters(model)
        copies = compute_in_base_format(model, trained, together=together) if ours else None
        assert (copies is not None) == ours
        model.train()
        torch.manual_seed(1)
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        leaves = trained if copies is None else copies.by_name
        results.append((loss, {name: tensor.grad for name, tensor in leaves.items()}))
        model.eval()
        with torch.no_grad():
            results[-1] += (model(input_ids=tokens).logits,)
    (loss, gradients, logits), (our_loss, our_gradients, our_logits) = results
    torch.testing.assert_close(our_loss, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(our_logits, logits, rtol=1e-4, atol=1e-5)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-3, atol=1e-6)


def test_copies_follow_what_is_trained() -> None:
    model = network(torch.bfloat16)
    trained = trained_parameters(model)
    copies = compute_in_base_format(model, trained)
    assert copies is not None
    tokens = torch.arange(12)[None]
    model.eval()
    before = model(input_ids=tokens).logits
    with torch.no_grad():
        for parameter in trained.values():
            parameter.mul_(2.0)
    assert torch.equal(model(input_ids=tokens).logits, before)
    copies.renew()
    assert not torch.equal(model(input_ids=tokens).logits, before)
    for name, copy in copies.by_name.items():
        assert copy.dtype == torch.bfloat16
        assert torch.equal(copy, trained[name].bfloat16())


def test_files_have_the_names_and_the_format_that_peft_gives_them() -> None:
    model = network(torch.bfloat16)
    expected = {name: tensor.clone() for name, tensor in get_peft_model_state_dict(model).items()}
    compute_in_base_format(model, trained_parameters(model))
    tensors = get_peft_model_state_dict(model, state_dict=trained_parameters(model))
    assert tensors.keys() == expected.keys()
    assert all(t.dtype == torch.float32 and torch.equal(t, expected[n]) for n, t in tensors.items())
    assert trained_parameters(model).keys() == trained_parameters(network()).keys()


@pytest.mark.parametrize(
    "options",
    [
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["lm_head"]},
    ],
)
def test_other_kinds_of_adapters_are_left_to_peft(options: dict[str, Any]) -> None:
    model = network(**options)
    kinds = [type(module) for module in model.modules()]
    assert compute_in_base_format(model, trained_parameters(model)) is None
    assert [type(module) for module in model.modules()] == kinds


def sharing() -> tuple[Any, Any, Any, torch.Tensor]:
    """Return queries, keys and values of a layer that are computed together, and their input."""
    model = network()
    compute_in_base_format(model, trained_parameters(model), together=True)
    attention = model.get_base_model().model.layers[0].self_attn
    return attention.q_proj, attention.k_proj, attention.v_proj, torch.randn(1, 5, 32)


def alone(layer: Any, x: torch.Tensor) -> torch.Tensor:
    adapter = x @ layer.compute_a.t() @ layer.compute_b.t()
    result: torch.Tensor = x @ layer.base_layer.weight.t() + layer.scaling["default"] * adapter
    return result


def test_layers_that_read_the_same_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    *layers, x = sharing()
    calls = []
    compute = low_rank._base_plus_adapter
    monkeypatch.setattr(
        low_rank, "_base_plus_adapter", lambda *given: calls.append(1) or compute(*given)
    )
    for _ in range(2):
        for layer in layers:
            torch.testing.assert_close(layer(x), alone(layer, x))
    assert len(calls) == 2
    # Weights and scores of the base are there once.
    places = {layer.base_layer.weight.untyped_storage().data_ptr() for layer in layers}
    assert len(places) == 1
    assert sum(layer.base_layer.weight.numel() for layer in layers) == 2 * 32 * 32


@given(calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1)), max_size=9))
def test_no_order_of_calls_mixes_them_up(calls: list[tuple[int, int]]) -> None:
    *layers, x = sharing()
    inputs = [x, x + 1]
    for layer, number in calls:
        expected = alone(layers[layer], inputs[number])
        torch.testing.assert_close(layers[layer](inputs[number]), expected)


def test_layers_of_different_kinds_are_not_computed_together() -> None:
    model = network(rank_pattern={"k_proj": 2}, alpha_pattern={"k_proj": 1})
    compute_in_base_format(model, trained_parameters(model), together=True)
    attention = model.get_base_model().model.layers[0].self_attn
    assert attention.q_proj.shared is None
    x = torch.randn(1, 5, 32)
    torch.testing.assert_close(attention.k_proj(x), alone(attention.k_proj, x))


def test_the_compiler_takes_them_for_one_graph() -> None:
    *layers, x = sharing()

    def all_three(x: torch.Tensor) -> list[torch.Tensor]:
        return [layer(x) for layer in layers]

    compiled = torch.compile(all_three, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(compiled(x), all_three(x), strict=True):
        torch.testing.assert_close(ours, theirs)
    sum(out.sum() for out in compiled(x)).backward()
    assert all(layer.compute_a.grad is not None for layer in layers)
