"""The training loop, from top to bottom."""

from functools import partial
from pathlib import Path

from mltune_cli.launching.events import EventPipe, Finished, Notice, Started
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import RunResult
from mltune_cli.run_folder import claim_folder, claim_next_folder
from mltune_cli.training.adapter import save_trained
from mltune_cli.training.data.collating import MicroBatch
from mltune_cli.training.data.dataset import DataSummary
from mltune_cli.training.evaluation import evaluate
from mltune_cli.training.optimization import learning_rate_at
from mltune_cli.training.run_log import RunLog, StepContext
from mltune_cli.training.setup import PreparedRun, build_manifest, prepare_run
from mltune_cli.training.step import StepResult, train_step


def train(job: TrainingJob, pipe: EventPipe) -> None:
    """Run a training job from its first step to its last.

    Raises:
        UsageError: recipe, data, model or output folder cannot be used; nothing was written.
        NoVerdictError: a non-finite loss, or a disk that is full.
    """
    run = prepare_run(job.recipe)
    _report_data(pipe, "data.train", run.train_data.summary)
    folder = _claimed_folder(job)
    recipe, state = run.recipe, run.state
    total_steps = recipe.train.max_steps or 0
    manifest = build_manifest(job, run)
    log = RunLog(folder, manifest, total_steps, pipe)
    pipe.send(
        Started(
            folder=str(folder),
            total_steps=total_steps,
            trained_parameters=manifest.model.trained_parameters,
            parameters=manifest.model.parameters,
            rows=run.train_data.summary.rows,
        )
    )
    log.witness(run.initial)
    _evaluate_when_due(run, log)
    result: StepResult | None = None
    while state.step < total_steps:
        result = _take_step(run, log, total_steps)
        _evaluate_when_due(run, log)
    last_loss = result.loss if result else float("nan")
    digests = {"train_data_digest": run.train_data.summary.digest}
    trained = save_trained(folder, state.model, run.base, recipe, digests)
    log.finish(
        RunResult(
            status="finished",
            steps=state.step,
            last_loss=last_loss,
            trained_digest=result.witness.digests["parameters"] if result else None,
        )
    )
    pipe.send(Finished(str(folder), str(trained), last_loss))


def _take_step(run: PreparedRun, log: RunLog, total_steps: int) -> StepResult:
    recipe, state = run.recipe, run.state
    step = state.step + 1
    collator = run.collator(run.train_data)
    units = [
        run.stream.micro_batch(step, index) for index in range(recipe.train.micro_batches_per_step)
    ]
    counts = run.train_data.unit_target_counts
    input_tokens = 0

    def make(units_of_batch: list[int]) -> MicroBatch:
        nonlocal input_tokens
        batch = collator.collate(units_of_batch)
        input_tokens += int(batch.attention_mask.sum())
        return batch

    learning_rate = learning_rate_at(step, total_steps, recipe.train)
    result = train_step(
        state,
        [partial(make, batch_units) for batch_units in units],
        target_tokens=int(sum(counts[unit] for batch_units in units for unit in batch_units)),
        seed=recipe.reproducibility.seed,
        learning_rate=learning_rate,
        max_grad_norm=recipe.train.max_grad_norm,
    )
    every = recipe.log.every_steps
    in_log = step == total_steps or (isinstance(every, int) and every > 0 and step % every == 0)
    log.step(result, StepContext(learning_rate, run.stream.epoch_of(step), input_tokens), in_log)
    return result


def _evaluate_when_due(run: PreparedRun, log: RunLog) -> None:
    every, step = run.recipe.evaluate.every_steps, run.state.step
    if run.validation_data is None or not every:
        return
    if step % every == 0 or step == run.recipe.train.max_steps:
        collator = run.collator(run.validation_data)
        size = run.recipe.train.micro_batch_size
        log.evaluation(step, evaluate(run.state, run.validation_data, collator, size))


def _claimed_folder(job: TrainingJob) -> Path:
    if job.recipe.output_dir is None:
        return claim_next_folder(Path(job.runs_folder), job.recipe_name)
    folder = Path(job.recipe.output_dir)
    claim_folder(folder, job.overwrite)
    return folder


def _report_data(pipe: EventPipe, key: str, summary: DataSummary) -> None:
    """Say what tokenising did to the rows, where it did something."""
    if summary.cut_rows:
        pipe.send(
            Notice(
                f"{key}: {summary.cut_rows} of {summary.rows} rows are longer than "
                "data.max_length and were cut"
            )
        )
    if summary.rows_without_targets:
        pipe.send(
            Notice(
                f"{key}: {summary.rows_without_targets} rows were left out, since none of their "
                "tokens within data.max_length counts in the loss"
            )
        )
