"""The training loop, from top to bottom."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mltune_cli.errors import ExitCode, NoVerdictError, StoppedBySignalError
from mltune_cli.launching.events import EventPipe, Finished, Notice, Started
from mltune_cli.launching.job import TraceOrder, TrainingJob
from mltune_cli.manifest import Manifest, RunResult
from mltune_cli.recipe.layers import flatten
from mltune_cli.recipe.schema import Recipe
from mltune_cli.run_folder import ADAPTER, BEST, MODEL, TRACKERS
from mltune_cli.training.adapter import Trained, save_trained, trained_tensors
from mltune_cli.training.checkpoint import snapshot, write_checkpoint
from mltune_cli.training.compiling import compile_ahead
from mltune_cli.training.data.collating import MicroBatch
from mltune_cli.training.data.loading import micro_batches
from mltune_cli.training.data.rendering import template_asks_for_date
from mltune_cli.training.evaluation import Evaluation, evaluate, standing
from mltune_cli.training.joint_start import Start, start_together
from mltune_cli.training.optimization import learning_rate_at
from mltune_cli.training.processes import Processes
from mltune_cli.training.resuming import holds_best, run_identity, settle_best
from mltune_cli.training.run_log import RunFiles, RunLog, StepContext
from mltune_cli.training.run_manifest import build_manifest
from mltune_cli.training.setup import PreparedRun, prepare_run
from mltune_cli.training.shared_witness import digest_of_all_parts
from mltune_cli.training.step import PendingStep, StepPlan, begin_step
from mltune_cli.training.stopping import NoStop, StopSource
from mltune_cli.training.tracing import traced
from mltune_cli.training.trackers import Trackers, require_trackers


@dataclass(frozen=True)
class Surroundings:
    """How this process is tied to the one that started it, and to its fellows.

    Attributes:
        pipe: where events go.
        stop: asked after each step; a request makes a checkpoint and ends the run.
        meet: joins the other processes; None where there are none.
        on_folder: told of the run folder as soon as it is ours.
    """

    pipe: EventPipe
    stop: StopSource = field(default_factory=NoStop)
    meet: Callable[[str], Processes] | None = None
    on_folder: Callable[[Path], None] = lambda folder: None  # noqa: ARG005


def train(job: TrainingJob, around: Surroundings) -> None:
    """Run a training job from its first step, or its checkpoint, to its last.

    Args:
        job: what to train.
        around: who listens, who may ask to stop, who computes along.

    Raises:
        UsageError: recipe, data, model or output folder cannot be used; nothing was written.
        NoVerdictError: a non-finite loss, a disk that is full, a process that drifted.
        StoppedBySignalError: the run was stopped, and can be gone on with.
        LostProcessError: another process is gone.
    """
    require_trackers(job.recipe.log.trackers)
    with traced(job.trace, 0):
        run = prepare_run(job.recipe, around.meet)
    if not run.processes.leads_node:
        around = replace(around, pipe=EventPipe(None))
    _report_data(around.pipe, run)
    start = start_together(job, run, around.pipe, around.on_folder)
    with contextlib.closing(start.lock) if start.lock else contextlib.nullcontext():
        if start.finished_loss is None:
            _train_from(start, job, run, around)
        else:
            around.pipe.send(
                Notice(f"{start.folder}: this run is finished already; nothing was done")
            )
            around.pipe.send(_finished(start.folder, run, start.finished_loss))


def _finished(folder: Path, run: PreparedRun, last_loss: float) -> Finished:
    return Finished(str(folder), str(folder / _trained_name(run)), last_loss)


def _trained_name(run: PreparedRun) -> str:
    return MODEL if run.recipe.adapter.method == "full" else ADAPTER


@dataclass
class _Course:
    """A run under way.

    Attributes:
        steps: of the recipe; early stopping may end it before.
        evaluations: so far, earlier starts of the run included.
        trace: of one step; None for none.
        unread: steps that were begun and not yet waited for, the oldest first.
        stop_code: with which the processes agreed to stop, as far as was read; 0 for none.
    """

    start: Start
    run: PreparedRun
    log: RunLog
    steps: int
    evaluations: list[Evaluation]
    trace: TraceOrder | None = None
    unread: deque["_UnreadStep"] = field(default_factory=deque)
    stop_code: int = 0


@dataclass(frozen=True)
class _UnreadStep:
    """A step that was begun, and what is logged of it besides its result."""

    pending: PendingStep
    context: StepContext
    in_log: bool


def _train_from(start: Start, job: TrainingJob, run: PreparedRun, around: Surroundings) -> None:
    recipe, state, pipe = run.recipe, run.state, around.pipe
    steps = recipe.train.max_steps or 0
    if recipe.model.compile:
        pipe.send(Notice("compiling the layers"))
        compile_ahead(state, recipe)
    manifest = build_manifest(job, run, start.provenance)
    for claim in manifest.claims:
        if not claim.holds:
            pipe.send(Notice(f"not claimed: {claim.name}: {claim.reason}"))
    files = trackers = None
    if run.processes.is_writer:
        files = RunFiles(start.folder, manifest, state.step, start.branched_from)
        settle_best(start.folder, _best_step(recipe, start.evaluations), start.branched_from)
        trackers = _trackers(start.folder, run, pipe)
    log = RunLog(files, trackers, steps, pipe, done_steps=state.step)
    pipe.send(_started(start, run, manifest, steps))
    course = _Course(start, run, log, steps, list(start.evaluations), job.trace)
    try:
        _run_steps(course, around)
    except NoVerdictError:
        with contextlib.suppress(OSError, NoVerdictError):
            log.finish(RunResult(status="failed", steps=state.step))
        raise
    pipe.send(_finished(start.folder, run, state.last_loss or 0.0))


def _started(start: Start, run: PreparedRun, manifest: Manifest, steps: int) -> Started:
    return Started(
        folder=str(start.folder),
        total_steps=steps,
        trained_parameters=manifest.model.trained_parameters,
        parameters=manifest.model.parameters,
        rows=run.train_data.summary.rows,
        units=len(run.train_data),
        device=run.processes.device.type,
        dtype=run.recipe.model.dtype,
        processes=run.processes.size,
    )


def _trackers(folder: Path, run: PreparedRun, pipe: EventPipe) -> Trackers | None:
    names = run.recipe.log.trackers
    if not names:
        return None
    values = flatten(run.recipe.model_dump(exclude={"output_dir"}))
    config = {
        key: value if isinstance(value, int | float | bool) else str(value)
        for key, value in values.items()
    }
    return Trackers(
        names, folder / TRACKERS, folder.name, config, lambda trouble: pipe.send(Notice(trouble))
    )


def _run_steps(course: _Course, around: Surroundings) -> None:
    run, state = course.run, course.run.state
    if state.step == 0:
        course.log.witness(run.initial)
        _evaluate_when_due(course)
    else:
        _keep_if_best(course)
    around.stop.defer()
    with contextlib.closing(_own_micro_batches(course)) as batches:
        while state.step < course.steps and not _is_stopped_early(course):
            with traced(course.trace, state.step + 1, state.model.parameters()):
                _begin_step(course, batches, around.stop)
            # A GPU computes one step while the next is prepared; its numbers are read meanwhile.
            _read_steps(course, left=1 if run.processes.device.type == "cuda" else 0)
            _finish_step(course)
    _save(course, _trained_name(run))
    _tell_of_missing_best(course, around.pipe)
    course.log.finish(
        RunResult(
            status="finished",
            steps=state.step,
            last_loss=state.last_loss,
            trained_digest=digest_of_all_parts(dict(state.parameters), run.processes),
        )
    )


def _finish_step(course: _Course) -> None:
    """Do what is due after a step; all steps are read before.

    Raises:
        StoppedBySignalError: somebody asked to stop, and a checkpoint was written.
    """
    run, state = course.run, course.run.state
    every = run.recipe.checkpoint.every_steps
    is_last = state.step == course.steps
    is_checkpoint = bool(every) and state.step % every == 0
    if not (is_last or is_checkpoint or course.stop_code or _is_evaluation_due(course)):
        return
    _read_steps(course, left=0)
    _evaluate_when_due(course)
    is_last = is_last or _is_stopped_early(course)
    if is_last:
        course.log.last_step()
    if course.stop_code or is_checkpoint:
        _write_checkpoint(course)
    if course.stop_code and not is_last:
        course.log.finish(RunResult(status="interrupted", steps=state.step))
        # Whoever raises first ends the others: not before the checkpoint is whole.
        run.processes.barrier()
        raise StoppedBySignalError(
            ExitCode(course.stop_code), f"stopped after step {state.step}; go on with --resume"
        )


def _read_steps(course: _Course, left: int) -> None:
    """Wait for steps that were begun, and log them, until so many are left unread."""
    while len(course.unread) > left:
        step = course.unread.popleft()
        result = step.pending.result()
        course.stop_code = max(course.stop_code, result.stop_code)
        course.log.step(result, step.context, step.in_log)


def _own_micro_batches(course: _Course) -> Generator[MicroBatch]:
    """Return this process's micro-batches of the steps that are left."""
    run, recipe = course.run, course.run.recipe
    turns = run.processes.turns(recipe.train.micro_batches_per_step, in_step=run.state.in_step)
    return micro_batches(
        run.stream,
        run.collator(run.train_data),
        range(run.state.step + 1, course.steps + 1),
        [turn.index for turn in turns],
        recipe.data.loader_workers,
    )


