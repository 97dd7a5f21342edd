"""A report without the secrets of its command: what a run printed last may repeat them."""

from collections.abc import Sequence

from mltune_cli.command_secrets import text_without
from mltune_cli.reproduction.report import ReproductionReport


def report_without(secrets: Sequence[str], report: ReproductionReport) -> ReproductionReport:
    """Return a report in whose sentences `***` stands for secrets.

    Args:
        secrets: those that are known, the longest first; others go by their shapes.
        report: of a check; its names of commands and conditions hold none.
    """

    def hidden(text: str) -> str:
        return text_without(secrets, text)

    diagnosis = report.diagnosis
    if diagnosis is not None:
        evidence = list(map(hidden, diagnosis.evidence))
        diagnosis = diagnosis.model_copy(update={"evidence": evidence})
    runs = [
        run if run.error is None else run.model_copy(update={"error": hidden(run.error)})
        for run in report.runs
    ]
    return report.model_copy(
        update={
            "reason": None if report.reason is None else hidden(report.reason),
            "notes": list(map(hidden, report.notes)),
            "diagnosis": diagnosis,
            "runs": runs,
        }
    )
