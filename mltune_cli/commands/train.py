"""`mltune train`: one run of one recipe."""

from pathlib import Path

from mltune_cli.commands.git_facts import current_commit
from mltune_cli.errors import ExitCode
from mltune_cli.launching.job import TrainingJob
from mltune_cli.launching.worker_process import WorkerProcess
from mltune_cli.recipe.layers import LoadedRecipe
from mltune_cli.rendering.recipe import print_recipe
from mltune_cli.rendering.training import TrainingView
from mltune_cli.run_folder import require_writable_target

RUNS_FOLDER = "runs"


def train(loaded: LoadedRecipe, *, overwrite: bool, dry_run: bool) -> ExitCode:
    """Run a recipe, or print it.

    Args:
        loaded: the checked recipe.
        overwrite: whether an earlier run in the recipe's output folder may be replaced.
        dry_run: print the recipe with the origin of every value, and do nothing.

    Raises:
        MltuneError: as the worker explains it.
    """
    if dry_run:
        print_recipe(loaded)
        return ExitCode.OK
    if loaded.recipe.output_dir is not None:
        require_writable_target(Path(loaded.recipe.output_dir), overwrite)
    job = new_job(loaded, overwrite=overwrite)
    with TrainingView() as view:
        worker = WorkerProcess(job, view.show_output)
        try:
            for event in worker.events():
                view.show(event)
        finally:
            worker.stop()
    return ExitCode.OK


def new_job(loaded: LoadedRecipe, *, overwrite: bool = False) -> TrainingJob:
    """Return the worker's order for a recipe."""
    return TrainingJob(
        recipe=loaded.recipe,
        origins=dict(loaded.origins),
        recipe_name=loaded.name,
        runs_folder=str(Path.cwd() / RUNS_FOLDER),
        overwrite=overwrite,
        git=current_commit(),
    )
