"""`--against RUN` alone: what a run trained, from what the run says of itself."""

from pathlib import Path

from pydantic import ValidationError

from mltune_cli.command_secrets import HIDDEN
from mltune_cli.errors import UsageError
from mltune_cli.manifest import MANIFEST_FILE, read_manifest
from mltune_cli.paths import is_file
from mltune_cli.recipe.layers import LoadedRecipe
from mltune_cli.recipe.schema import Recipe
from mltune_cli.reproduction.golden_source import checked_command, read_source


def replayed_command(run: Path) -> list[str] | None:
    """Return the command of an earlier check's output; None where a recipe was trained.

    Raises:
        UsageError: it is neither a run nor the output of a check, or its command had a secret,
            which no report keeps.
    """
    if read_source(run)[0].kind == "recipe":
        return None
    command = checked_command(run)
    if any(HIDDEN in word for word in command):
        raise UsageError(
            f"--against {run}: its command had a secret, which is not kept; give the command after "
            "--"
        )
    return command


def replayed_recipe(run: Path) -> LoadedRecipe:
    """Return the recipe of a run, every value as it was resolved then.

    Raises:
        UsageError: the run's recipe is not one for this version of mltune.
    """
    folder = run if is_file(run / MANIFEST_FILE) else run / "run-1"
    manifest = read_manifest(folder)
    path = folder / MANIFEST_FILE
    try:
        recipe = Recipe.model_validate({**manifest.recipe, "output_dir": None})
    except ValidationError as error:
        details = error.errors()[0]
        key = ".".join(map(str, details["loc"]))
        raise UsageError(
            f"{path}: was written by mltune {manifest.mltune}, and its recipe cannot be trained "
            f"by this one: {key}: {details['msg']}"
        ) from None
    origins = dict.fromkeys(manifest.origins, str(path))
    return LoadedRecipe(recipe, origins, manifest.recipe_name)
