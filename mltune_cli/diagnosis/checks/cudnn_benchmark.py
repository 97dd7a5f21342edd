"""cudnn.benchmark: kernels picked by a stopwatch."""

import ast
from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order
from mltune_cli.diagnosis.script_settings import assigns_true, listed, passes_true, places
from mltune_cli.diagnosis.subject import Subject


def look(subject: Subject) -> Sequence[Finding]:
    """Look at the scripts of this folder."""
    found = places(subject.folder, ("benchmark", "cudnn"), _switches_on)
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
    if not isinstance(node, ast.Call):
        return assigns_true(node, "cudnn.benchmark")
    called = f".{ast.unparse(node.func)}"
    # Lightning's Trainer takes it as an argument, and cuDNN's context of flags.
    if not called.endswith(("Trainer", ".flags", ".set_flags")):
        return False
    return passes_true(node, "benchmark") or (
        # `flags(enabled, benchmark, ...)`, also without names.
        called.endswith("flags")
        and len(node.args) > 1
        and isinstance(node.args[1], ast.Constant)
        and node.args[1].value is True
    )


CHECK = Check("cudnn-benchmark", "cudnn.benchmark", look)
