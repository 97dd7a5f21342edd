"""NVIDIA's driver: whether it works, and whether it runs the CUDA that torch is built with."""

from collections.abc import Sequence
from dataclasses import dataclass

from mltune_cli.diagnosis.driver_facts import (
    DriverFacts,
    SmiFacts,
    driver_facts,
    smi_facts,
)
from mltune_cli.diagnosis.finding import Check, Finding, broken, in_order, judged
from mltune_cli.diagnosis.packages import torch_build
from mltune_cli.diagnosis.subject import Subject, written
from mltune_cli.errors import NoVerdictError
from mltune_cli.imaging.gpu import GpuDriver, require_cuda
from mltune_cli.witness.hardware import driver_version

_NO_DEVICE = 100
_WHY = "torch finds no GPU, and trains on the CPU or not at all"


@dataclass(frozen=True)
class _Failure:
    """Why the driver does not start, and what to do."""

    what: str
    remedy: str
    command: str | None = None


# By what cuInit returns. Source: CUDA driver API, enum CUresult.
_FAILURES = {
    2: _Failure("out of memory", "end what fills the GPU; nvidia-smi names it", "nvidia-smi"),
    34: _Failure(
        "the library is the stub that programs are linked with, not the driver",
        "take the folder with the stubs out of LD_LIBRARY_PATH",
        "unset LD_LIBRARY_PATH",
    ),
    46: _Failure(
        "the device is busy or unavailable: another process has it for itself",
        "end that process, or set the GPU's compute mode to default",
        "sudo nvidia-smi -c DEFAULT",
    ),
    101: _Failure(
        "CUDA_VISIBLE_DEVICES names a device that is not there",
        "name one that `nvidia-smi -L` lists",
        "unset CUDA_VISIBLE_DEVICES",
    ),
    802: _Failure(
        "the system is not ready: on a machine with NVSwitch the fabric manager does not run",
        "start the fabric manager of the driver's own version",
        "sudo systemctl restart nvidia-fabricmanager",
    ),
    803: _Failure(
        "driver and library are of two versions: the driver was updated and the old one still runs "
        "in the kernel, or a container brings a library of its own",
        "restart the machine; in a container, remove its CUDA compatibility libraries from "
        "LD_LIBRARY_PATH",
        "sudo reboot",
    ),
    804: _Failure(
        "this GPU does not allow the CUDA compatibility libraries that are on LD_LIBRARY_PATH",
        "take their folder (.../compat) out of LD_LIBRARY_PATH, and use an image for the driver's "
        "own CUDA",
        "unset LD_LIBRARY_PATH",
    ),
    999: _Failure(
        "an unknown error: the kernel module is in a bad state, often after a suspend",
        "load the module nvidia_uvm anew, or restart the machine",
        "sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm",
    ),
}


def look(subject: Subject) -> Sequence[Finding]:
    """Ask the driver, and hold it against torch's build."""
    facts, smi = driver_facts(subject.variables), smi_facts()
    is_error = subject.wants_gpu
    if facts.crash is not None:
        return [
            judged(
                is_error,
                f"NVIDIA's driver library {facts.crash}",
                _WHY,
                "look into the kernel's log for NVRM or Xid messages, and restart the machine",
                command="sudo dmesg | grep -iE 'nvrm|xid'",
            )
        ]
    if not facts.is_there:
        return [_without_library(subject, facts, smi)]
    if facts.status not in (0, None):
        return [_failed(subject, facts)]
    version = smi.driver if smi is not None else None
    version = version or driver_version()
    build = torch_build()
    if build is None or build[1] is None:
        return [in_order(f"NVIDIA driver{_named(version)} runs CUDA {_dotted(facts.cuda)}")]
    problem = cuda_problem(build[1], facts.cuda, version)
    if problem is None:
        return [
            in_order(
                f"NVIDIA driver{_named(version)}, CUDA up to {_dotted(facts.cuda)}, for torch "
                f"{build[0]} with CUDA {_dotted(build[1])}"
            )
        ]
    return [
        judged(
            is_error,
            f"torch {build[0]} is built for CUDA {_dotted(build[1])}, and the NVIDIA "
            f"driver{_named(version)} runs CUDA up to {_dotted(facts.cuda)}",
            problem,
            "update the driver, or install a build of torch for an older CUDA; or, to train on the "
            f"CPU, {written('model.device=cpu')}",
            command=subject.trial("driver", "model.device=cpu"),
        )
    ]


def cuda_problem(needed: tuple[int, int], runs: tuple[int, int], version: str | None) -> str | None:
    """Say why a driver does not run a build; None where it does.

    Newer libraries run on older drivers inside a major version of CUDA, from a branch on. Source:
    NVIDIA, "CUDA Compatibility", minor version compatibility.

    Args:
        needed: the CUDA of the build.
        runs: the newest CUDA that the driver says it runs.
        version: of the driver; None where it is not known.
    """
    if runs >= needed:
        return None
    if version is None:
        if runs[0] == needed[0]:
            return None
    else:
        try:
            # The rules for images are those for environments.
            require_cuda([f"CUDA_VERSION={_dotted(needed)}"], GpuDriver(version), "torch")
        except NoVerdictError:
            pass
        else:
            return None
    return f"CUDA {needed[0]} needs a newer driver; {_WHY}"


def _without_library(subject: Subject, facts: DriverFacts, smi: SmiFacts | None) -> Finding:
    module = driver_version()
    has_gpu = module is not None or (smi is not None and bool(smi.gpus))
    if has_gpu:
        return judged(
            subject.wants_gpu,
            f"the NVIDIA driver{_named(module or (smi.driver if smi else None))} is there, and "
            f"libcuda.so.1 cannot be loaded: {facts.library}",
            _WHY,
            "in a container, ask for the capability compute "
            "(NVIDIA_DRIVER_CAPABILITIES=compute,utility); elsewhere, install the driver's own "
            "libraries",
            command="ldconfig -p | grep libcuda",
        )
    if subject.recipe.model.device == "cuda":
        return broken(
            "there is no NVIDIA driver, and model.device is cuda",
            "the training will not start",
            f"install the driver; or, to train on the CPU, {written('model.device=cpu')}",
            command=subject.trial("driver", "model.device=cpu"),
        )
    return in_order("no NVIDIA driver, and none is needed: training runs on the CPU")


def _failed(subject: Subject, facts: DriverFacts) -> Finding:
    if facts.status == _NO_DEVICE:
        hidden = subject.variables.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None:
            seen = f"CUDA_VISIBLE_DEVICES={hidden} hides every GPU"
            remedy, command = "unset it, or name a GPU", "unset CUDA_VISIBLE_DEVICES"
        else:
            seen = "the NVIDIA driver finds no GPU"
            remedy = "look for the GPU on the bus, and in the kernel's log"
            command = "lspci | grep -i nvidia"
    else:
        unknown = _Failure("an error of its own", "restart the machine, or install it anew")
        failure = _FAILURES.get(facts.status or 0, unknown)
        seen = f"the NVIDIA driver does not start (cuInit returned {facts.status}): {failure.what}"
        return judged(subject.wants_gpu, seen, _WHY, failure.remedy, command=failure.command)
    return judged(subject.wants_gpu, seen, _WHY, remedy, command=command)


def _named(version: str | None) -> str:
    return f" {version}" if version else ""


def _dotted(cuda: tuple[int, int]) -> str:
    return f"{cuda[0]}.{cuda[1]}"


CHECK = Check("driver", "NVIDIA driver against torch", look)
