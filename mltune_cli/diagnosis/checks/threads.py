"""CPU threads: sums part between thread counts."""

from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.machine import usable_cores
from mltune_cli.diagnosis.subject import Subject, written

_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def look(subject: Subject) -> Sequence[Finding]:
    """Compare the recipe's threads with the cores; tell what a script would inherit."""
    cores, threads = usable_cores(), subject.recipe.reproducibility.threads
    findings = []
    if threads > cores:
        setting = f"reproducibility.threads={cores}"
        findings.append(
            doubtful(
                f"reproducibility.threads is {threads}, and this process may use {cores} cores",
                "the threads wait for each other, and training is slower than with fewer",
                f"{written(setting)}, which makes another recipe; or give the process more cores",
                command=subject.trial("threads", setting),
            )
        )
    given = {name: subject.variables[name] for name in _VARIABLES if name in subject.variables}
    wrong = [name for name, value in given.items() if not _is_count(value)]
    if wrong:
        findings.append(
            doubtful(
                f"{wrong[0]}={given[wrong[0]]} is no number of threads",
                "libraries fall back to the number of cores, and your own scripts give other bits "
                "on another machine",
                "set it to a number",
                command=f"export {wrong[0]}=1",
                scope="scripts",
            )
        )
    elif "OMP_NUM_THREADS" not in given:
        findings.append(
            known(
                f"OMP_NUM_THREADS is not set; mltune sets {threads} for its own training",
                f"your own scripts take the number of cores, {cores} here; sums part between "
                "thread counts, so another machine gives other bits",
                "fix the number for your own scripts",
                command="export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1",
                scope="scripts",
            )
        )
    shown = ", ".join(f"{name}={value}" for name, value in given.items())
    return findings or [in_order(f"{threads} in the recipe, {cores} cores; for scripts {shown}")]


def _is_count(value: str) -> bool:
    # OpenMP takes one number for each level of nesting.
    return all(part.strip().isdecimal() and int(part) > 0 for part in value.split(","))


CHECK = Check("threads", "CPU threads", look)
