"""A check's report in words: the same for terminal, page and log."""

from mltune_cli.rendering.branch import Branch
from mltune_cli.reproduction.report import (
    Diagnosis,
    FirstDifference,
    GoldenComparison,
    Localisation,
    ReproductionReport,
    RunOutcome,
    TensorDifference,
)

_FEW_NAMES = 4
_RUNS = {
    "reproducible": ("reproducible", "bold green"),
    "different": ("different", "bold red"),
    "no_verdict": ("no verdict", "bold yellow"),
}
_GOLDEN = {
    "reproduced": ("reproduced", "bold green"),
    "code_changed": ("the code changed the result", "bold red"),
    "environment_changed": ("the environment changed", "bold yellow"),
    "not_deterministic": ("not deterministic", "bold red"),
}


def report_lines(report: ReproductionReport) -> list[str]:
    """Return the report as plain lines."""
    return list(report_tree(report).lines())


def report_tree(report: ReproductionReport) -> Branch:
    """Return the verdict, and below it what it rests on."""
    tree = _title(report)
    if report.variation:
        last = len(report.runs)
        varied = "run 2" if last == 2 else f"runs 2 to {last}"
        tree.add(f"{varied} had: {', '.join(report.variation)}")
    if report.golden is not None:
        _add_golden(tree, report.golden, report.runs)
    if report.first_difference is not None:
        branch = _add_difference(tree, report.first_difference)
        if report.tensors:
            more = ", ..." if len(report.tensors) > _FEW_NAMES else ""
            branch.add(f"in {', '.join(report.tensors[:_FEW_NAMES])}{more}")
        if report.localisation is not None:
            _add_localisation(branch, report.localisation)
    if report.diagnosis is not None:
        _add_diagnosis(tree, report.diagnosis)
    for note in report.notes:
        tree.add(note, lead="note", style="yellow")
    for run in report.runs:
        loss = "" if run.last_loss is None else f", last loss {run.last_loss:.6f}"
        tree.add(f"run {run.number}: {run.status}, {run.steps} steps{loss}")
    if report.recorded is not None:
        tree.add(f"recorded in {report.recorded}")
    return tree


def _title(report: ReproductionReport) -> Branch:
    golden = report.golden
    decides = golden is not None and (
        golden.verdict != "environment_changed" or report.verdict == "no_verdict"
    )
    if golden is not None and decides:
        lead, style = _GOLDEN[golden.verdict]
        text = golden_sentence(golden) if golden.verdict != "reproduced" else _reproduced(report)
        return Branch(text, lead, style)
    lead, style = _RUNS[report.verdict]
    return Branch(runs_sentence(report), lead, style)


def runs_sentence(report: ReproductionReport) -> str:
    """Say what came of comparing the runs with each other."""
    if report.first_difference is not None:
        return f"{len(report.runs)} runs of {report.recipe_name} part"
    if report.verdict == "no_verdict":
        return report.reason or ""
    return f"{_runs(report)} equal bit for bit over {report.compared_steps} steps"


def _reproduced(report: ReproductionReport) -> str:
    golden = report.golden
    source, steps = (golden.source, golden.steps) if golden is not None else ("", 0)
    return f"{_runs(report)} equal to {source} bit for bit over {steps} steps"


def _runs(report: ReproductionReport) -> str:
    count = len(report.runs)
    return f"{count} run{'s' if count > 1 else ''} of {report.recipe_name} {_be(count)}"


def _be(count: int) -> str:
    return "are" if count > 1 else "is"


def golden_sentence(golden: GoldenComparison) -> str:
    """Say what came of holding the runs against a golden."""
    difference = golden.first_difference
    if difference is not None:
        return (
            f"at step {difference.step}, {difference.stage}, the runs part from {golden.source}, "
            "and not from each other"
        )
    return {
        "reproduced": f"the runs are equal to {golden.source}",
        "code_changed": f"the runs are not equal to {golden.source}",
        "environment_changed": f"{golden.source} has nothing for this one to be held against",
        "not_deterministic": "the runs part from each other, so no change is to blame",
    }[golden.verdict]


def _add_golden(tree: Branch, golden: GoldenComparison, runs: list[RunOutcome]) -> None:
    difference = golden.first_difference
    if difference is not None:
        branch = tree.add(f"step {difference.step}{_place(difference)}: {difference.meaning}")
        if difference.values is not None:
            branch.add(f"golden: {difference.values[0]}")
            branch.add(f"now: {difference.values[1]}")
        if len(difference.stages) > 1:
            branch.add(f"also different in this step: {', '.join(difference.stages[1:])}")
        loss = runs[0].last_loss
        if golden.last_loss is not None and loss is not None:
            tree.add(f"last loss: {golden.last_loss:.6f} is now {loss:.6f}")
        if golden.commit is not None:
            tree.add(f"the golden was recorded at commit {golden.commit}")
    for change in golden.changes:
        tree.add(change.sentence, lead="changed", style="bold")
    if golden.verdict in ("code_changed", "environment_changed"):
        tree.add(golden.record_command, lead="to make this the golden", style="bold")


def _place(difference: FirstDifference) -> str:
    """Return optimizer, process and stage; the first two where it could be another."""
    names = [difference.optimizer, difference.process if difference.process != "main" else None]
    where = "".join(f", {name}" for name in names if name)
    return f"{where}, {difference.stage}"


def _add_difference(tree: Branch, difference: FirstDifference) -> Branch:
    first, second = difference.runs
    branch = tree.add(
        f"step {difference.step}{_place(difference)}: {difference.meaning} "
        f"(runs {first} and {second})"
    )
    if difference.values is not None:
        branch.add(f"run {first}: {difference.values[0]}")
        branch.add(f"run {second}: {difference.values[1]}")
    if len(difference.stages) > 1:
        branch.add(f"also different in this step: {', '.join(difference.stages[1:])}")
    return branch


def _add_localisation(tree: Branch, where: Localisation) -> None:
    module = f" of {where.module}" if where.module else ""
    node = f" ({where.node})" if where.node else ""
    branch = tree.add(f"operation {where.record}: {where.operation}, {where.phase}{module}{node}")
    for place in (where.frame, where.library_frame):
        if place is not None:
            branch.add(f"at {place}")
    if where.values is not None:
        branch.add(f"{where.differs}: {where.values[0]} | {where.values[1]}")
    for tensor in where.tensors:
        branch.add(_tensor(tensor))


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


def _add_diagnosis(tree: Branch, diagnosis: Diagnosis) -> None:
    branch = tree.add(diagnosis.title, lead=f"cause: {diagnosis.cause}", style="bold")
    for sentence in diagnosis.evidence:
        branch.add(f"evidence: {sentence}")
    branch.add(f"remedy: {diagnosis.remedy}")
