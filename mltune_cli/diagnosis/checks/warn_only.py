"""warn_only: strict determinism that only warns."""

import ast
from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order
from mltune_cli.diagnosis.script_settings import listed, passes_true, places
from mltune_cli.diagnosis.subject import Subject


def look(subject: Subject) -> Sequence[Finding]:
    """Look at the scripts of this folder."""
    found = places(subject.folder, ("warn_only", "deterministic_debug_mode"), _only_warns)
    if not found:
        return [in_order("no script of this folder asks for it; mltune's training is strict")]
    return [
        doubtful(
            f"a script of this folder lets nondeterministic operations pass: {listed(found)}",
            "an operation without a deterministic kernel runs on with a warning that is lost among "
            "others, and its bits change from run to run",
            "ask for errors (no warn_only, and `error` as the debug mode): what is not "
            "deterministic then stops, and is known",
            scope="scripts",
        )
    ]


def _only_warns(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    if called.endswith("set_deterministic_debug_mode"):
        values = [*node.args, *(keyword.value for keyword in node.keywords)]
        # Source: torch.set_deterministic_debug_mode; 1 is "warn".
        return any(isinstance(one, ast.Constant) and one.value in ("warn", 1) for one in values)
    return called.endswith("use_deterministic_algorithms") and passes_true(node, "warn_only")


CHECK = Check("warn-only", "warn_only", look)
