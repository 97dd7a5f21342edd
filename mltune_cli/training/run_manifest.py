"""The manifest of a run that starts or goes on: facts, and what may be claimed of its bits."""

from dataclasses import asdict

from mltune_cli import __version__
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import Claim, DataFacts, Manifest, ModelFacts, RunResult
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.checkpoint import Provenance
from mltune_cli.training.data.dataset import TokenisedDataset
from mltune_cli.training.environment import environment_facts, image_digest
from mltune_cli.training.setup import PreparedRun


def build_manifest(job: TrainingJob, run: PreparedRun, provenance: Provenance) -> Manifest:
    """Return the manifest of a run that is about to start, or to go on.

    Args:
        job: what was asked for.
        run: what it came to.
        provenance: of the steps before this start, and of those to come.
    """
    facts = environment_facts(run.processes.device)
    provenance = provenance.and_of([facts.environment_class()], run.processes.size)
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
        environment_classes=list(provenance.environment_classes),
        processes=run.processes.size,
        process_counts=list(provenance.process_counts),
        git=job.git,
        image_digest=image_digest(),
        claims=claims(run.recipe, provenance),
        result=RunResult(status="running", steps=0),
    )


def claims(recipe: Recipe, provenance: Provenance) -> list[Claim]:
    """Return what may be said of this run's bits, and what may not, with the reasons."""
    return [
        _repeatable(recipe, provenance),
        _on_any_number_of_processes(recipe),
    ]


def _repeatable(recipe: Recipe, provenance: Provenance) -> Claim:
    def claim(reason: str, holds: bool = False) -> Claim:
        return Claim(name="repeatable", holds=holds, reason=reason)

    counts = provenance.process_counts
    if recipe.model.base_precision == "nf4" and max(counts, default=1) > 1:
        return claim("a 4-bit base was reported to differ from run to run on several GPUs")
    varies = _why_processes_count(recipe)
    if varies and len(counts) > 1:
        several = f"{', '.join(map(str, counts[:-1]))} and {counts[-1]}"
        return claim(f"{varies}, and its steps were taken by {several} of them")
    if len(provenance.environment_classes) > 1:
        return claim("its steps were taken in more than one environment class")
    return claim(
        "the same recipe, data and model give the same bits in this environment class", holds=True
    )


def _on_any_number_of_processes(recipe: Recipe) -> Claim:
    def claim(reason: str, holds: bool = False) -> Claim:
        return Claim(name="any number of processes", holds=holds, reason=reason)

    if recipe.model.base_precision == "nf4":
        return claim("a 4-bit base was reported to differ on several GPUs")
    varies = _why_processes_count(recipe)
    return claim(
        varies or "gradients are summed along one tree over the micro-batches", holds=varies is None
    )


def _why_processes_count(recipe: Recipe) -> str | None:
    """Say why the number of processes may decide bits; None where it decides none."""
    if recipe.model.sharding == "fsdp" and recipe.adapter.method == "full":
        return "gradients that are divided are summed in an order that processes decide"
    return None


def _data_facts(name: str | None, dataset: TokenisedDataset) -> DataFacts:
    return DataFacts(name=name or "", **asdict(dataset.summary))