def _begin_step(course: _Course, batches: Iterator[MicroBatch], stop: StopSource) -> None:
    run, recipe = course.run, course.run.recipe
    step = run.state.step + 1
    count = recipe.train.micro_batches_per_step
    targets = run.train_data.unit_target_counts
    plan = StepPlan(
        micro_batches=count,
        target_tokens=sum(
            int(targets[run.stream.micro_batch(step, index)].sum()) for index in range(count)
        ),
        seed=recipe.reproducibility.seed,
        learning_rate=learning_rate_at(step, course.steps, recipe.train),
        max_grad_norm=recipe.train.max_grad_norm,
        per_tensor=course.trace is not None and course.trace.step == step,
        stop_code=lambda: stop.code or 0,
    )
    own = len(run.processes.turns(count, in_step=run.state.in_step))
    pending = begin_step(run.state, run.processes, itertools.islice(batches, own), plan)
    every = recipe.log.every_steps
    is_due = run.stream.ends_epoch(step) if every == "epoch" else every and step % every == 0
    in_log = step == course.steps or bool(is_due)
    context = StepContext(plan.learning_rate, run.stream.epoch_of(step))
    course.unread.append(_UnreadStep(pending, context, in_log))


def _is_evaluation_due(course: _Course) -> bool:
    every, step = course.run.recipe.evaluate.every_steps, course.run.state.step
    if course.run.validation_data is None or not every:
        return False
    return step % every == 0 or step == course.steps


