"""cuBLAS's workspace: without a fixed one, equal matrix products may have other bits."""

from collections.abc import Sequence

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.packages import torch_build
from mltune_cli.diagnosis.subject import Subject

# The two values that torch's strict determinism accepts.
_DETERMINISTIC = (":4096:8", ":16:8")
_NAME = "CUBLAS_WORKSPACE_CONFIG"


def look(subject: Subject) -> Sequence[Finding]:
    """Tell what a script would inherit; mltune's own training is given a good value."""
    value = subject.variables.get(_NAME)
    if value in _DETERMINISTIC:
        return [in_order(f"{_NAME}={value} for your own scripts; mltune sets :4096:8")]
    remedy = "set it before the process starts; once CUDA runs it is too late"
    if value is not None:
        return [
            doubtful(
                f"{_NAME}={value}; mltune sets :4096:8 for its own training",
                "torch takes only :4096:8 and :16:8 for deterministic; in your own scripts matrix "
                "products may differ, or strict determinism stops them",
                remedy,
                command=f"export {_NAME}=:4096:8",
                scope="scripts",
            )
        ]
    build = torch_build()
    if build is None or build[1] is None:
        return [in_order("not needed: torch is not built for CUDA")]
    return [
        known(
            f"{_NAME} is not set; mltune sets :4096:8 for its own training",
            "in your own scripts matrix products on a GPU may differ between runs, and strict "
            "determinism stops them",
            remedy,
            command=f"export {_NAME}=:4096:8",
            scope="scripts",
        )
    ]


CHECK = Check("cublas-workspace", "cuBLAS workspace", look)
