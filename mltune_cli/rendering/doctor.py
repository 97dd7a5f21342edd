"""`doctor` in a terminal, as a tree; and for a bug report, as Markdown."""

from collections.abc import Iterator, Sequence

from mltune_cli.diagnosis.finding import Finding, Scope
from mltune_cli.diagnosis.report import CheckReport, DoctorReport, MachineReport
from mltune_cli.rendering.branch import Branch, rich_tree
from mltune_cli.rendering.console import print_line, stdout

# So few checks were asked for by name, and what is in order is told in full.
_FEW_CHECKS = 4
_VERDICTS = {
    "healthy": ("healthy", "bold green"),
    "warnings": ("healthy, with warnings", "bold yellow"),
    "errors": ("not healthy", "bold red"),
}
_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold"}
_LEADS = {"error": "error", "warning": "warning", "info": "note"}
_SCOPES: dict[Scope, str] = {
    "everything": "",
    "scripts": " (your own scripts)",
    "images": " (build-image)",
}


def print_doctor(report: DoctorReport) -> None:
    """Print the verdict and what it rests on, the worst last, where it is seen."""
    stdout().print(rich_tree(doctor_tree(report)))


def print_doctor_json(report: DoctorReport) -> None:
    """Print the report as one JSON object."""
    print_line(report.model_dump_json(indent=2))


def doctor_tree(report: DoctorReport) -> Branch:
    """Return the report as a tree of sentences."""
    lead, style = _VERDICTS[report.verdict]
    tree = Branch(_summary(report), lead, style)
    in_order = [check for check in report.checks if check.severity == "ok"]
    if in_order and len(report.checks) > _FEW_CHECKS:
        tree.add(", ".join(check.name for check in in_order), lead="in order", style="green")
    elif in_order:
        for check in in_order:
            for finding in check.findings:
                tree.add(finding.seen, lead=f"in order: {check.name}", style="green")
    for severity in ("info", "warning", "error"):
        for check, finding in _findings(report, severity):
            _add(tree, check, finding)
    return tree


def _summary(report: DoctorReport) -> str:
    counts = []
    for severity, word in (("error", "error"), ("warning", "warning"), ("info", "note")):
        count = len(list(_findings(report, severity)))
        if count:
            counts.append(f"{count} {word}{'s' if count > 1 else ''}")
    checks = f"{len(report.checks)} check{'s' if len(report.checks) > 1 else ''}"
    return ", ".join([f"{checks} for the recipe {report.recipe_name}", *counts])


def _findings(report: DoctorReport, severity: str) -> Iterator[tuple[CheckReport, Finding]]:
    for check in report.checks:
        for finding in check.findings:
            if finding.severity == severity:
                yield check, finding


def _add(tree: Branch, check: CheckReport, finding: Finding) -> None:
    lead = f"{_LEADS[finding.severity]} {check.name}{_SCOPES[finding.scope]}"
    branch = tree.add(finding.seen, lead=lead, style=_STYLES[finding.severity])
    # A note is one line and its command; whoever wants its reasons finds them in the JSON.
    if finding.severity != "info":
        if finding.why:
            branch.add(f"why: {finding.why}")
        if finding.remedy:
            branch.add(f"remedy: {finding.remedy}")
    if finding.command:
        branch.add(f"run: {finding.command}")


# For a bug report ---------------------------------------------------------------------------------


def print_bug_report(report: DoctorReport) -> None:
    """Print the report as Markdown, which others can read and paste."""
    print_line("\n".join(bug_report_lines(report)))


def bug_report_lines(report: DoctorReport) -> Iterator[str]:
    """Yield the report as Markdown."""
    yield "### mltune doctor"
    yield ""
    yield f"{report.verdict}: {_summary(report)}"
    yield ""
    yield from _table(("", "machine"), _machine_rows(report.machine))
    yield ""
    yield from _block("packages", [f"{n}=={v}" for n, v in report.machine.packages.items()])
    settings = [f"{name}={value}" for name, value in report.machine.settings.items()]
    yield from _block("torch after its import", settings)
    variables = [f"{name}={value}" for name, value in report.machine.variables.items()]
    yield from _block("environment", variables)
    rows = [
        (finding.severity, check.name, finding.seen)
        for check in report.checks
        for finding in check.findings
    ]
    yield from _table(("", "check", "seen"), rows)


def _machine_rows(machine: MachineReport) -> list[tuple[str, str]]:
    memory = "unknown"
    if machine.memory_bytes is not None:
        memory = f"{machine.memory_bytes / 2**30:.0f} GiB"
    cuda = f"CUDA {machine.cuda}" if machine.cuda else "CPU build"
    rows = [
        ("mltune", machine.mltune),
        ("Python", machine.python),
        ("platform", f"{machine.platform}, {machine.libc}"),
        ("container", "yes" if machine.is_container else "no"),
        ("processor", f"{machine.processor}, {machine.cores} cores, {memory}"),
        ("torch", f"{machine.torch or 'not installed'} ({cuda})"),
        ("instruction set", machine.instruction_set or "not asked"),
        ("driver", machine.driver or "none"),
    ]
    return rows + [("GPU", gpu) for gpu in machine.gpus]


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{' --- |' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(_cell(text) for text in row)} |"


def _cell(text: str) -> str:
    """Return text that stays in its cell and is shown as it is."""
    text = " ".join(text.split())
    for character in "\\|<>`*_[]":
        text = text.replace(character, f"\\{character}")
    return text


def _block(title: str, lines: list[str]) -> Iterator[str]:
    if not lines:
        return
    # A fence longer than any run of backticks in it.
    fence = "```"
    while any(fence in line for line in lines):
        fence += "`"
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield f"{fence}text"
    yield from (" ".join(line.split("\n")) for line in lines)
    yield fence
    yield ""
    yield "</details>"
    yield ""
