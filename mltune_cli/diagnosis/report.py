"""The result of `doctor`, as `--json` prints it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mltune_cli.diagnosis.finding import SEVERITIES, Finding, Severity, worst
from mltune_cli.errors import ExitCode

Verdict = Literal["healthy", "warnings", "errors"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CheckReport(_Frozen):
    """What one check came to.

    Attributes:
        name: what `--only` takes.
        title: what it looks at.
        severity: the worst of its findings.
        findings: at least one.
        seconds: that it took.
    """

    name: str
    title: str
    severity: Severity
    findings: list[Finding]
    seconds: float

    def with_texts(self, change: Callable[[str], str]) -> CheckReport:
        """Return the check with what its findings say changed."""
        findings = [finding.with_texts(change) for finding in self.findings]
        return self.model_copy(update={"findings": findings})


class MachineReport(_Frozen):
    """The machine, for a bug report.

    Attributes:
        packages: versions of those that decide bits or that mltune needs.
        gpus: as torch sees them, or else the driver.
        settings: torch's own that decide bits, after an import; empty where torch was not asked.
        variables: those of the environment that decide bits; none with a secret.
    """

    mltune: str
    python: str
    platform: str
    libc: str
    processor: str
    cores: int
    memory_bytes: int | None
    is_container: bool
    packages: dict[str, str]
    torch: str | None
    cuda: str | None
    instruction_set: str | None
    driver: str | None
    gpus: list[str]
    settings: dict[str, str | int | bool]
    variables: dict[str, str]

    def with_texts(self, change: Callable[[str], str]) -> MachineReport:
        """Return the machine with every value changed, and the names of variables."""
        values = {name: _changed(getattr(self, name), change) for name in type(self).model_fields}
        values["variables"] = {change(name): text for name, text in values["variables"].items()}
        return self.model_copy(update=values)


class DoctorReport(_Frozen):
    """What the doctor found.

    Attributes:
        verdict: `errors` where a run will stop or break; `warnings` where it may, or where equality
            of bits is in danger.
        exit_code: 1 with errors, and with warnings where `--strict` was given.
        recipe_name: of the recipe that was looked at.
        seconds: wall time.
    """

    schema_name: Literal["mltune.doctor/1"] = "mltune.doctor/1"
    verdict: Verdict
    exit_code: int
    recipe_name: str
    machine: MachineReport
    checks: list[CheckReport]
    seconds: float

    def with_texts(self, change: Callable[[str], str]) -> DoctorReport:
        """Return the report with every free text changed; names, titles and verdicts stay.

        Args:
            change: may return anything: a secret may be one of the report's own words.
        """
        return self.model_copy(
            update={
                "recipe_name": change(self.recipe_name),
                "machine": self.machine.with_texts(change),
                "checks": [check.with_texts(change) for check in self.checks],
            }
        )

    def own_words(self) -> frozenset[str]:
        """Return the words that stand in the report of any machine, in lower case."""
        models = (DoctorReport, CheckReport, MachineReport, Finding)
        words = {name for model in models for name in model.model_fields}
        words |= {self.verdict, *SEVERITIES, *self.machine.packages}
        for check in self.checks:
            words |= {check.name, *re.findall(r"[\w.]+", check.title)}
        return frozenset(word.lower() for word in words)


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    """Return a text, a list of texts or a mapping to texts with every text changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {name: _changed(one, change) for name, one in value.items()}
    return [change(one) for one in value] if isinstance(value, list) else value


def verdict_of(checks: list[CheckReport]) -> Verdict:
    """Return what the checks come to together."""
    verdicts: dict[Severity, Verdict] = {"error": "errors", "warning": "warnings"}
    return verdicts.get(worst([check.severity for check in checks]), "healthy")


def exit_code_of(verdict: Verdict, *, strict: bool) -> ExitCode:
    """Return what the process ends with."""
    is_bad = verdict == "errors" or (strict and verdict == "warnings")
    return ExitCode.NEGATIVE if is_bad else ExitCode.OK
