"""cudnn.benchmark: kernels picked by a stopwatch."""

import ast
from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order
from mltune_cli.diagnosis.script_settings import assigns_true, listed, passes_true, places
from mltune_cli.diagnosis.subject import Subject


def look(subject: Subject) -> Sequence[Finding]:
    """Look at the scripts of this folder."""
    found = places(subject.folder, ("benchmark",), _switches_on)
    if not found:
        return [in_order("no script of this folder switches it on; mltune's training has it off")]
    return [
        doubtful(
            f"a script of this folder lets cuDNN pick kernels by timing: {listed(found)}",
            "each process may pick another kernel, and another kernel gives other bits; mltune's "
            "own training has it off",
            "set it to False in the script",
            scope="scripts",
        )
    ]


def _switches_on(node: ast.AST) -> bool:
    # Lightning's Trainer takes it as an argument.
    is_trainer = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Trainer")
    return assigns_true(node, "cudnn.benchmark") or (is_trainer and passes_true(node, "benchmark"))


CHECK = Check("cudnn-benchmark", "cudnn.benchmark", look)
