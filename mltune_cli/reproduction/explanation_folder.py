"""Where the runs that explain a difference are kept, and what stays of them."""

import shutil
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

_EXPERIMENT = "experiment"
# What traced runs wrote besides their traces and witnesses.
_LEFTOVERS = ("*/trace/values", "*/run*", "*/files", "*/conditions")


@dataclass
class ExplanationFolder:
    """A folder with one numbered folder for each run.

    Attributes:
        path: made with the first run.
    """

    path: Path
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def new_trace(self, run: int) -> Path:
        """Make a folder for a trace of one of the compared runs."""
        return self._new(f"trace-of-run-{run}")

    def new_experiment(self) -> Path:
        """Make a folder for a run under some condition."""
        return self._new(_EXPERIMENT)

    def _new(self, name: str) -> Path:
        folder = self.path / f"{next(self._numbers)}-{name}"
        folder.mkdir(parents=True)
        return folder

    def tidy(self) -> None:
        """Keep the traces alone: tensors, and what the runs trained, may be large."""
        for pattern in (f"*-{_EXPERIMENT}", *_LEFTOVERS):
            for folder in self.path.glob(pattern):
                shutil.rmtree(folder, ignore_errors=True)
