"""The shape read from a configuration, against the model that transformers makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from mltune_cli.model_shape import UnknownShapeError, model_shape

SIZES = {
    "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 192,
    "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
KINDS = [
    "cohere", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2", "gpt_neox", "granite",
    "llama", "mistral", "nemotron", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "starcoder2",
]  # fmt: skip


# What these kinds call their sizes, and what they do not have.
OTHERS = {
    "gpt2": {"n_inner": 192, "n_positions": 64, "num_key_value_heads": None},
    "gpt_neox": {"num_key_value_heads": None},
    "opt": {"ffn_dim": 192, "max_position_embeddings": 64, "num_key_value_heads": None},
}


def made(kind: str, **change: Any) -> Any:
    """A model of that kind without memory behind its weights."""
    sizes = SIZES | OTHERS.get(kind, {}) | change
    if kind in ("gpt2", "opt"):
        del sizes["intermediate_size"]
    config = AutoConfig.for_model(kind, pad_token_id=0, **sizes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_tied", [True, False])
def test_parameters_and_linear_layers_are_those_of_the_model(kind: str, is_tied: bool) -> None:
    model = made(kind, tie_word_embeddings=is_tied)
    shape = model_shape(model.config.to_dict())
    count = sum(p.numel() for p in model.parameters())
    # Biases and positions that are learned, 64 of them here, are not counted.
    assert -0.002 * count <= count - shape.parameters <= 0.05 * count
    linear = [
        (name.rpartition(".")[2], module.weight.numel())
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and (".layers.2." in name or ".h.2." in name)
    ]
    assert sorted(linear) == sorted((p.name, p.weights) for p in shape.projections)
    assert shape.is_tied is is_tied


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8}, "a mixtral model is a mixture of"),
        ({"model_type": "qwen3_moe", "num_experts": 128}, "mixture of experts"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is not a decoder alone"),
        ({"model_type": "llama", "hidden_size": None}, "has no hidden_size"),
        ({"model_type": "falcon", "intermediate_size": None}, "has no intermediate_size"),
        ({"model_type": "mamba", "num_attention_heads": None}, "has no num_attention_heads"),
        ({"vocab_size": True}, "has no vocab_size"),
        ({"vocab_size": -5}, "has no vocab_size"),
    ],
)
def test_a_kind_that_is_not_known_is_said(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnknownShapeError, match=complaint):
        model_shape({**SIZES, "model_type": "llama", **config})


def test_the_text_part_of_a_model_with_several_is_read() -> None:
    inner = {**SIZES, "model_type": "gemma3_text", "head_dim": 32}
    shape = model_shape({"model_type": "gemma3", "text_config": inner})
    assert shape.attention_width == 4 * 32
    assert shape.key_width == 2 * 32
    outer = {"model_type": "gemma3", "text_config": inner, "tie_word_embeddings": True}
    assert model_shape(outer).is_tied
