"""PyTorch: whether it can be imported, and whether its build is one for the recipe."""

import shlex
import sys
from collections.abc import Sequence

from mltune_cli.diagnosis.driver_facts import smi_facts
from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order, known
from mltune_cli.diagnosis.packages import torch_build
from mltune_cli.diagnosis.subject import Subject, written

_SLOW_IMPORT_SECONDS = 5.0


def look(subject: Subject) -> Sequence[Finding]:
    """Judge torch by what it said of itself."""
    facts = subject.torch
    if facts is None or facts.problem is not None:
        build = torch_build()
        seen = f"torch {build[0]}" if build is not None else "torch"
        return [
            broken(
                f"{seen} cannot be imported: {facts.problem if facts else 'it was not asked'}",
                "nothing can be trained without it",
                "install it anew; where a shared library is missing, the line above names it",
                command=f"{shlex.quote(sys.executable)} -m pip install --force-reinstall torch",
            )
        ]
    findings = []
    kind = f"CUDA {facts.cuda}" if facts.cuda else "CPU"
    if facts.hip:
        findings.append(
            known(
                f"torch {facts.version} is a ROCm build",
                "mltune's settings for equal bits are made for NVIDIA GPUs; on AMD they were not "
                "tried",
                "let `mltune repro-check` tell",
                command=f"mltune repro-check{subject.flags()}",
            )
        )
    elif facts.cuda is None and subject.recipe.model.device == "cuda":
        findings.append(
            broken(
                f"torch {facts.version} is a CPU build, and model.device is cuda",
                "the training will not start",
                "install a CUDA build of torch from the ordinary index; or, to train on the CPU, "
                f"{written('model.device=cpu')}",
                command=subject.trial("torch", "model.device=cpu"),
            )
        )
    elif facts.cuda is None and subject.wants_gpu and (smi := smi_facts()) and smi.gpus:
        findings.append(
            doubtful(
                f"torch {facts.version} is a CPU build, and this machine has {smi.gpus[0]}",
                "the training will run on the CPU without a word",
                "install a CUDA build of torch from the ordinary index",
                command=f"{shlex.quote(sys.executable)} -m pip install --force-reinstall torch",
            )
        )
    if facts.import_seconds > _SLOW_IMPORT_SECONDS:
        findings.append(
            known(
                f"importing torch took {facts.import_seconds:.1f} seconds",
                "every run of every process pays for it; a disk that is cold, slow or on a network "
                "is the usual reason",
                "run the doctor again; where that is as slow, move the environment to a local disk",
            )
        )
    return findings or [
        in_order(f"torch {facts.version}, {kind} build, kernels for {facts.instruction_set}")
    ]


CHECK = Check("torch", "PyTorch", look, needs_torch=True)
