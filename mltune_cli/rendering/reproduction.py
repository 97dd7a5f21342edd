"""`repro-check` in a terminal: progress of several runs, then the verdict as a tree."""

from typing import TYPE_CHECKING

from mltune_cli.launching.events import Event, Notice, StepDone
from mltune_cli.rendering.branch import rich_tree
from mltune_cli.rendering.console import print_line, stderr, stdout
from mltune_cli.rendering.progress_line import ProgressLine
from mltune_cli.rendering.verdicts import report_tree
from mltune_cli.reproduction.report import ReproductionReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mltune_cli.reproduction.conditions.parsing import ListedCondition


class ReproductionView(ProgressLine):
    """Shows the runs of a check while they go on."""

    def __init__(self, run_count: int) -> None:
        super().__init__()
        self._run_count = run_count
        self._steps: dict[int, int] = {}

    def show(self, run: int, event: Event) -> None:
        """Show an event of a run (counted from 1)."""
        if isinstance(event, Notice) and run == 1:
            self.show_output(run, f"note: {event.message}")
        if not isinstance(event, StepDone):
            return
        self._steps[run] = event.step
        # The slowest run decides how far the comparison is.
        if len(self._steps) == self._run_count or self.is_live:
            reached = min(self._steps.get(n, 0) for n in range(1, self._run_count + 1))
            if self.is_live or (event.logged and self._steps[run] == reached):
                runs = f"{self._run_count} runs" if self._run_count > 1 else "1 run"
                self.show_progress(f"{runs}, step {reached}/{event.total_steps}")

    def show_output(self, run: int, line: str) -> None:
        """Show a line that a worker printed."""
        stderr().print(f"[run {run}] {line}", markup=False)


def print_report(report: ReproductionReport) -> None:
    """Print the verdict as a tree."""
    stdout().print(rich_tree(report_tree(report)))


def print_conditions(conditions: "Sequence[ListedCondition]") -> None:
    """Print what `--vary` takes, as a table."""
    rows = [("NAME", "VALUE", "DEFAULT", "FOR", "WHAT IS OTHER")]
    rows += [(c.name, c.values, c.default, c.scope, c.meaning) for c in conditions]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        print_line("  ".join([*cells, row[4]]))


def print_report_json(report: ReproductionReport) -> None:
    """Print the report as one JSON object."""
    print_line(report.model_dump_json(indent=2))
