"""The estimate of memory, against peaks that were measured and against what autograd keeps."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, LlamaConfig

from mltune_cli.memory_estimate import (
    MemoryEstimate,
    adapter_parameters,
    estimate_memory,
    gibibytes,
    kept_activations,
)
from mltune_cli.model_shape import ModelShape, model_shape
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.adapter import prepare_trainable

# The model of `benchmarks/shapes.py 1b`.
SHAPE_1B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 16,
    "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "tie_word_embeddings": True,
}  # fmt: skip
# One NVIDIA H100, torch 2.11 (CUDA 13), transformers 5.17, peft 0.21, bitsandbytes for nf4:
# `mltune train` for four steps of two micro-batches, one packed row of `data.max_length` tokens in
# each, LoRA of rank 16 on all linear layers with dropout 0.1, bfloat16, but for what is named. The
# peak is torch.cuda.max_memory_allocated.
MEASURED: list[tuple[dict[str, Any], int, int]] = [
    ({}, 12_054_419_456, 11_272_192),
    ({"train.activation_checkpointing": True}, 6_028_016_128, 11_272_192),
    ({"adapter.dropout": 0.0}, 11_394_865_664, 11_272_192),
    ({"data.max_length": 1024}, 7_352_769_536, 11_272_192),
    ({"train.micro_batch_size": 2}, 21_386_484_224, 11_272_192),
    ({"adapter.method": "dora"}, 22_105_131_520, 11_649_024),
    ({"adapter.method": "full", "adapter.dropout": 0.0}, 30_073_065_984, 1_235_814_400),
    ({"model.dtype": "float32"}, 16_807_225_344, 11_272_192),
    ({"adapter.rank": 64}, 12_638_476_800, 45_088_768),
    ({"model.base_precision": "nf4"}, 10_609_433_600, 11_272_192),
    ({"model.attention": "eager", "data.max_length": 1024}, 10_471_234_560, 11_272_192),
    (
        {"train.activation_checkpointing": True, "data.max_length": 8192},
        16_001_620_480,
        11_272_192,
    ),
    (
        {
            "adapter.method": "full",
            "adapter.dropout": 0.0,
            "train.activation_checkpointing": True,
        },
        29_728_992_768,
        1_235_814_400,
    ),
    ({"adapter.target_modules": ["q_proj", "v_proj"]}, 9_209_551_360, 1_703_936),
]


def recipe(**values: Any) -> Recipe:
    base = {
        "model.name_or_path": "a", "data.train": "b", "model.dtype": "bfloat16",
        "model.attention": "sdpa", "data.max_length": 2048, "data.packing": True,
        "adapter.dropout": 0.1, "train.micro_batch_size": 1,
        "train.micro_batches_per_step": 2,
    }  # fmt: skip
    return Recipe().with_values(base | values)


def on_gpu(shape: ModelShape, values: dict[str, Any], **more: Any) -> MemoryEstimate:
    return estimate_memory(shape, recipe(**values), is_cuda=True, **more)


SHAPE_8B = SHAPE_1B | {
    "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "head_dim": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
# One NVIDIA H200 with the fast kernels, torch 2.11, transformers 5.17: packed rows of 2048 tokens,
# no dropout, one micro-batch a step but where one row is all of it, which has eight. GiB.
FAST: list[tuple[dict[str, Any], dict[str, Any], float]] = [
    (SHAPE_1B, {"train.micro_batch_size": 8}, 24.27),
    (SHAPE_1B, {"train.micro_batch_size": 8, "adapter.dropout": 0.1}, 33.18),
    (SHAPE_1B, {"train.micro_batch_size": 1, "train.micro_batches_per_step": 8}, 6.17),
    (SHAPE_8B, {"train.micro_batch_size": 8}, 91.61),
    (SHAPE_8B, {"train.micro_batch_size": 8, "model.base_precision": "fp8"}, 85.16),
]


@pytest.mark.parametrize(("shape", "values", "peak"), FAST)
def test_the_estimate_of_the_fast_kernels_is_close_too(
    shape: dict[str, Any], values: dict[str, Any], peak: float
) -> None:
    fast = {
        "model.attention": "auto", "adapter.dropout": 0.0, "train.micro_batches_per_step": 1,
    }  # fmt: skip
    estimate = on_gpu(model_shape(shape), fast | values)
    assert abs(estimate.total / 2**30 / peak - 1) < 0.03


@pytest.mark.parametrize(
    "slow",
    [
        {"model.attention": "sdpa"}, {"model.attention": "eager"}, {"model.compile": False},
        {"adapter.method": "dora"}, {"adapter.compute_dtype": "float32"},
    ],
)  # fmt: skip
def test_the_other_kernels_need_more(slow: dict[str, Any]) -> None:
    shape = model_shape(SHAPE_1B)
    fast = on_gpu(shape, {"model.attention": "auto"})
    assert on_gpu(shape, {"model.attention": "auto"} | slow).total > 1.2 * fast.total


@pytest.mark.parametrize(("values", "peak_bytes", "trained"), MEASURED)
def test_the_estimate_is_within_15_percent_of_the_measured_peak(
    values: dict[str, Any], peak_bytes: int, trained: int
) -> None:
    shape = model_shape(SHAPE_1B)
    estimate = on_gpu(shape, values)
    assert abs(estimate.total / peak_bytes - 1) < 0.15
    # The bound of the promise is wide; what the formulas reach is 1.3 %.
    assert abs(estimate.total / peak_bytes - 1) < 0.03
    if values.get("adapter.method") == "full":
        assert shape.parameters == trained
    else:
        assert adapter_parameters(shape, recipe(**values)) == trained


def test_a_base_that_is_divided_over_four_gpus() -> None:
    """Measured on four NVIDIA H200, see benchmarks/README.md: 11.2 GiB whole, 10.0 GiB divided."""
    shape = model_shape(SHAPE_1B)
    values = {"model.sharding": "fsdp", "train.micro_batches_per_step": 8, "data.packing": False}
    whole, divided = on_gpu(shape, values), on_gpu(shape, values, shards=4)
    assert whole.total == pytest.approx(11.2 * 2**30, rel=0.03)
    assert divided.total == pytest.approx(10.0 * 2**30, rel=0.03)
    full = values | {"adapter.method": "full", "adapter.dropout": 0.0}
    assert on_gpu(shape, full, shards=4).optimizer == on_gpu(shape, full).optimizer // 4
    assert on_gpu(shape, full, shards=4).total < 0.5 * on_gpu(shape, full).total


def test_the_parts_are_the_whole() -> None:
    estimate = on_gpu(model_shape(SHAPE_1B), {})
    parts = vars(estimate)
    assert len(parts) == 7
    assert estimate.total == sum(parts.values())
    assert min(parts.values()) > 0
    assert estimate.in_words().startswith("activations 5.8 GiB, logits 2.9 GiB, weights 2.3 GiB")


def test_whether_activations_must_be_recomputed_can_be_asked() -> None:
    shape = model_shape(SHAPE_1B)
    plain, relieved = on_gpu(shape, {}), on_gpu(shape, {}, activation_checkpointing=True)
    assert relieved == on_gpu(shape, {"train.activation_checkpointing": True})
    assert relieved.total < 0.6 * plain.total
    assert (relieved.weights, relieved.optimizer) == (plain.weights, plain.optimizer)
    again = on_gpu(shape, {"train.activation_checkpointing": True}, activation_checkpointing=False)
    assert again == plain


def test_what_the_files_say_of_parameters_counts() -> None:
    shape = model_shape(SHAPE_1B)
    assert on_gpu(shape, {}, parameters=10**9).weights == 2 * 10**9
    assert on_gpu(shape, {"model.dtype": "auto"}).weights == 2 * shape.parameters
    on_cpu = estimate_memory(shape, recipe(**{"model.dtype": "auto"}), is_cuda=False)
    assert on_cpu.weights == 4 * shape.parameters


MORE = [
    ("data.max_length", 1024, 2048), ("train.micro_batch_size", 1, 2), ("adapter.rank", 8, 16),
    ("adapter.dropout", 0.0, 0.1), ("data.packing", False, True),
    ("train.micro_batches_per_step", 1, 8), ("model.base_precision", "nf4", "dtype"),
    ("adapter.method", "lora", "dora"), ("model.attention", "sdpa", "eager"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "less", "more"), MORE)
def test_more_of_anything_needs_more(key: str, less: Any, more: Any) -> None:
    shape = model_shape(SHAPE_1B)
    assert on_gpu(shape, {key: less}).total < on_gpu(shape, {key: more}).total


@given(
    st.integers(1, 4), st.integers(2, 300), st.sampled_from(["lora", "rslora", "dora", "full"]),
    st.sampled_from(["float32", "bfloat16"]), st.booleans(), st.sampled_from([0.0, 0.1]),
    st.integers(1, 9),
)  # fmt: skip
def test_no_recipe_has_a_part_below_zero(
    rows: int, length: int, method: str, dtype: str, checkpointing: bool, dropout: float, count: int
) -> None:
    shape = model_shape(SHAPE_1B | {"num_hidden_layers": 2, "hidden_size": 64})
    values = {
        "train.micro_batch_size": rows, "data.max_length": length, "adapter.method": method,
        "model.dtype": dtype, "train.activation_checkpointing": checkpointing,
        "adapter.dropout": dropout, "train.micro_batches_per_step": count,
    }  # fmt: skip
    for is_cuda in (True, False):
        estimate = estimate_memory(shape, recipe(**values), is_cuda=is_cuda)
        assert all(size >= 0 for size in vars(estimate).values())
        assert estimate.total >= estimate.weights + estimate.optimizer


def test_bytes_in_words() -> None:
    assert gibibytes(0) == "0 MiB"
    assert gibibytes(48 * 2**20) == "48 MiB"
    assert gibibytes(11.3 * 2**30) == "11.3 GiB"


# What autograd really keeps -----------------------------------------------------------------------

SMALL = {
    "vocab_size": 512, "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024,
    "num_attention_heads": 8, "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
KEPT = [
    {"adapter.dropout": 0.1},
    {"adapter.dropout": 0.0},
    {"adapter.dropout": 0.1, "train.micro_batch_size": 2},
    {"model.dtype": "float32", "adapter.dropout": 0.0},
    {"model.dtype": "float32", "adapter.dropout": 0.1},
    {"adapter.dropout": 0.0, "model.attention": "eager"},
    {"adapter.dropout": 0.0, "adapter.target_modules": ["q_proj", "v_proj"]},
    {"adapter.method": "full", "adapter.dropout": 0.0},
    {"adapter.method": "full", "adapter.dropout": 0.0, "model.dtype": "float32"},
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("values", KEPT)
def test_the_activations_are_what_autograd_keeps(values: dict[str, Any]) -> None:
    """The same network that mltune trains, on a CPU; each tensor that is kept is counted once."""
    older = {"model.attention": "sdpa", "data.max_length": 256, "data.packing": False}
    plan = recipe(**(older | values))
    config = LlamaConfig(**SMALL)
    is_full, is_half = plan.adapter.method == "full", plan.model.dtype == "bfloat16"
    torch.set_default_dtype(torch.bfloat16 if is_half and not is_full else torch.float32)
    try:
        network = AutoModelForCausalLM.from_config(config, attn_implementation=plan.model.attention)
    finally:
        torch.set_default_dtype(torch.float32)
    base: Any = SimpleNamespace(model=network, name="a", revision=None)
    model: Any = prepare_trainable(base, plan).train()
    kept: dict[int, torch.Tensor] = {}
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    rows = torch.randint(0, 500, (plan.train.micro_batch_size, 256))
    mask = torch.ones_like(rows)
    mask[1:, -3:] = 0  # a second row is a shorter one
    precision: Any = contextlib.nullcontext()
    if is_full and is_half:
        precision = torch.autocast("cpu", dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        model(input_ids=rows, attention_mask=mask, use_cache=False)
    real = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    shape = model_shape(config.to_dict())
    assert kept_activations(shape, plan, is_cuda=False) == pytest.approx(real, rel=0.05)
