"""The training loop, from top to bottom."""

import contextlib
from functools import partial
from pathlib import Path

from mltune_cli.errors import NoVerdictError, StoppedBySignalError
from mltune_cli.launching.events import EventPipe, Finished, Notice, Started
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import Manifest, RunResult
from mltune_cli.run_folder import ADAPTER, MODEL
from mltune_cli.training.adapter import save_trained
from mltune_cli.training.checkpoint import write_checkpoint
from mltune_cli.training.data.collating import MicroBatch
from mltune_cli.training.data.rendering import template_asks_for_date
from mltune_cli.training.evaluation import evaluate
from mltune_cli.training.optimization import learning_rate_at
from mltune_cli.training.resuming import EnteredFolder, enter_folder, run_identity
from mltune_cli.training.run_log import RunLog, StepContext
from mltune_cli.training.setup import PreparedRun, build_manifest, prepare_run
from mltune_cli.training.step import train_step
from mltune_cli.training.stopping import StopRequest
from mltune_cli.witness.digest import tensors_digest


def train(job: TrainingJob, pipe: EventPipe, stop: StopRequest | None = None) -> None:
    """Run a training job from its first step, or its checkpoint, to its last.

    Args:
        job: what to train.
        pipe: where events go.
        stop: asked after each step; a request makes a checkpoint and ends the run.

    Raises:
        UsageError: recipe, data, model or output folder cannot be used; nothing was written.
        NoVerdictError: a non-finite loss, or a disk that is full.
        StoppedBySignalError: the run was stopped, and can be gone on with.
    """
    run = prepare_run(job.recipe)
    _report_data(pipe, run)
    entered = enter_folder(job, run, pipe)
    with contextlib.closing(entered.lock):
        if entered.finished is not None:
            _say_finished(entered.path, entered.finished, pipe)
        else:
            _train_in(entered, job, run, pipe, stop)


def _say_finished(folder: Path, manifest: Manifest, pipe: EventPipe) -> None:
    pipe.send(Notice(f"{folder}: this run is finished already; nothing was done"))
    trained = folder / (MODEL if manifest.recipe["adapter"]["method"] == "full" else ADAPTER)
    pipe.send(Finished(str(folder), str(trained), manifest.result.last_loss or 0.0))


def _train_in(
    entered: EnteredFolder,
    job: TrainingJob,
    run: PreparedRun,
    pipe: EventPipe,
    stop: StopRequest | None,
) -> None:
    folder, checkpoint = entered.path, entered.checkpoint
    recipe, state = run.recipe, run.state
    total_steps = recipe.train.max_steps or 0
    manifest = build_manifest(job, run, checkpoint.environment_classes if checkpoint else ())
    for claim in manifest.claims:
        if not claim.holds:
            pipe.send(Notice(f"not claimed: {claim.name}: {claim.reason}"))
    log = RunLog(folder, manifest, total_steps, pipe, done_steps=state.step)
    pipe.send(
        Started(
            folder=str(folder),
            total_steps=total_steps,
            trained_parameters=manifest.model.trained_parameters,
            parameters=manifest.model.parameters,
            rows=run.train_data.summary.rows,
            units=len(run.train_data),
            device=run.base.device.type,
            dtype=recipe.model.dtype,
        )
    )
    try:
        _run_steps(entered, run, manifest, log, pipe, stop)
    except NoVerdictError:
        with contextlib.suppress(OSError, NoVerdictError):
            log.finish(RunResult(status="failed", steps=state.step))
        raise


def _run_steps(
    entered: EnteredFolder,
    run: PreparedRun,
    manifest: Manifest,
    log: RunLog,
    pipe: EventPipe,
    stop: StopRequest | None,
) -> None:
    folder, recipe, state = entered.path, run.recipe, run.state
    total_steps = recipe.train.max_steps or 0
    if entered.checkpoint is None:
        log.witness(run.initial)
        _evaluate_when_due(run, log)
    if stop is not None:
        stop.defer()
    environments = tuple(manifest.environment_classes)
    identity = run_identity(run)
    while state.step < total_steps:
        _take_step(run, log, total_steps)
        _evaluate_when_due(run, log)
        every = recipe.checkpoint.every_steps
        stop_code = stop.code if stop is not None else None
        if stop_code is not None or (every and state.step % every == 0):
            log.flush_to_disk()
            write_checkpoint(folder, state, identity, environments, recipe.checkpoint.keep)
        if stop_code is not None:
            log.finish(RunResult(status="interrupted", steps=state.step))
            raise StoppedBySignalError(
                stop_code, f"stopped after step {state.step}; go on with --resume"
            )
    metadata = {"train_data_digest": run.train_data.summary.digest}
    trained = save_trained(folder, state.model, run.base, recipe, metadata)
    log.finish(
        RunResult(
            status="finished",
            steps=state.step,
            last_loss=state.last_loss,
            trained_digest=tensors_digest(dict(state.parameters)),
        )
    )
    pipe.send(Finished(str(folder), str(trained), state.last_loss or 0.0))


def _take_step(run: PreparedRun, log: RunLog, total_steps: int) -> None:
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
    is_due = run.stream.ends_epoch(step) if every == "epoch" else every and step % every == 0
    in_log = step == total_steps or bool(is_due)
    log.step(result, StepContext(learning_rate, run.stream.epoch_of(step), input_tokens), in_log)


def _evaluate_when_due(run: PreparedRun, log: RunLog) -> None:
    every, step = run.recipe.evaluate.every_steps, run.state.step
    if run.validation_data is None or not every:
        return
    if step % every == 0 or step == run.recipe.train.max_steps:
        collator = run.collator(run.validation_data)
        size = run.recipe.train.micro_batch_size
        log.evaluation(step, evaluate(run.state, run.validation_data, collator, size))


def _report_data(pipe: EventPipe, run: PreparedRun) -> None:
    """Say what tokenising did to the rows, where it did something."""
    if template_asks_for_date(run.base.tokenizer):
        date = run.recipe.data.chat_template_date
        pipe.send(
            Notice(
                f"the model's chat template asks for today's date and is told {date} "
                "(data.chat_template_date), so that tokens do not change overnight"
            )
        )
    for key, data in (("data.train", run.train_data), ("data.validation", run.validation_data)):
        if data is None:
            continue
        summary = data.summary
        read_rows = summary.rows + summary.rows_without_targets
        if summary.cut_rows:
            pipe.send(
                Notice(
                    f"{key}: {summary.cut_rows} of {read_rows} rows are longer than "
                    "data.max_length and were cut"
                )
            )
        if summary.rows_without_targets:
            pipe.send(
                Notice(
                    f"{key}: {summary.rows_without_targets} rows were left out, since none of "
                    "their tokens within data.max_length counts in the loss"
                )
            )
