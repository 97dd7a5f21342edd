"""`repro-check` in a terminal: progress of several runs, then the verdict as a tree."""

from typing import TYPE_CHECKING

from mltune_cli.launching.events import Event, Notice, StepDone
from mltune_cli.rendering.console import is_interactive, print_line, stderr, stdout
from mltune_cli.reproduction.report import (
    Diagnosis,
    FirstDifference,
    Localisation,
    ReproductionReport,
    TensorDifference,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.tree import Tree

    from mltune_cli.reproduction.conditions.parsing import ListedCondition


_FEW_NAMES = 4


class ReproductionView:
    """Shows the runs of a check while they go on."""

    def __init__(self, run_count: int) -> None:
        self._run_count = run_count
        self._steps: dict[int, int] = {}
        self._status = stderr().status("starting") if is_interactive() else None

    def start(self) -> None:
        """Begin to show progress."""
        if self._status is not None:
            self._status.start()

    def stop(self) -> None:
        """Take the progress line down."""
        if self._status is not None:
            self._status.stop()

    def show(self, run: int, event: Event) -> None:
        """Show an event of a run (counted from 1)."""
        if isinstance(event, Notice) and run == 1:
            self.show_output(run, f"note: {event.message}")
        if not isinstance(event, StepDone):
            return
        self._steps[run] = event.step
        # The slowest run decides how far the comparison is.
        if len(self._steps) == self._run_count or self._status is not None:
            reached = min(self._steps.get(n, 0) for n in range(1, self._run_count + 1))
            text = f"{self._run_count} runs, step {reached}/{event.total_steps}"
            if self._status is not None:
                self._status.update(text)
            elif event.logged and self._steps[run] == reached:
                stderr().print(text, markup=False)

    def show_progress(self, text: str) -> None:
        """Show what is being done after the runs."""
        if self._status is not None:
            self._status.update(text)
        else:
            stderr().print(text, markup=False)

    def show_output(self, run: int, line: str) -> None:
        """Show a line that a worker printed."""
        stderr().print(f"[run {run}] {line}", markup=False)


def print_report(report: ReproductionReport) -> None:
    """Print the verdict as a tree."""
    from rich.markup import escape
    from rich.tree import Tree

    titles = {
        "reproducible": "[bold green]reproducible[/]",
        "different": "[bold red]different[/]",
        "no_verdict": "[bold yellow]no verdict[/]",
    }
    tree = Tree(f"{titles[report.verdict]}: {_summary(report)}", highlight=False)
    if report.variation:
        last = len(report.runs)
        varied = "run 2" if last == 2 else f"runs 2 to {last}"
        tree.add(f"{varied} had: {escape(', '.join(report.variation))}")
    if report.first_difference is not None:
        branch = _add_difference(tree, report.first_difference)
        if report.tensors:
            more = ", ..." if len(report.tensors) > _FEW_NAMES else ""
            branch.add(escape(f"in {', '.join(report.tensors[:_FEW_NAMES])}{more}"))
        if report.localisation is not None:
            _add_localisation(branch, report.localisation)
    if report.diagnosis is not None:
        _add_diagnosis(tree, report.diagnosis)
    for note in report.notes:
        tree.add(f"[yellow]note[/]: {escape(note)}")
    for run in report.runs:
        loss = "" if run.last_loss is None else f", last loss {run.last_loss:.6f}"
        tree.add(f"run {run.number}: {run.status}, {run.steps} steps{loss}")
    stdout().print(tree)


def print_conditions(conditions: "Sequence[ListedCondition]") -> None:
    """Print what `--vary` takes, as a table."""
    rows = [("NAME", "VALUE", "DEFAULT", "FOR", "WHAT IS OTHER")]
    rows += [(c.name, c.values, c.default, c.scope, c.meaning) for c in conditions]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        print_line("  ".join([*cells, row[4]]))


def _summary(report: ReproductionReport) -> str:
    from rich.markup import escape

    count = len(report.runs)
    if report.verdict == "reproducible":
        return (
            f"{count} runs of {escape(report.recipe_name)} are equal bit for bit "
            f"over {report.compared_steps} steps"
        )
    if report.verdict == "different":
        return f"{count} runs of {escape(report.recipe_name)} part"
    return escape(report.reason or "")


def _add_difference(tree: "Tree", difference: FirstDifference) -> "Tree":
    from rich.markup import escape

    first, second = difference.runs
    # A command's optimizer and process are named where it could be another.
    names = [difference.optimizer, difference.process if difference.process != "main" else None]
    where = "".join(f", {escape(name)}" for name in names if name)
    branch = tree.add(
        f"step {difference.step}{where}, {escape(difference.stage)}: {difference.meaning} "
        f"(runs {first} and {second})"
    )
    if difference.values is not None:
        branch.add(f"run {first}: {difference.values[0]}")
        branch.add(f"run {second}: {difference.values[1]}")
    if len(difference.stages) > 1:
        branch.add(f"also different in this step: {', '.join(difference.stages[1:])}")
    return branch


def _add_localisation(tree: "Tree", where: Localisation) -> None:
    from rich.markup import escape

    module = f" of {where.module}" if where.module else ""
    node = f" ({where.node})" if where.node else ""
    branch = tree.add(
        escape(f"operation {where.record}: {where.operation}, {where.phase}{module}{node}")
    )
    for place in (where.frame, where.library_frame):
        if place is not None:
            branch.add(escape(f"at {place}"))
    if where.values is not None:
        branch.add(escape(f"{where.differs}: {where.values[0]} | {where.values[1]}"))
    for tensor in where.tensors:
        branch.add(escape(_tensor(tensor)))


def _tensor(tensor: TensorDifference) -> str:
    sizes = "x".join(map(str, tensor.shape)) or "scalar"
    text = f"{tensor.name}, {tensor.dtype} {sizes}"
    if tensor.differing is None:
        return f"{text}: differs"
    text += f": {tensor.differing} of {tensor.elements} elements differ"
    if tensor.largest_ulps is not None:
        text += f", by at most {tensor.largest_ulps} ulp"
    if tensor.largest_difference is not None:
        text += f" ({tensor.largest_difference:.3g})"
    return text


def _add_diagnosis(tree: "Tree", diagnosis: Diagnosis) -> None:
    from rich.markup import escape

    branch = tree.add(f"[bold]cause: {escape(diagnosis.cause)}[/]: {escape(diagnosis.title)}")
    for sentence in diagnosis.evidence:
        branch.add(f"evidence: {escape(sentence)}")
    branch.add(f"remedy: {escape(diagnosis.remedy)}")


def print_report_json(report: ReproductionReport) -> None:
    """Print the report as one JSON object."""
    print_line(report.model_dump_json(indent=2))