def _evaluate_when_due(course: _Course) -> None:
    """Measure the held-out loss, where the cadence says so."""
    run, step = course.run, course.run.state.step
    data = run.validation_data
    if data is None or not _is_evaluation_due(course):
        return
    size = run.recipe.train.micro_batch_size
    result = evaluate(run.state, run.processes, data, run.collator(data), size)
    course.log.evaluation(step, result)
    course.evaluations.append(Evaluation(step, result.loss))
    _keep_if_best(course)


def _best_step(recipe: Recipe, evaluations: Sequence[Evaluation]) -> int | None:
    """Return the step that `best/` has to be of; None where there is to be none."""
    section = recipe.evaluate
    if not section.keep_best:
        return None
    return standing(evaluations, section.early_stopping_threshold).best_step


def _keep_if_best(course: _Course) -> None:
    """Save what was trained, where no held-out loss so far is lower than that of this step."""
    if _best_step(course.run.recipe, course.evaluations) == course.run.state.step:
        _save(course, BEST)


def _tell_of_missing_best(course: _Course, pipe: EventPipe) -> None:
    """Say so where the best step was another start's, and what was trained then is lost.

    Only at the end: until then a step that comes again may be better still.
    """
    step = _best_step(course.run.recipe, course.evaluations)
    if step is None or not course.run.processes.is_writer or holds_best(course.start.folder, step):
        return
    pipe.send(
        Notice(
            f"there is no {BEST}/: the held-out loss was lowest after step {step}, before the "
            "checkpoint that was gone on from, and what was trained then was not kept"
        )
    )


def _is_stopped_early(course: _Course) -> bool:
    section = course.run.recipe.evaluate
    return standing(course.evaluations, section.early_stopping_threshold).ends_training(section)


def _write_checkpoint(course: _Course) -> None:
    run = course.run
    if run.processes.is_writer or run.state.is_divided:
        taken = snapshot(run.state, keep=run.processes.is_writer)
    if run.processes.is_writer:
        course.log.flush_to_disk()
        write_checkpoint(
            course.start.folder,
            taken,
            run_identity(run),
            course.start.provenance,
            run.recipe.checkpoint.keep,
        )


def _save(course: _Course, name: str) -> None:
    """Write what was trained so far into a folder of the run folder."""
    run = course.run
    if run.processes.is_writer or run.state.is_divided:
        tensors = trained_tensors(run.state.model, run.recipe, keep=run.processes.is_writer)
    if run.processes.is_writer:
        metadata = {"train_data_digest": run.train_data.summary.digest, "step": run.state.step}
        trained = Trained(run.state.model, run.base, run.recipe, tensors, metadata)
        save_trained(course.start.folder, name, trained)


def _report_data(pipe: EventPipe, run: PreparedRun) -> None:
    """Say what was chosen for the user, and what tokenising did to the rows."""
    for notice in run.notices:
        pipe.send(Notice(notice))
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
