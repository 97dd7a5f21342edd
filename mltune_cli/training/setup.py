"""Everything that is found good before the run folder is made."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mltune_cli.errors import RecipeValueError
from mltune_cli.recipe.schema import DataSection, ModelSection, Recipe
from mltune_cli.training.adapter import prepare_trainable, trained_parameters
from mltune_cli.training.data.collating import Collator
from mltune_cli.training.data.dataset import TokenisedDataset, prepare_dataset
from mltune_cli.training.data.sources import FileSource, HubSource, find_source
from mltune_cli.training.data.stream import BatchStream
from mltune_cli.training.kernels.choice import choose_kernels
from mltune_cli.training.kernels.compiler import why_no_gpu_compiler
from mltune_cli.training.kernels.float8 import hold_in_float8
from mltune_cli.training.kernels.installing import install_kernels
from mltune_cli.training.model import (
    BaseModel,
    load_base_model,
    pad_token_id,
    require_room,
    resolved_model_section,
)
from mltune_cli.training.optimization import build_optimizer
from mltune_cli.training.processes import Processes, alone
from mltune_cli.training.separation import require_separable_documents
from mltune_cli.training.sharding import divide_model
from mltune_cli.training.step import TrainingState
from mltune_cli.witness.digest import sum_on_gpu_by, tensors_digest
from mltune_cli.witness.record import WitnessRecord


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start.

    Attributes:
        recipe: resolved: no `auto`, no `epochs`, every value that decides bits.
        initial: the witness of step 0: the base model's weights and the initial adapter.
        notices: what the user is to know before training begins.
    """

    recipe: Recipe
    processes: Processes
    base: BaseModel
    state: TrainingState
    train_data: TokenisedDataset
    validation_data: TokenisedDataset | None
    stream: BatchStream
    initial: WitnessRecord
    notices: tuple[str, ...] = ()

    def collator(self, dataset: TokenisedDataset) -> Collator:
        """Return what builds micro-batches from one of the data sets."""
        return Collator(dataset, pad_token_id(self.base))


def prepare_run(recipe: Recipe, meet: Callable[[str], Processes] | None = None) -> PreparedRun:
    """Load data and model, and resolve the recipe.

    Args:
        recipe: checked.
        meet: joins this process with the others, given the kind of device (`cpu`, `cuda`); None
            is for a process that is alone.

    Raises:
        UsageError: anything in recipe, data or model that cannot work.
        LostProcessError: another process is gone.
    """
    meet = meet or alone_on
    section = resolved_model_section(recipe)
    processes = meet(section.device)
    _require_enough_micro_batches(recipe, processes)
    train_source = _source("data.train", recipe.data.train or "", recipe.data)
    validation_source = (
        _source("data.validation", recipe.data.validation, recipe.data)
        if recipe.data.validation
        else None
    )
    base = load_base_model(section, recipe.adapter.method == "full", processes.device)
    require_room(base.model, recipe.data.max_length)
    choice = choose_kernels(
        recipe.model_copy(update={"model": section}), base.model, processes.device
    )
    recipe = choice.recipe
    if processes.device.type == "cuda" and why_no_gpu_compiler() is None:
        from mltune_cli.training.kernels.digesting import mixed_sum_on_gpu

        sum_on_gpu_by(mixed_sum_on_gpu)
    with processes.node_leader_first():
        train_data = prepare_dataset(
            train_source, recipe.data, base.tokenizer, base.tokenizer_digest
        )
        validation_data = (
            prepare_dataset(validation_source, recipe.data, base.tokenizer, base.tokenizer_digest)
            if validation_source
            else None
        )
    stream = BatchStream(
        len(train_data),
        recipe.train.micro_batch_size,
        recipe.train.micro_batches_per_step,
        recipe.reproducibility.seed,
        train_data.summary.digest,
    )
    recipe = _resolved(recipe, stream)
    model, notices = _trainable_model(base, recipe, processes.device)
    recipe, state, initial = _initial_state(base, model, recipe, processes)
    if recipe.data.packing:
        require_separable_documents(base, state)
    return PreparedRun(
        recipe, processes, base, state, train_data, validation_data, stream, initial,
        (*choice.notices, *notices),
    )  # fmt: skip


