"""What the checks look at: the recipe, the environment, the folder, and what torch says."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mltune_cli.bundled import BUNDLED_PREFIX
from mltune_cli.diagnosis.torch_facts import TorchFacts
from mltune_cli.errors import UsageError
from mltune_cli.launching.environment import worker_environment
from mltune_cli.paths import is_file, is_there, working_folder
from mltune_cli.recipe.layers import LoadedRecipe, check_assignments, load_recipe
from mltune_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        config: the recipe file; None for the bundled smoke recipe.
        loaded: the recipe; None where it cannot be used.
        problem: why it cannot; None where it can.
        folder: the working directory.
        variables: the environment of the command, which a script of the user's inherits.
        torch: what torch says of itself; None before it has answered, and for checks that do not
            need it.
    """

    config: Path | None
    loaded: LoadedRecipe | None
    problem: str | None
    folder: Path
    variables: Mapping[str, str] = field(repr=False)
    torch: TorchFacts | None = None

    @property
    def recipe(self) -> Recipe:
        """The recipe; the schema's defaults where it cannot be used."""
        return self.loaded.recipe if self.loaded is not None else Recipe()

    @property
    def wants_gpu(self) -> bool:
        """Whether the recipe is computed on a GPU where there is one."""
        return self.recipe.model.device != "cpu"

    def flags(self) -> str:
        """Return the `--config` of the commands that remedies name, with a space before it."""
        return f" --config {shlex.quote(str(self.config))}" if self.config is not None else ""

    def trial(self, check: str, *settings: str) -> str:
        """Return the command that tells whether settings would do; it trains nothing.

        Args:
            check: that is to find them in order.
            settings: `section.key=value`, to be written into the recipe where they do.
        """
        words = [f"--set {shlex.quote(setting)}" for setting in settings]
        return f"mltune doctor{self.flags()} --only {check} {' '.join(words)}"

    def worker_variables(self) -> dict[str, str]:
        """Return the environment that mltune's own training gets."""
        return worker_environment(self.recipe, self.variables)

    def removed_variables(self) -> dict[str, str]:
        """Return the inherited variables that mltune takes out of its own training's environment.

        A script that `repro-check` runs gets them.
        """
        kept = self.worker_variables()
        return {name: value for name, value in self.variables.items() if kept.get(name) != value}


def subject_of(
    config: Path | None, assignments: tuple[str, ...], variables: Mapping[str, str] = os.environ
) -> Subject:
    """Read the recipe; one that cannot be used is a finding, not an error.

    Args:
        config: a recipe file; None is the bundled smoke recipe.
        assignments: `--set section.key=value` texts.
        variables: the environment.

    Raises:
        UsageError: there is no such file, or an assignment is wrong.
    """
    # An assignment that suits no recipe is the caller's mistake; one that does not go together with
    # this recipe is found as the recipe's other faults are.
    check_assignments(assignments)
    loaded, problem = None, None
    try:
        loaded = load_recipe(config, {}, assignments)
    except UsageError as error:
        if config is None or not is_file(config):
            raise
        problem = error.message
    return Subject(config, loaded, problem, working_folder(), dict(variables))


def written(*settings: str) -> str:
    """Return in words what is to be written into a recipe.

    Args:
        settings: `section.key=value`, or `key=value`.
    """
    parts = []
    for setting in settings:
        key, _, value = setting.partition("=")
        section, _, leaf = key.rpartition(".")
        below = f" below `{section}:`" if section else ""
        parts.append(f"`{leaf}: {value}`{below}")
    return f"write {' and '.join(parts)} in the recipe"


def is_hub_name(name: str | None) -> bool:
    """Tell whether a recipe's model or data is to be got from the hub, as the worker tells it."""
    return name is not None and not name.startswith((BUNDLED_PREFIX, "/")) and not is_there(name)
