"""Which kernels a recipe, a model and a device come to."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from mltune_cli.errors import RecipeValueError
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.kernels import compiler as gpu_compiler
from mltune_cli.training.kernels.choice import FAMILIES, Choice, choose_kernels

SmokeRecipe = Callable[..., Recipe]
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


def network(kind: str, **values: Any) -> Any:
    config = CONFIG_MAPPING[kind](**(SMALL | values))
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture
def choose(smoke_recipe: SmokeRecipe, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Choice]:
    """As on a machine with a GPU, where triton and a compiler are installed."""
    monkeypatch.setattr(gpu_compiler.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(gpu_compiler.shutil, "which", lambda name: name)
    gpu = SimpleNamespace(total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)

    def call(model: Any, device: torch.device = GPU, *, shards: int = 1, **values: Any) -> Choice:
        values = {
            "model__dtype": "bfloat16" if device == GPU else "float32",
            "data__packing": "auto",
        } | values
        return choose_kernels(smoke_recipe(**values), model, device)

    return call


def chosen(result: Choice) -> tuple[object, ...]:
    recipe = result.recipe
    return (
        recipe.model.attention,
        recipe.model.compile,
        recipe.data.packing,
        recipe.train.loss_kernel,
    )


FAST = ("varlen", True, True, "chunked")
PLAIN = ("sdpa", False, False, "whole")


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_families_are_fast_on_a_gpu_and_plain_on_a_cpu(
    choose: Callable[..., Choice], kind: str
) -> None:
    values = {"attn_logit_softcapping": None} if kind == "gemma2" else {}
    model = network(kind, **values)
    assert chosen(choose(model)) == FAST
    assert choose(model).notices == ()
    assert chosen(choose(model, CPU)) == (model.config._attn_implementation, *PLAIN[1:])
    assert choose(model, CPU).notices == ()


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("phi3", {"pad_token_id": 0}, "they know gemma"),
        ("llama", {"attention_dropout": 0.1}, "at random"),
        ("gemma2", {}, "caps attention scores"),
        ("llama", {"head_dim": 20}, "heads of 20"),
    ],
)
def test_other_models_fall_back_and_one_line_says_why(
    choose: Callable[..., Choice], kind: str, values: dict[str, Any], reason: str
) -> None:
    model = network(kind, **values)
    result = choose(model)
    (notice,) = result.notices
    assert reason in notice
    assert kind in notice
    assert chosen(result)[1:] == PLAIN[1:]
    assert chosen(result)[0] == model.config._attn_implementation
    with pytest.raises(RecipeValueError, match=rf"model.attention.*{reason}"):
        choose(model, model__attention="varlen")


def test_float32_is_not_computed_by_the_fast_kernels(choose: Callable[..., Choice]) -> None:
    result = choose(network("llama"), model__dtype="float32")
    assert chosen(result) == PLAIN
    assert "float32" in result.notices[0]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"adapter__method": "dora"}, "DoRA"),
        ({"model__base_precision": "nf4"}, "4 bits"),
        ({"model__sharding": "fsdp"}, "over processes"),
    ],
)
def test_what_cannot_be_compiled_is_said(
    choose: Callable[..., Choice], values: dict[str, Any], reason: str
) -> None:
    result = choose(network("llama"), **values)
    assert result.recipe.model.attention == "varlen"
    assert result.recipe.model.compile is False
    assert reason in result.notices[0]
    is_divided = "model__sharding" in values
    assert result.recipe.train.loss_kernel == ("whole" if is_divided else "chunked")


@pytest.fixture(params=["triton", "C compiler"])
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What a machine with a GPU has not, in words."""
    if request.param == "triton":
        monkeypatch.setattr(gpu_compiler.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(gpu_compiler.shutil, "which", lambda name: None)
    return str(request.param)


def test_a_machine_that_cannot_compile_says_what_is_missing(
    choose: Callable[..., Choice], lacking: str
) -> None:
    result = choose(network("llama"))
    assert chosen(result) == ("varlen", False, True, "chunked")
    assert lacking in result.notices[0]


def test_compiling_that_is_asked_for_and_cannot_be_had_is_refused(
    choose: Callable[..., Choice], lacking: str
) -> None:
    with pytest.raises(RecipeValueError, match=rf"model\.compile: .*{lacking}.*set it to auto"):
        choose(network("llama"), model__compile=True)


def test_what_is_asked_for_is_what_is_done(choose: Callable[..., Choice]) -> None:
    asked = {
        "model__attention": "eager", "model__compile": False, "data__packing": False,
        "train__loss_kernel": "whole",
    }  # fmt: skip
    result = choose(network("llama"), **asked)
    assert chosen(result) == ("eager", False, False, "whole")
    assert result.notices == ()
    result = choose(network("llama"), CPU, model__attention="varlen", train__loss_kernel="chunked")
    assert chosen(result) == ("varlen", False, False, "chunked")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model__attention": "sdpa"}, "varlen attention"),
        ({"model__sharding": "fsdp"}, "divided model"),
    ],
)
def test_pieces_that_cannot_be_had_are_refused(
    choose: Callable[..., Choice], values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RecipeValueError, match=rf"train.loss_kernel.*{reason}"):
        choose(network("llama"), train__loss_kernel="chunked", **values)


def test_an_output_layer_with_an_adapter_is_computed_whole(choose: Callable[..., Choice]) -> None:
    model = network("llama")
    model.lm_head = torch.nn.Linear(32, 64, bias=True)
    assert choose(model).recipe.train.loss_kernel == "whole"


@pytest.mark.parametrize(("gib", "recomputes"), [(100, False), (3, True)])
def test_activations_are_recomputed_where_the_gpu_is_too_small(
    choose: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch, gib: int, recomputes: bool
) -> None:
    """By what the GPU has, not by what is free: that would be another number every time."""
    gpu = SimpleNamespace(total_memory=gib * 2**30)
    model = network("llama", hidden_size=512, intermediate_size=2048, vocab_size=32000)
    values = {"data__max_length": 2048, "train__micro_batch_size": 64}
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
        result = choose(model, **values)
        assert result.recipe.train.activation_checkpointing is recomputes
        assert bool(result.notices) is recomputes
        if recomputes:
            assert "train.activation_checkpointing" in result.notices[0]
        for asked in (True, False):
            fixed = choose(model, **values, train__activation_checkpointing=asked)
            assert fixed.recipe.train.activation_checkpointing is asked
            assert fixed.notices == ()
    assert choose(model, CPU, **values).recipe.train.activation_checkpointing is False
