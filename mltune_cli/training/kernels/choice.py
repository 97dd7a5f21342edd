"""Which kernels compute a run: decided once, from recipe, model and kind of device."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from mltune_cli.errors import RecipeValueError
from mltune_cli.memory_estimate import recomputes_activations
from mltune_cli.model_shape import UnknownShapeError, model_shape
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.kernels import attention
from mltune_cli.training.kernels.compiler import why_no_gpu_compiler

# Whose decoder and output layer are known to compute what is computed here in their place.
FAMILIES = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Choice:
    """What was decided.

    Attributes:
        recipe: with every kernel named: no `auto` is left among them.
        notices: one sentence where the fast kernels were to be had for another model or machine.
    """

    recipe: Recipe
    notices: tuple[str, ...] = ()


def choose_kernels(recipe: Recipe, model: Any, device: torch.device) -> Choice:
    """Name the kernels that a recipe leaves open.

    A recipe that divides the model gets the kernels that can compute a divided one, even where one
    process computes it: the number of processes must decide no bit.

    Args:
        recipe: with device and dtype resolved.
        model: the base model, as transformers loaded it.
        device: where it will be computed.

    Raises:
        RecipeValueError: a kernel is asked for that cannot compute this model.
    """
    on_gpu, divided = device.type == "cuda", recipe.model.sharding == "fsdp"
    kind = model.config.model_type
    section, train = recipe.model, recipe.train
    unfit = _unfit_for_varlen(recipe, model, device)
    if section.attention == "varlen" and unfit:
        raise RecipeValueError(
            "model.attention", f"varlen cannot compute this {kind} model: {unfit}; set it to auto"
        )
    name = section.attention
    if name == "auto":
        name = model.config._attn_implementation if unfit or not on_gpu else "varlen"
    is_varlen = name == "varlen"
    whole = _needs_whole_scores(model, is_varlen=is_varlen, divided=divided)
    if train.loss_kernel == "chunked" and whole:
        raise RecipeValueError(
            "train.loss_kernel", f"chunked cannot be had: {whole}; set it to auto"
        )
    lacking = why_no_gpu_compiler() if on_gpu else None
    if section.compile is True and lacking:
        raise RecipeValueError("model.compile", f"{lacking}; or set it to auto")
    uncompiled = _unfit_for_compiler(recipe, is_varlen=is_varlen, divided=divided) or lacking
    values = {
        "model.attention": name,
        "data.packing": _decided(recipe.data.packing, otherwise=is_varlen and on_gpu),
        "train.loss_kernel": "chunked"
        if train.loss_kernel == "chunked" or (train.loss_kernel == "auto" and on_gpu and not whole)
        else "whole",
        "model.compile": _decided(section.compile, otherwise=on_gpu and not uncompiled),
    }
    recipe = recipe.with_values(values)
    notices = []
    if on_gpu and section.attention == "auto" and unfit:
        notices.append(f"this {kind} model is trained without the fast kernels: {unfit}")
    elif on_gpu and section.compile == "auto" and uncompiled:
        notices.append(f"the model's layers are not compiled: {uncompiled}")
    recomputes = _recomputes_activations(recipe, model, device)
    if recomputes and train.activation_checkpointing == "auto":
        notices.append(
            "activations are recomputed in the backward pass, since a step with them is estimated "
            "to need more than the GPU has (train.activation_checkpointing)"
        )
    return Choice(
        recipe.with_values({"train.activation_checkpointing": recomputes}), tuple(notices)
    )


def _recomputes_activations(recipe: Recipe, model: Any, device: torch.device) -> bool:
    asked = recipe.train.activation_checkpointing
    if asked != "auto":
        return asked
    if device.type != "cuda" or not getattr(model, "supports_gradient_checkpointing", False):
        return False
    try:
        shape = model_shape(model.config.to_dict())
    except UnknownShapeError:
        return False
    total = torch.cuda.get_device_properties(device).total_memory
    count = sum(parameter.numel() for parameter in model.parameters())
    if recipe.model.base_precision == "nf4":  # whose parameters are packed
        count = shape.parameters
    return recomputes_activations(shape, recipe, total, parameters=count)


def _decided(asked: Literal["auto"] | bool, *, otherwise: bool) -> bool:
    return otherwise if asked == "auto" else asked


def _unfit_for_varlen(recipe: Recipe, model: Any, device: torch.device) -> str | None:
    if model.config.model_type not in FAMILIES:
        return f"they know {', '.join(FAMILIES[:-1])} and {FAMILIES[-1]} models"
    return attention.why_unfit(model.config, getattr(torch, recipe.model.dtype), device)


def _needs_whole_scores(model: Any, *, is_varlen: bool, divided: bool) -> str | None:
    if not is_varlen:
        return "it goes with varlen attention alone"
    if divided:
        return "the output layer of a divided model is whole only while all of it is computed"
    layer = model.get_output_embeddings()
    if type(layer) is not torch.nn.Linear or getattr(layer, "bias", None) is not None:
        return "the output layer is not a plain matrix"
    return None


def _unfit_for_compiler(recipe: Recipe, *, is_varlen: bool, divided: bool) -> str | None:
    if not is_varlen:
        return "they go with varlen attention alone"
    if divided:
        return "the recipe divides the model over processes (model.sharding)"
    if recipe.model.base_precision == "nf4":
        return "their weights are in 4 bits"
    if recipe.adapter.method == "dora":
        return "peft computes DoRA adapters, and cannot be compiled"
    return None
