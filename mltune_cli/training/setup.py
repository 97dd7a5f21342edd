"""Everything that is found good before the run folder is made."""

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
        return Collator(dataset, pad_token_id(self.base.tokenizer))


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
    """Return the recipe with the number of steps and the log cadence in numbers."""
    train = recipe.train
    total_steps = train.max_steps or stream.steps_for(train.epochs or 1.0)
    if train.warmup_steps > total_steps:
        raise RecipeValueError(
            "train.warmup_steps",
            f"{train.warmup_steps} warm-up steps are more than the {total_steps} steps of "
            f"{train.epochs or 1.0:g} epochs",
        )
    values: dict[str, int | None] = {"train.max_steps": total_steps, "train.epochs": None}
    if recipe.log.every_steps == "epoch":
        values["log.every_steps"] = stream.steps_for(1.0)
    return recipe.with_values(values)


def _frozen_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    tensors = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    return dict(sorted((tensors | dict(model.named_buffers())).items()))


def build_manifest(job: TrainingJob, run: PreparedRun) -> Manifest:
    """Return the manifest of a run that is about to start."""
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
        processes=1,
        git=job.git,
        image_digest=image_digest(),
        claims=[
            Claim(
                name="repeatable",
                holds=True,
                reason="the same recipe, data and model give the same bits in this environment "
                "class, on one process",
            )
        ],
        result=RunResult(status="running", steps=0),
    )


def _data_facts(name: str | None, dataset: TokenisedDataset) -> DataFacts:
    return DataFacts(name=name or "", **asdict(dataset.summary))
