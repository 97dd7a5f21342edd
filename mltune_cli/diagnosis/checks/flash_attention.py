"""The package flash-attn: its backward pass adds in any order unless it is told not to."""

import shlex
import sys
from collections.abc import Sequence

from packaging.version import Version

from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.packages import installed_version
from mltune_cli.diagnosis.subject import Subject

_FIRST_DETERMINISTIC = Version("2.4.1")
_VARIABLE = "FLASH_ATTENTION_DETERMINISTIC"
_OWN = "mltune's own training does not use it"


def look(subject: Subject) -> Sequence[Finding]:
    """Judge the installed version, and the switch that transformers looks at."""
    version = installed_version("flash-attn")
    if version is None:
        return [in_order("flash-attn is not installed; mltune does not need it")]
    if version < _FIRST_DETERMINISTIC:
        return [
            doubtful(
                f"flash-attn {version}; {_OWN}",
                f"before {_FIRST_DETERMINISTIC} its backward pass cannot be made deterministic, so "
                "gradients of your own scripts differ from run to run",
                f"install {_FIRST_DETERMINISTIC} or newer, or use attention `sdpa`",
                command=f"{shlex.quote(sys.executable)} -m pip install "
                f"'flash-attn>={_FIRST_DETERMINISTIC}' --no-build-isolation",
                scope="scripts",
            )
        ]
    if subject.variables.get(_VARIABLE) == "1":
        return [in_order(f"flash-attn {version}, {_VARIABLE}=1")]
    return [
        known(
            f"flash-attn {version}, and {_VARIABLE} is not 1; {_OWN}",
            "its backward pass adds in any order, so gradients of your own scripts differ from run "
            "to run",
            "set it; transformers then asks for the deterministic one",
            command=f"export {_VARIABLE}=1",
            scope="scripts",
        )
    ]


CHECK = Check("flash-attention", "flash-attn", look)
