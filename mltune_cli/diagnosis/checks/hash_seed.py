"""Python's hash seed, which decides the order of sets."""

from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, in_order, known
from mltune_cli.diagnosis.subject import Subject


def look(subject: Subject) -> Sequence[Finding]:
    """Tell what a script would inherit."""
    value = subject.variables.get("PYTHONHASHSEED", "")
    if value.isdecimal():
        return [in_order(f"PYTHONHASHSEED={value} for your own scripts; mltune sets 0")]
    return [
        known(
            "PYTHONHASHSEED is " + (value or "not set") + "; mltune sets 0 for its own training",
            "in your own scripts the order of sets of text changes from run to run",
            "set it before Python starts; inside the script it is too late",
            command="export PYTHONHASHSEED=0",
            scope="scripts",
        )
    ]


CHECK = Check("hash-seed", "hash seed", look)
