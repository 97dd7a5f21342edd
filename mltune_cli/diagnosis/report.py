"""The result of `doctor`, as `--json` prints it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from mltune_cli.diagnosis.finding import Finding, Severity, worst
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


def verdict_of(checks: list[CheckReport]) -> Verdict:
    """Return what the checks come to together."""
    verdicts: dict[Severity, Verdict] = {"error": "errors", "warning": "warnings"}
    return verdicts.get(worst([check.severity for check in checks]), "healthy")


def exit_code_of(verdict: Verdict, *, strict: bool) -> ExitCode:
    """Return what the process ends with."""
    is_bad = verdict == "errors" or (strict and verdict == "warnings")
    return ExitCode.NEGATIVE if is_bad else ExitCode.OK
