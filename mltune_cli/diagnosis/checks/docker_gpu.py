"""GPUs in containers: by CDI, or by NVIDIA's hook."""

import shutil
from collections.abc import Sequence

from mltune_cli.diagnosis.checks.docker import answering_engine
from mltune_cli.diagnosis.driver_facts import smi_facts
from mltune_cli.diagnosis.finding import Check, Finding, doubtful, in_order
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.imaging.faults import TOOLKIT
from mltune_cli.imaging.gpu import gpu_path

_HOOK = "nvidia-container-runtime-hook"


def look(subject: Subject) -> Sequence[Finding]:
    """Tell by which way a container would get this machine's GPUs."""
    smi = smi_facts()
    if smi is None or not smi.gpus:
        return [in_order("this machine shows no NVIDIA GPU that a container could get")]
    with answering_engine(subject) as engine:
        if engine is None:
            return [in_order("no Docker engine answers, so none gives out GPUs")]
        facts = engine.facts
        runtimes = engine.client.info().get("Runtimes") or {}
    if gpu_path(facts) == "cdi":
        devices = [name for name in facts.cdi_devices if name.startswith("nvidia.com/")]
        return [in_order(f"containers get GPUs by CDI ({', '.join(devices)})")]
    hook = shutil.which(_HOOK, path=subject.variables.get("PATH"))
    if "nvidia" in runtimes or (hook is not None and facts.is_local):
        return [in_order("containers get GPUs by NVIDIA's hook; `build-image --gpu` proves it")]
    return [
        doubtful(
            f"this machine has {smi.gpus[0]}, and Docker knows no way to give it to a container",
            "`mltune build-image --gpu` can build the image and not run it",
            TOOLKIT,
            command="sudo nvidia-ctk runtime configure --runtime=docker && "
            "sudo systemctl restart docker",
            scope="images",
        )
    ]


CHECK = Check("docker-gpu", "GPUs in containers", look)
