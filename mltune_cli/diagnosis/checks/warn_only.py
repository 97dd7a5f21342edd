"""warn_only: strict determinism that only warns."""

import ast
from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order
from mltune_cli.diagnosis.script_settings import listed, passes_true, places
from mltune_cli.diagnosis.subject import Subject


def look(subject: Subject) -> Sequence[Finding]:
    """Look at the scripts of this folder."""
    found = places(subject.folder, ("warn_only",), _only_warns)
    if not found:
        return [in_order("no script of this folder asks for it; mltune's training is strict")]
    return [
        doubtful(
            f"a script of this folder lets nondeterministic operations pass: {listed(found)}",
            "an operation without a deterministic kernel runs on with a warning that is lost among "
            "others, and its bits change from run to run",
            "leave warn_only out: what is not deterministic then stops, and is known",
            scope="scripts",
        )
    ]


def _only_warns(node: ast.AST) -> bool:
    is_call = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
        "use_deterministic_algorithms"
    )
    return is_call and passes_true(node, "warn_only")


CHECK = Check("warn-only", "warn_only", look)
