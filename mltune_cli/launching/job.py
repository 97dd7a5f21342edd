"""What a worker is told to do, as one JSON object on its standard input."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from mltune_cli.manifest import GitFacts
from mltune_cli.recipe.schema import Recipe


class TrainingJob(BaseModel):
    """One training run.

    Attributes:
        recipe: checked; the worker fills in what data and device decide.
        origins: where each value came from, for errors and the manifest.
        recipe_name: stem of the run folder's name.
        runs_folder: where the next free folder is made when `recipe.output_dir` is None.
        overwrite: whether an earlier run in `output_dir` may be replaced.
        resume: go on from the newest complete checkpoint in `output_dir`, or from the start.
        resume_from: go on from this checkpoint's folder.
        git: commit of the folder that the command was started in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    origins: dict[str, str]
    recipe_name: str
    runs_folder: str
    overwrite: bool = False
    resume: bool = False
    resume_from: str | None = None
    git: GitFacts | None = None
