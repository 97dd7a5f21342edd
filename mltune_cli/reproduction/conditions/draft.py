"""A run while its conditions are put together; and a condition itself."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mltune_cli.command_secrets import without_secrets
from mltune_cli.launching.job import TrainingJob


@dataclass(frozen=True)
class Condition:
    """Something that a run has and another does not, and that must not change the bits.

    Attributes:
        name: `hash-seed`, `env.NAME`, or the key of a recipe.
        value: checked, and in the spelling that is reported; empty for what takes none.
    """

    name: str
    value: str = ""

    def __str__(self) -> str:
        """Return the condition as it is shown; its value may be a secret."""
        return without_secrets([f"{self.name}={self.value}"])[0] if self.value else self.name


@dataclass
class Draft:
    """What a run of a command, or of a job, will be started with.

    Attributes:
        folder: for what a condition needs to be fresh, such as an empty home.
        inherited: the environment that a run without conditions would have.
        job: of a recipe's run; else None.
        command: of a command's run; else empty.
        settings: environment variables that are other than the inherited ones.
        hook: what the start-up hook is asked for inside the process.
        is_other: whether anything is other than it would be without conditions.
    """

    folder: Path
    inherited: Mapping[str, str]
    job: TrainingJob | None = None
    command: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    hook: dict[str, Any] = field(default_factory=dict)
    cwd: Path | None = None
    umask: int = -1
    kill_at: int | None = None
    is_other: bool = False

    def set(self, name: str, value: str) -> None:
        """Set an environment variable."""
        self.is_other = self.is_other or self.get(name) != value
        self.settings[name] = value

    def get(self, name: str) -> str | None:
        """Return an environment variable as it is so far."""
        return self.settings.get(name, self.inherited.get(name))

    def ask_hook(self, name: str, value: Any) -> None:
        """Ask the start-up hook for something inside the process."""
        self.is_other = True
        self.hook[name] = value

    def fresh(self, name: str) -> Path:
        """Make an empty folder."""
        path = Path(os.path.abspath(self.folder / name))  # noqa: PTH100 - the run may be elsewhere
        path.mkdir(parents=True, exist_ok=True)
        self.is_other = True
        return path

    def require_job(self) -> TrainingJob:
        """Return the job that a recipe's condition changes."""
        assert self.job is not None  # noqa: S101 - conditions for recipes alone are refused before
        return self.job

    def set_keys(self, values: dict[str, Any]) -> None:
        """Set keys of the recipe.

        Raises:
            pydantic.ValidationError: a value is not one of the key's.
        """
        job = self.require_job()
        recipe = job.recipe.with_values(values)
        self.is_other = self.is_other or recipe != job.recipe
        self.job = job.model_copy(update={"recipe": recipe})


Apply = Callable[[Draft, str], None]
