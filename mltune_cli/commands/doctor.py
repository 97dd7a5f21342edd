"""`mltune doctor`: what is wrong with machine, packages, settings, recipe, data; and the mend."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mltune_cli.diagnosis.finding import worst
from mltune_cli.diagnosis.hub import token_file
from mltune_cli.diagnosis.machine import machine_report
from mltune_cli.diagnosis.redaction import Redaction, anonymous
from mltune_cli.diagnosis.registry import chosen_checks
from mltune_cli.diagnosis.report import (
    CheckReport,
    DoctorReport,
    exit_code_of,
    verdict_of,
)
from mltune_cli.diagnosis.runner import CheckOutcome, run_checks
from mltune_cli.diagnosis.subject import Subject, subject_of
from mltune_cli.errors import ExitCode
from mltune_cli.rendering.console import visible
from mltune_cli.rendering.doctor import print_bug_report, print_doctor, print_doctor_json

OutputKind = Literal["tree", "json", "report"]


def doctor(
    config: Path | None,
    assignments: Sequence[str],
    *,
    only: Sequence[str],
    strict: bool,
    output: OutputKind,
) -> ExitCode:
    """Run the checks and print what they found.

    Args:
        config: a recipe file; None is the bundled smoke recipe.
        assignments: `--set section.key=value` texts.
        only: names of checks; all where it is empty.
        strict: warnings count as errors.
        output: a tree for the terminal, one JSON object, or Markdown for a bug report.

    Raises:
        UsageError: there is no such recipe file or check, or an assignment is wrong.
    """
    start = time.perf_counter()
    checks = chosen_checks(only)
    subject = subject_of(config, tuple(assignments))
    outcomes, torch = run_checks(checks, subject)
    reports = [_check_report(outcome) for outcome in outcomes]
    verdict = verdict_of(reports)
    code = exit_code_of(verdict, strict=strict)
    report = DoctorReport(
        verdict=verdict,
        exit_code=int(code),
        recipe_name=_recipe_name(subject),
        machine=machine_report(subject, torch),
        checks=reports,
        seconds=round(time.perf_counter() - start, 3),
    )
    _print(_shown(report, output, subject), output)
    return code


def _check_report(outcome: CheckOutcome) -> CheckReport:
    return CheckReport(
        name=outcome.check.name,
        title=outcome.check.title,
        severity=worst([finding.severity for finding in outcome.findings]),
        findings=list(outcome.findings),
        seconds=round(outcome.seconds, 3),
    )


def _recipe_name(subject: Subject) -> str:
    if subject.loaded is not None:
        return subject.loaded.name
    return subject.config.name if subject.config is not None else "smoke"


def _shown(report: DoctorReport, output: OutputKind, subject: Subject) -> DoctorReport:
    """Take secrets out before anything is printed; from a bug report also who and where one is."""
    saved = _saved_token(token_file(subject.variables))
    redaction = Redaction(subject.variables, saved, report.own_words())

    def change(text: str) -> str:
        text = redaction.text(text)
        if output == "report":
            text = anonymous(text, subject.variables)
        return visible(text)

    return report.with_texts(change)


def _saved_token(path: Path) -> tuple[str, ...]:
    try:
        return (path.read_text(encoding="utf-8", errors="replace"),)
    except OSError:
        return ()


def _print(report: DoctorReport, output: OutputKind) -> None:
    printers = {"json": print_doctor_json, "report": print_bug_report, "tree": print_doctor}
    printers[output](report)