def alone_on(device_type: str) -> Processes:
    """Return the only process of a run, on the first device of a kind."""
    return alone(torch.device("cuda", 0) if device_type == "cuda" else torch.device("cpu"))


def _require_enough_micro_batches(recipe: Recipe, processes: Processes) -> None:
    count = recipe.train.micro_batches_per_step
    if count < processes.size:
        raise RecipeValueError(
            "train.micro_batches_per_step",
            f"{count} micro-batches are too few for {processes.size} processes, each of which "
            "needs one; raise it (which makes another recipe), or start fewer processes",
        )


def _is_divided(section: ModelSection, processes: Processes) -> bool:
    # With one process there is nothing to divide.
    return section.sharding == "fsdp" and processes.size > 1


def _trainable_model(
    base: BaseModel, recipe: Recipe, device: torch.device
) -> tuple[Any, tuple[str, ...]]:
    """Put the adapter on, and hold the base as the recipe says.

    The adapter is drawn on the CPU whatever the device, so that how the model is placed later
    cannot change it.

    Returns:
        The model, and what the user has to be told of it.
    """
    model = prepare_trainable(base, recipe)
    if recipe.model.base_precision != "fp8":
        return model, ()
    whole: Any = base.model
    held, left = hold_in_float8(whole.get_decoder(), device)
    if not held:
        raise RecipeValueError(
            "model.base_precision",
            f"fp8 holds none of this {whole.config.model_type} model's matrices: it takes linear "
            "layers of sides that are multiples of 16; set it to dtype",
        )
    if not left:
        return model, ()
    notice = (
        f"{left} of {held + left} linear layers stay in {recipe.model.dtype} instead of fp8: their "
        "sides are no multiples of 16"
    )
    return model, (notice,)


def _initial_state(
    base: BaseModel, model: Any, recipe: Recipe, processes: Processes
) -> tuple[Recipe, TrainingState, WitnessRecord]:
    """Put the model where it is computed: whole, or divided."""
    trained = trained_parameters(model)
    in_step = _is_divided(recipe.model, processes)
    if not in_step and recipe.model.base_precision != "nf4":
        model.to(processes.device)
    initial = WitnessRecord(
        0,
        {
            "model": tensors_digest(_frozen_tensors(model), compute_on=processes.device),
            "parameters": tensors_digest(dict(trained), compute_on=processes.device),
        },
    )
    if in_step:
        is_full = recipe.adapter.method == "full"
        divide_model(model, [] if is_full else trained.values(), processes)
        trained = trained_parameters(model)
    recipe, kernels = install_kernels(recipe, base.model, model, trained)
    state = TrainingState(
        model=model,
        parameters=trained,
        optimizer=build_optimizer(trained, recipe.train),
        device=processes.device,
        kernels=kernels,
        in_step=in_step,
    )
    return recipe, state, initial


def _source(key: str, name: str, section: DataSection) -> FileSource | HubSource:
    return find_source(key, name, section.revision, section.subset)


def _resolved(recipe: Recipe, stream: BatchStream) -> Recipe:
    """Return the recipe with its length in steps."""
    train = recipe.train
    total_steps = train.max_steps or stream.steps_for(train.epochs or 1.0)
    if train.warmup_steps > total_steps:
        raise RecipeValueError(
            "train.warmup_steps",
            f"{train.warmup_steps} warm-up steps are more than the {total_steps} that "
            f"train.epochs={train.epochs or 1.0:g} makes of {stream.unit_count} rows or packs, "
            f"{stream.units_per_step} a step; lower it",
        )
    return recipe.with_values({"train.max_steps": total_steps, "train.epochs": None})


def _frozen_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return dict(sorted((tensors | dict(model.named_buffers())).items()))
