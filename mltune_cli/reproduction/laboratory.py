"""What a laboratory has whatever it runs again: a check's folder, environment and variation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.reproduction.conditions.draft import Condition
from mltune_cli.reproduction.explanation_folder import ExplanationFolder


@dataclass
class CheckedRuns:
    """The runs of a check that are to be explained.

    Attributes:
        folder: of the check; its runs are in `run-1`, `run-2`, ...
        inherited: the environment.
        variation: conditions that the first run did not have.
        deadline: by `time.monotonic`; None waits for ever.
    """

    folder: Path
    inherited: Mapping[str, str]
    variation: Sequence[Condition]
    deadline: float | None

    def __post_init__(self) -> None:
        self.explanation = ExplanationFolder(self.folder / "explanation")

    def tidy(self) -> None:
        """See `explaining.Laboratory`."""
        self.explanation.tidy()

    @property
    def can_trace(self) -> bool:
        """A run that is killed and resumed takes its steps in two processes."""
        return all(condition.name != "kill-and-resume" for condition in self.variation)
