"""Overrides of the CPU's kernels: instruction sets and number formats chosen from outside."""

from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.subject import Subject

_PREFIXES = ("ATEN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "ONEDNN_", "OPENBLAS_", "TORCH_BLAS_")
# These change how much is said or how many threads there are, which another check looks at.
_HARMLESS = ("_NUM_THREADS", "_VERBOSE", "_WARNINGS", "_VERSION", "_SETTINGS", "MKL_DYNAMIC")


def look(subject: Subject) -> Sequence[Finding]:
    """Tell what a script would inherit, and what mltune's own training inherits as well."""
    findings = []
    taken_out = subject.removed_variables()
    overrides = [
        name
        for name in sorted(taken_out)
        if name.startswith(_PREFIXES) and not name.endswith(_HARMLESS)
    ]
    if overrides:
        shown = ", ".join(f"{name}={taken_out[name]}" for name in overrides)
        findings.append(
            doubtful(
                f"{shown}; mltune takes {'it' if len(overrides) == 1 else 'them'} out for its own "
                "training",
                "your own scripts compute with other kernels than on a machine without that, which "
                "gives other bits",
                "take them out of the environment, or set the same wherever runs are compared",
                command=f"unset {' '.join(overrides)}",
                scope="scripts",
            )
        )
    if preloaded := subject.variables.get("LD_PRELOAD", "").strip():
        findings.append(
            known(
                f"LD_PRELOAD={preloaded}",
                "these libraries come before all others, in mltune's own training as well; another "
                "OpenMP or BLAS gives other bits",
                "take it out, or set the same wherever runs are compared",
                command="unset LD_PRELOAD",
            )
        )
    return findings or [in_order("no variable overrides the CPU's kernels")]


CHECK = Check("cpu-kernels", "MKL, oneDNN and ATen overrides", look)
