"""A run's own account of itself: its logs, its events, its manifest."""

import shutil
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
from mltune_cli.training.environment import peak_memory_bytes
from mltune_cli.training.evaluation import EvaluationResult
from mltune_cli.training.step import StepResult
from mltune_cli.training.trackers import Trackers
from mltune_cli.witness.record import WitnessRecord


@dataclass(frozen=True)
class StepContext:
    """What is logged of a step besides its result."""

    learning_rate: float
    epoch: float


class RunFiles:
    """The files of a run's account, which the first process writes.

    `training_log.jsonl`, `witness.jsonl` and `evaluation_log.jsonl` hold what repeats; clock and
    speed go to `timings.jsonl` alone.

    Args:
        folder: the run folder.
        manifest: of the run that starts or goes on.
        done_steps: steps that lie behind; what the logs say of later ones is dropped.
        branched_from: another run, whose logs tell of those steps; None where they are here.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, done_steps: int, branched_from: Path | None = None
    ) -> None:
        # First of all: with its manifest the folder is a run, whatever happens next.
        manifest.write(folder)
        for name in (TRAINING_LOG, WITNESS_LOG, EVALUATION_LOG):
            if branched_from is not None and (branched_from / name).is_file():
                shutil.copyfile(branched_from / name, folder / name)
        for name in (TRAINING_LOG, WITNESS_LOG, EVALUATION_LOG, TIMINGS_LOG):
            # At step 0 the initial state is recorded anew, so nothing at all is kept.
            cut_log(folder / name, done_steps if done_steps else -1)
        self._folder = folder
        self._manifest = manifest
        self.training = JsonLog(folder / TRAINING_LOG)
        self.witness = JsonLog(folder / WITNESS_LOG)
        self.evaluation = JsonLog(folder / EVALUATION_LOG)
        self.timings = JsonLog(folder / TIMINGS_LOG)

    @property
    def _logs(self) -> tuple[JsonLog, ...]:
        return (self.training, self.witness, self.evaluation, self.timings)

    def flush_to_disk(self) -> None:
        """Wait until the logs are on the disk: a checkpoint must not be ahead of them."""
        for log in self._logs:
            log.flush_to_disk()

    def finish(self, result: RunResult) -> None:
        """Write the last loss, where the run is whole, and the manifest's final word."""
        if result.status == "finished":
            (self._folder / LAST_LOSS).write_text(f"{result.last_loss!r}\n", encoding="utf-8")
        for log in self._logs:
            log.close()
        self._manifest.model_copy(update={"result": result}).write(self._folder)


class RunLog:
    """Tells files, trackers and the command that listens how the run goes.

    Args:
        files: None in a process that writes none.
        trackers: told of losses as well; None where there are none.
        total_steps: of the recipe.
        pipe: to the command.
        done_steps: steps that lie behind at the start.
    """

    def __init__(
        self,
        files: RunFiles | None,
        trackers: Trackers | None,
        total_steps: int,
        pipe: EventPipe,
        done_steps: int,
    ) -> None:
        self._files = files
        self._trackers = trackers
        self._total_steps = total_steps
        self._pipe = pipe
        self._done_steps = done_steps
        self._unlogged: dict[str, int | float] | None = None
        self._started = time.monotonic()

    def witness(self, record: WitnessRecord) -> None:
        """Record a step's digests."""
        if self._files:
            self._files.witness.write_line(record.to_json())
        facts = {"facts": dict(record.facts)} if record.facts else {}
        self._pipe.send(Witnessed({"step": record.step, **record.digests, **facts}))

    def step(self, result: StepResult, context: StepContext, in_log: bool) -> None:
        """Record a step; in `training_log.jsonl` only where the log cadence says so.

        Whether it is the last one may show only later: see `last_step`.
        """
        step = result.witness.step
        self.witness(result.witness)
        line = {
            "step": step,
            "loss": result.loss,
            "learning_rate": context.learning_rate,
            "gradient_norm": result.gradient_norm,
            "epoch": round(context.epoch, 6),
            "target_tokens": result.target_tokens,
        }
        self._unlogged = None if in_log else line
        if in_log:
            self._log(line)
        speed = result.input_tokens / result.seconds
        if self._files:
            self._files.timings.write(
                {
                    "step": step,
                    "seconds": round(result.seconds, 6),
                    "tokens_per_second": round(speed, 1),
                    "peak_memory_bytes": peak_memory_bytes(),
                }
            )
        self._pipe.send(
            StepDone(
                step=step,
                logged=in_log,
                total_steps=self._total_steps,
                loss=result.loss,
                learning_rate=context.learning_rate,
                tokens_per_second=speed,
                seconds_left=(time.monotonic() - self._started)
                / (step - self._done_steps)
                * (self._total_steps - step),
            )
        )

    def last_step(self) -> None:
        """Log the step that was recorded last, whatever the cadence: no other comes after it.

        To be said before its checkpoint is written: a run that goes on from there takes no step
        any more, and finds the line or never has it.
        """
        if self._unlogged is not None:
            self._log(self._unlogged)
            self._unlogged = None

    def _log(self, line: dict[str, int | float]) -> None:
        if self._files:
            self._files.training.write(line)
        if self._trackers:
            values = {f"train/{name}": value for name, value in line.items() if name != "step"}
            self._trackers.log(values, int(line["step"]))

    def evaluation(self, step: int, result: EvaluationResult) -> None:
        """Record a held-out loss."""
        if self._files:
            self._files.evaluation.write(
                {"step": step, "loss": result.loss, "target_tokens": result.target_tokens}
            )
        if self._trackers:
            self._trackers.log({"evaluation/loss": result.loss}, step)
        self._pipe.send(Evaluated(step, result.loss))

    def flush_to_disk(self) -> None:
        """Wait until the logs are on the disk: a checkpoint must not be ahead of them."""
        if self._files:
            self._files.flush_to_disk()

    def finish(self, result: RunResult) -> None:
        """End all accounts."""
        if self._trackers:
            self._trackers.finish()
        if self._files:
            self._files.finish(result)
