"""NCCL: which algorithm sums over GPUs."""

from collections.abc import Sequence
from pathlib import Path

from mltune_cli.diagnosis.driver_facts import smi_facts
from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order, known
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.paths import is_file

_DECIDING = ("NCCL_ALGO", "NCCL_PROTO")
_EXPORT = "export NCCL_ALGO=Ring NCCL_PROTO=Simple"


def look(subject: Subject) -> Sequence[Finding]:
    """Tell what a script on several GPUs would inherit."""
    given = {name: subject.variables[name] for name in _DECIDING if subject.variables.get(name)}
    if len(given) == len(_DECIDING):
        return [in_order(", ".join(f"{name}={value}" for name, value in given.items()))]
    files = [path for path in _settings_files(subject) if is_file(path)]
    if files:
        return [
            known(
                f"NCCL reads settings from {files[0]}",
                "they decide with which algorithm it sums over GPUs, and stand in no environment "
                "that is compared",
                "set what it says in the environment instead",
                command=_EXPORT,
                scope="scripts",
            )
        ]
    gpus = _gpu_count(subject)
    if gpus < 2:
        return [in_order("one GPU or none: nothing is summed over GPUs")]
    why = (
        "NCCL chooses algorithm and protocol by the machine and by the size of what it sums; "
        "another choice adds in another order"
    )
    if subject.recipe.adapter.method == "full" and subject.recipe.model.sharding == "fsdp":
        return [
            doubtful(
                f"{gpus} GPUs, and the recipe lets NCCL sum gradients (full, sharded)",
                f"{why}; mltune makes no claim for another number of processes then",
                "fix the algorithm",
                command=_EXPORT,
            )
        ]
    return [
        known(
            f"{gpus} GPUs, and {' and '.join(n for n in _DECIDING if n not in given)} not set; "
            "mltune sums along its own tree and does not ask NCCL to",
            f"in your own scripts {why}",
            "fix both for your own scripts",
            command=_EXPORT,
            scope="scripts",
        )
    ]


def _settings_files(subject: Subject) -> list[Path]:
    named = subject.variables.get("NCCL_CONF_FILE")
    own = Path(named) if named else Path(subject.variables.get("HOME") or "~") / ".nccl.conf"
    return [own.expanduser(), Path("/etc/nccl.conf")]


def _gpu_count(subject: Subject) -> int:
    visible = subject.variables.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return sum(name.strip() not in ("", "-1") for name in visible.split(","))
    smi = smi_facts()
    return len(smi.gpus) if smi is not None else 0


CHECK = Check("nccl", "NCCL's algorithm", look)
