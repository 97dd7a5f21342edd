"""The chosen kernels, put into a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mltune_cli.errors import RecipeValueError
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.kernels import attention, cross_entropy
from mltune_cli.training.kernels.choice import FAMILIES
from mltune_cli.training.kernels.cross_entropy import OutputLayer
from mltune_cli.training.kernels.low_rank import ComputeCopies, compute_in_base_format

BACKEND = "inductor"


@dataclass(frozen=True)
class FlatRows:
    """How documents are laid out in one row.

    Attributes:
        longest: tokens that a document has at most.
        tokens: of every row; None where each has as many as needed.
        is_compiled: whether a compiled layer reads it.
    """

    longest: int
    tokens: int | None
    is_compiled: bool


@dataclass(frozen=True)
class ChunkedOutput:
    """What computes the loss in pieces.

    Attributes:
        decoder: the model without its output layer.
        layer: the output layer.
        scores: how scores become a loss.
    """

    decoder: Any
    layer: Any
    scores: OutputLayer


@dataclass(frozen=True)
class ModelKernels:
    """How a model is computed.

    Attributes:
        packed: units are packs, kept apart by their positions instead of a padding mask.
        autocast: computes in bfloat16 from float32 weights.
        flat: documents stand in one row; None where each unit has a row, padded.
        output: the loss is computed in pieces; None where all scores are there at once.
        copies: what computes in place of the trained parameters; None where they do themselves.
    """

    packed: bool
    autocast: bool
    flat: FlatRows | None = None
    output: ChunkedOutput | None = None
    copies: ComputeCopies | None = None


def install_kernels(
    recipe: Recipe, base: Any, model: Any, trained: Mapping[str, torch.nn.Parameter]
) -> tuple[Recipe, ModelKernels]:
    """Make a model compute with the chosen kernels.

    Args:
        recipe: as `choose_kernels` returned it.
        base: the base model, as transformers loaded it.
        model: the same with its adapter, where it will be computed.
        trained: the trained parameters.

    Returns:
        The recipe, with the adapter's format named as well, and what was installed.

    Raises:
        RecipeValueError: the adapter cannot compute in the format that is asked for.
    """
    asked = recipe.adapter.compute_dtype
    copies = None
    if recipe.adapter.method != "full" and (
        asked == "model" or (asked == "auto" and recipe.model.device == "cuda")
    ):
        together = recipe.model.sharding == "none" and base.config.model_type in FAMILIES
        copies = compute_in_base_format(model, trained, together=together)
        if copies is None and asked == "model":
            raise RecipeValueError(
                "adapter.compute_dtype",
                "this adapter is of a kind that peft alone computes, in float32; set it to auto",
            )
    recipe = recipe.with_values({"adapter.compute_dtype": "model" if copies else "float32"})
    flat = output = None
    if recipe.model.attention == "varlen":
        attention.register()
        base.set_attn_implementation(attention.NAME)
        tokens = recipe.train.micro_batch_size * recipe.data.max_length
        flat = FlatRows(
            recipe.data.max_length,
            tokens if recipe.data.packing else None,
            bool(recipe.model.compile),
        )
    if recipe.model.compile:
        _compile_layers(base, fixed_width=flat is not None and flat.tokens is not None)
    if recipe.train.loss_kernel == "chunked":
        piece: cross_entropy.Piece = cross_entropy.scores_to_loss
        if recipe.model.compile:
            piece = torch.compile(piece, backend=BACKEND, dynamic=False)
        softcap = getattr(base.config, "final_logit_softcapping", None)
        output = ChunkedOutput(
            base.get_decoder(),
            base.get_output_embeddings(),
            OutputLayer(softcap, piece, recipe.model.compile is True),
        )
    is_autocast = recipe.adapter.method == "full" and recipe.model.dtype == "bfloat16"
    return recipe, ModelKernels(bool(recipe.data.packing), is_autocast, flat, output, copies)


def _compile_layers(base: Any, *, fixed_width: bool) -> None:
    """Compile each layer on its first call; all of one kind share what is compiled."""
    import torch._inductor.config as compiler

    # What would be measured to choose a kernel may be measured otherwise the next time.
    compiler.deterministic = True
    # Dropout is left to torch's own kernel. The compiler of torch 2.11 writes random numbers of its
    # own to memory and reads them back in the same kernel, in other threads, with no barrier in
    # between: other masks each time, in a layer whose input needs no gradient.
    compiler.fallback_random = True
    for layer in base.get_decoder().layers:
        layer.compile(backend=BACKEND, dynamic=not fixed_width)
