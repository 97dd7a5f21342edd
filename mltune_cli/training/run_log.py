"""A run's own account of itself: its logs, its events, its manifest."""

import time
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.launching.events import Evaluated, EventPipe, StepDone, Witnessed
from mltune_cli.manifest import Manifest, RunResult
from mltune_cli.run_folder import (
    EVALUATION_LOG,
    LAST_LOSS,
    TIMINGS_LOG,
    TRAINING_LOG,
    WITNESS_LOG,
    JsonLog,
    cut_log,
)
from mltune_cli.training.evaluation import EvaluationResult
from mltune_cli.training.step import StepResult
from mltune_cli.witness.record import WitnessRecord


@dataclass(frozen=True)
class StepContext:
    """What is logged of a step besides its result."""

    learning_rate: float
    epoch: float
    input_tokens: int


class RunLog:
    """Writes the run folder's logs and sends the same to the command that listens.

    `training_log.jsonl`, `witness.jsonl` and `evaluation_log.jsonl` hold what repeats; clock and
    speed go to `timings.jsonl` alone.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        total_steps: int,
        pipe: EventPipe,
        done_steps: int,
    ) -> None:
        # First of all: with its manifest the folder is a run, whatever happens next.
        manifest.write(folder)
        for name in (TRAINING_LOG, WITNESS_LOG, EVALUATION_LOG, TIMINGS_LOG):
            # At step 0 the initial state is recorded anew, so nothing at all is kept.
            cut_log(folder / name, done_steps if done_steps else -1)
        self._done_steps = done_steps
        self._folder = folder
        self._manifest = manifest
        self._total_steps = total_steps
        self._pipe = pipe
        self._training = JsonLog(folder / TRAINING_LOG)
        self._witness = JsonLog(folder / WITNESS_LOG)
        self._evaluation = JsonLog(folder / EVALUATION_LOG)
        self._timings = JsonLog(folder / TIMINGS_LOG)
        self._started = self._last = time.monotonic()

    def witness(self, record: WitnessRecord) -> None:
        """Record a step's digests."""
        self._witness.write_line(record.to_json())
        self._pipe.send(Witnessed({"step": record.step, **record.digests}))

    def step(self, result: StepResult, context: StepContext, in_log: bool) -> None:
        """Record a step; in `training_log.jsonl` only where the log cadence says so."""
        step = result.witness.step
        self.witness(result.witness)
        if in_log:
            self._training.write(
                {
                    "step": step,
                    "loss": result.loss,
                    "learning_rate": context.learning_rate,
                    "gradient_norm": result.gradient_norm,
                    "epoch": round(context.epoch, 6),
                    "target_tokens": result.target_tokens,
                }
            )
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        self._timings.write(
            {
                "step": step,
                "seconds": round(seconds, 6),
                "tokens_per_second": round(context.input_tokens / seconds, 1),
            }
        )
        self._pipe.send(
            StepDone(
                step=step,
                logged=in_log,
                total_steps=self._total_steps,
                loss=result.loss,
                learning_rate=context.learning_rate,
                tokens_per_second=context.input_tokens / seconds,
                seconds_left=(now - self._started)
                / (step - self._done_steps)
                * (self._total_steps - step),
            )
        )

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """Record a held-out loss; its time does not count as a step's."""
        self._evaluation.write(
            {"step": step, "loss": result.loss, "target_tokens": result.target_tokens}
        )
        self._pipe.send(Evaluated(step, result.loss))
        self._last = time.monotonic()

    def flush_to_disk(self) -> None:
        """Wait until the logs are on the disk: a checkpoint must not be ahead of them."""
        for log in (self._training, self._witness, self._evaluation, self._timings):
            log.flush_to_disk()

    def finish(self, result: RunResult) -> None:
        """Write the last loss, where the run is whole, and the manifest's final word."""
        if result.status == "finished":
            (self._folder / LAST_LOSS).write_text(f"{result.last_loss!r}\n", encoding="utf-8")
        for log in (self._training, self._witness, self._evaluation, self._timings):
            log.close()
        self._manifest.model_copy(update={"result": result}).write(self._folder)
