"""TF32: matrix products of float32 with ten bits, on the GPUs that have it."""

import ast
from collections.abc import Callable, Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order
from mltune_cli.diagnosis.script_settings import (
    assigns,
    assigns_true,
    listed,
    passes_true,
    places,
)
from mltune_cli.diagnosis.subject import Subject

_VARIABLE = "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
_WORDS = ("tf32", "set_float32_matmul_precision")
_WHY = "GPUs with TF32 give other bits than those without, and less exact ones"


def look(subject: Subject) -> Sequence[Finding]:
    """Look at the variable that switches it on, and at the scripts of this folder."""
    findings = []
    value = subject.variables.get(_VARIABLE, "0")
    if value not in ("", "0"):
        findings.append(
            doubtful(
                f"{_VARIABLE}={value}; mltune takes it out for its own training",
                f"in your own scripts float32 products are computed in TF32: {_WHY}",
                "take it out of the environment",
                command=f"unset {_VARIABLE}",
                scope="scripts",
            )
        )
    found = places(subject.folder, _WORDS, _switches_on)
    if found:
        findings.append(
            doubtful(
                f"a script of this folder switches TF32 on: {listed(found)}",
                f"{_WHY}; mltune's own training has it off",
                "switch it off in the script, or say in its results which GPU they hold for",
                scope="scripts",
            )
        )
    forced = (
        " (NVIDIA_TF32_OVERRIDE=0)" if subject.variables.get("NVIDIA_TF32_OVERRIDE") == "0" else ""
    )
    return findings or [in_order(f"nothing switches TF32 on{forced}")]


def _switches_on(node: ast.AST) -> bool:
    if assigns_true(node, "allow_tf32") or passes_true(node, "tf32"):
        return True
    if assigns(node, "fp32_precision", _is_text("tf32")):
        return True
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith("set_float32_matmul_precision")
        and bool(node.args)
        and _is_text("high", "medium")(node.args[0])
    )


def _is_text(*wanted: str) -> Callable[[ast.expr], bool]:
    return lambda value: isinstance(value, ast.Constant) and value.value in wanted


CHECK = Check("tf32", "TF32", look)
