"""A resolved recipe with the origin of every value, for `--dry-run`."""

import json

from mltune_cli.recipe.layers import DEFAULT_ORIGIN, LoadedRecipe, flatten
from mltune_cli.rendering.console import print_line


def print_recipe(loaded: LoadedRecipe) -> None:
    """Print every value and where it came from, as YAML with comments."""
    flat = flatten(loaded.recipe.model_dump())
    section = ""
    for key, value in flat.items():
        name, _, leaf = key.rpartition(".")
        if name != section:
            section = name
            if name:
                print_line(f"{name}:")
        text = f"{'  ' if name else ''}{leaf}: {json.dumps(value)}"
        origin = loaded.origins.get(key, DEFAULT_ORIGIN)
        print_line(f"{text:<60}  # {origin}")
