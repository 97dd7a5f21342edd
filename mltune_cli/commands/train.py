"""`mltune train`: one run of one recipe."""

import contextlib
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mltune_cli.commands.git_facts import current_commit
from mltune_cli.commands.stopping import raise_on_signals
from mltune_cli.errors import ExitCode, UsageError
from mltune_cli.launching.events import Notice, Started
from mltune_cli.launching.held_signals import held_signals
from mltune_cli.launching.job import ProcessShape, TrainingJob
from mltune_cli.launching.worker_process import WorkerProcess
from mltune_cli.paths import working_folder
from mltune_cli.recipe.layers import LoadedRecipe
from mltune_cli.rendering.recipe import print_recipe
from mltune_cli.rendering.training import TrainingView
from mltune_cli.run_folder import require_writable_target

RUNS_FOLDER = "runs"
_FILLED_IN = (
    "without --config, what you did not name comes from the smoke recipe; --dry-run shows it"
)


@dataclass(frozen=True)
class StartingPoint:
    """What happens to an earlier run: nothing, replaced, or gone on with.

    Attributes:
        overwrite: an earlier run in the output folder is replaced.
        resume: go on from the newest complete checkpoint in the output folder.
        resume_from: go on from this checkpoint.
    """

    overwrite: bool = False
    resume: bool = False
    resume_from: Path | None = None


def train(
    loaded: LoadedRecipe, start: StartingPoint, shape: ProcessShape, *, dry_run: bool
) -> ExitCode:
    """Run a recipe, or print it.

    Args:
        loaded: the checked recipe.
        start: from where.
        shape: by how many processes.
        dry_run: print the recipe with the origin of every value, and do nothing.

    Raises:
        MltuneError: as the worker explains it.
    """
    if dry_run:
        print_recipe(loaded)
        return ExitCode.OK
    _require_consistent(loaded, start)
    # The other machines write nothing; the folder may be out of their reach.
    if loaded.recipe.output_dir is not None and shape.node_rank == 0:
        goes_on = start.resume or start.resume_from is not None
        require_writable_target(Path(loaded.recipe.output_dir), start.overwrite, goes_on)
    job = new_job(loaded, start, shape)
    with TrainingView() as view:
        with held_signals():
            worker = WorkerProcess(job, view.show_output)
            pass_signals_to(worker)
        try:
            for event in worker.events():
                if isinstance(event, Started) and _fills_in_from_smoke(loaded):
                    view.show(Notice(_FILLED_IN))
                view.show(event)
        finally:
            worker.stop()
    return ExitCode.OK


def _fills_in_from_smoke(loaded: LoadedRecipe) -> bool:
    """Tell whether somebody's own model or rows are trained with the smoke recipe's settings."""
    is_bundled = {key: "(bundled)" in origin for key, origin in loaded.origins.items()}
    own = not (is_bundled["model.name_or_path"] and is_bundled["data.train"])
    return own and is_bundled["train.learning_rate"]


def _require_consistent(loaded: LoadedRecipe, start: StartingPoint) -> None:
    chosen = [
        flag
        for flag, is_given in (
            ("--overwrite", start.overwrite),
            ("--resume", start.resume),
            ("--resume-from", start.resume_from is not None),
        )
        if is_given
    ]
    if len(chosen) > 1:
        raise UsageError(f"{chosen[0]} and {chosen[1]} exclude each other; drop one")
    if start.resume and loaded.recipe.output_dir is None:
        raise UsageError("--resume: name the run with --output-dir")


def pass_signals_to(worker: WorkerProcess) -> None:
    """Let the first Ctrl-C or SIGTERM end the run after its step, and a second one at once."""
    stopping = b"stopping (after the step, with a checkpoint); again to stop at once\n"
    signals_seen = 0

    def take(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature is given
        nonlocal signals_seen
        signals_seen += 1
        if signals_seen > 1:
            raise_on_signals()
            os.kill(os.getpid(), number)
            return
        worker.ask_to_stop(number)
        # Not through the view: the signal may have come in the middle of its own printing, or of
        # an import that printing needs.
        with contextlib.suppress(OSError):
            os.write(2, stopping)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, take)


def new_job(
    loaded: LoadedRecipe, start: StartingPoint | None = None, shape: ProcessShape | None = None
) -> TrainingJob:
    """Return the worker's order for a recipe."""
    start = start or StartingPoint()
    return TrainingJob(
        recipe=loaded.recipe,
        origins=dict(loaded.origins),
        recipe_name=loaded.name,
        runs_folder=str(working_folder() / RUNS_FOLDER),
        overwrite=start.overwrite,
        resume=start.resume,
        resume_from=str(start.resume_from.resolve()) if start.resume_from else None,
        git=current_commit(),
        processes=shape or ProcessShape(),
    )
