"""Everything that is found good before the run folder is made."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from mltune_cli import __version__
from mltune_cli.errors import RecipeValueError
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import Claim, DataFacts, Manifest, ModelFacts, RunResult
from mltune_cli.recipe.schema import DataSection, Recipe
from mltune_cli.training.adapter import prepare_trainable, trained_parameters
from mltune_cli.training.data.collating import Collator
from mltune_cli.training.data.dataset import TokenisedDataset, prepare_dataset
from mltune_cli.training.data.sources import FileSource, HubSource, find_source
from mltune_cli.training.data.stream import BatchStream
from mltune_cli.training.environment import environment_facts, image_digest
from mltune_cli.training.model import (
    BaseModel,
    load_base_model,
    pad_token_id,
    require_room,
    require_separable_documents,
    resolved_model_section,
)
from mltune_cli.training.optimization import build_optimizer
from mltune_cli.training.step import TrainingState
from mltune_cli.witness.digest import tensors_digest
from mltune_cli.witness.record import WitnessRecord


@dataclass(frozen=True)
class PreparedRun:
    """A run that can start.

    Attributes:
        recipe: resolved: no `auto`, no `epochs`, every value that decides bits.
        initial: the witness of step 0: the base model's weights and the initial adapter.
    """

    recipe: Recipe
    base: BaseModel
    state: TrainingState
    train_data: TokenisedDataset
    validation_data: TokenisedDataset | None
    stream: BatchStream
    initial: WitnessRecord

    def collator(self, dataset: TokenisedDataset) -> Collator:
        """Return what builds micro-batches from one of the data sets."""
        return Collator(dataset, pad_token_id(self.base))


def prepare_run(recipe: Recipe) -> PreparedRun:
    """Load data and model, and resolve the recipe.

    Raises:
        UsageError: anything in recipe, data or model that cannot work.
    """
    section = resolved_model_section(recipe)
    train_source = _source("data.train", recipe.data.train or "", recipe.data)
    validation_source = (
        _source("data.validation", recipe.data.validation, recipe.data)
        if recipe.data.validation
        else None
    )
    base = load_base_model(section, full_precision_weights=recipe.adapter.method == "full")
    require_room(base.model, recipe.data.max_length)
    if recipe.data.packing:
        require_separable_documents(base.model, base.device)
    train_data = prepare_dataset(train_source, recipe.data, base.tokenizer, base.tokenizer_digest)
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
    recipe = _resolved(recipe, stream).model_copy(update={"model": section})
    model = prepare_trainable(base, recipe)
    parameters = trained_parameters(model)
    state = TrainingState(
        model=model,
        parameters=parameters,
        optimizer=build_optimizer(parameters, recipe.train),
        device=base.device,
        autocast=recipe.adapter.method == "full" and section.dtype == "bfloat16",
        packed=recipe.data.packing,
    )
    initial = WitnessRecord(
        0,
        {
            "model": tensors_digest(_frozen_tensors(model)),
            "parameters": tensors_digest(dict(parameters)),
        },
    )
    return PreparedRun(recipe, base, state, train_data, validation_data, stream, initial)


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


def build_manifest(
    job: TrainingJob, run: PreparedRun, earlier_environments: Sequence[str]
) -> Manifest:
    """Return the manifest of a run that is about to start, or to go on.

    Args:
        job: what was asked for.
        run: what it came to.
        earlier_environments: classes of the environments that took the steps before this start.
    """
    facts = environment_facts(run.base.device)
    trained = sum(p.numel() for p in run.state.parameters.values())
    return Manifest(
        mltune=__version__,
        recipe_name=job.recipe_name,
        recipe=run.recipe.model_dump(),
        origins=job.origins,
        recipe_digest=run.recipe.bits_digest(),
        model=ModelFacts(
            name=run.base.name,
            revision=run.base.revision,
            digest=run.base.digest,
            tokenizer_digest=run.base.tokenizer_digest,
            parameters=sum(p.numel() for p in run.state.model.parameters()),
            trained_parameters=trained,
            initial_adapter_digest=run.initial.digests["parameters"],
        ),
        train_data=_data_facts(run.recipe.data.train, run.train_data),
        validation_data=(
            _data_facts(run.recipe.data.validation, run.validation_data)
            if run.validation_data
            else None
        ),
        environment=facts,
        environment_class=facts.environment_class(),
        environment_classes=sorted({*earlier_environments, facts.environment_class()}),
        processes=1,
        git=job.git,
        image_digest=image_digest(),
        claims=[_repeatable(facts.environment_class(), earlier_environments)],
        result=RunResult(status="running", steps=0),
    )


def _repeatable(environment_class: str, earlier_environments: Sequence[str]) -> Claim:
    if set(earlier_environments) <= {environment_class}:
        reason = (
            "the same recipe, data and model give the same bits in this environment class, "
            "on one process"
        )
        return Claim(name="repeatable", holds=True, reason=reason)
    reason = "earlier steps of this run were taken in another environment class"
    return Claim(name="repeatable", holds=False, reason=reason)


def _data_facts(name: str | None, dataset: TokenisedDataset) -> DataFacts:
    return DataFacts(name=name or "", **asdict(dataset.summary))
