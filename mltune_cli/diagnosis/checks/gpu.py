"""The GPUs: whether torch sees them, has kernels for them, and whether they are of one kind."""

import re
from collections.abc import Iterator, Sequence

from mltune_cli.diagnosis.driver_facts import smi_facts
from mltune_cli.diagnosis.finding import (
    Check,
    Finding,
    broken,
    doubtful,
    in_order,
    judged,
    known,
)
from mltune_cli.diagnosis.subject import Subject, written
from mltune_cli.diagnosis.torch_facts import GpuFacts, TorchFacts

# From Ampere on.
_BFLOAT16_CAPABILITY = (8, 0)
# From Ada on.
_FLOAT8_CAPABILITY = (8, 9)


def look(subject: Subject) -> Sequence[Finding]:
    """Judge the GPUs that torch sees, and those that it does not see."""
    facts = subject.torch
    if facts is None or facts.problem is not None:
        return [known("torch could not be asked")]
    if not facts.gpus:
        return [_none_seen(subject, facts)]
    findings = [
        *_without_kernels(subject, facts),
        *_of_two_kinds(facts),
        *_without_bfloat16(subject),
        *_without_float8(subject, facts),
    ]
    names = sorted({f"{gpu.name} (compute {_dotted(gpu.capability)})" for gpu in facts.gpus})
    count = f"{len(facts.gpus)} GPU{'s' if len(facts.gpus) > 1 else ''}"
    return findings or [in_order(f"{count}: {', '.join(names)}")]


def _none_seen(subject: Subject, facts: TorchFacts) -> Finding:
    smi = smi_facts() if facts.cuda else None
    on_cpu = f"to train on the CPU, {written('model.device=cpu')}"
    if smi is not None and smi.gpus:
        said = f": {facts.gpu_problem}" if facts.gpu_problem else ""
        return judged(
            subject.wants_gpu,
            f"this machine has {smi.gpus[0]}, and torch sees no GPU{said}",
            "training runs on the CPU, or not at all",
            "mend what the checks driver and torch found; see that CUDA_VISIBLE_DEVICES hides "
            f"nothing; or, {on_cpu}",
            command="unset CUDA_VISIBLE_DEVICES"
            if "CUDA_VISIBLE_DEVICES" in subject.variables
            else None,
        )
    if smi is not None and smi.problem is not None:
        return judged(
            subject.wants_gpu,
            f"nvidia-smi is there and shows no GPU: {smi.problem}",
            "training runs on the CPU, or not at all",
            f"restart the machine; where that does not help, install the driver anew; or, {on_cpu}",
            command="nvidia-smi",
        )
    if subject.recipe.model.device == "cuda":
        return broken(
            "torch sees no GPU, and model.device is cuda",
            "the training will not start",
            f"train on a machine with an NVIDIA GPU; or, {on_cpu}",
            command=subject.trial("gpu", "model.device=cpu"),
        )
    return in_order("no GPU, and none is needed: training runs on the CPU")


def _without_kernels(subject: Subject, facts: TorchFacts) -> Iterator[Finding]:
    for gpu in {gpu.name: gpu for gpu in facts.gpus}.values():
        if has_kernels(gpu.capability, facts.architectures):
            continue
        yield judged(
            subject.wants_gpu,
            f"torch {facts.version} has no kernels for {gpu.name} (compute "
            f"{_dotted(gpu.capability)}); it has {' '.join(facts.architectures)}",
            "the first operation on the GPU fails: no kernel image is available",
            "install a build of torch that names this architecture: a newer one for a new GPU, one "
            "for an older CUDA for an old GPU; or, to train on the CPU, "
            f"{written('model.device=cpu')}",
            command=subject.trial("gpu", "model.device=cpu"),
        )


def has_kernels(capability: tuple[int, int], architectures: Sequence[str]) -> bool:
    """Tell whether a build runs on a GPU.

    Machine code (`sm_90`) runs inside its major version from its minor version on, that of one
    architecture alone (`sm_90a`) on that one; intermediate code (`compute_90`) on all newer ones.
    Source: NVIDIA, "CUDA C++ Programming Guide", binary and PTX compatibility.

    Args:
        capability: of the GPU.
        architectures: of the build; where there are none nothing is known, and nothing is said.
    """
    if not architectures:
        return True
    for architecture in architectures:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if found is None:
            continue
        own = int(found[2]), int(found[3])
        if found[4] == "a":
            runs = own == capability
        elif found[1] == "sm" or found[4]:
            runs = own[0] == capability[0] and own[1] <= capability[1]
        else:
            runs = own <= capability
        if runs:
            return True
    return False


def _of_two_kinds(facts: TorchFacts) -> Iterator[Finding]:
    kinds = sorted({_kind(gpu) for gpu in facts.gpus})
    if len(kinds) > 1:
        yield doubtful(
            f"GPUs of several kinds: {', '.join(kinds)}",
            "one kind gives other bits than another, so runs on different devices differ",
            "make only one kind visible, such as the first GPU",
            command="export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=0",
        )


def _kind(gpu: GpuFacts) -> str:
    return f"{gpu.name} {gpu.total_bytes / 2**30:.0f} GiB"


def _without_bfloat16(subject: Subject) -> Iterator[Finding]:
    facts = subject.torch
    if facts is None or not subject.wants_gpu or subject.recipe.model.dtype == "float32":
        return
    old = [gpu for gpu in facts.gpus if gpu.capability < _BFLOAT16_CAPABILITY]
    if old:
        yield doubtful(
            f"{old[0].name} (compute {_dotted(old[0].capability)}) has no bfloat16 arithmetic",
            "it is emulated, many times slower, and some kernels refuse it",
            f"compute in float32: {written('model.dtype=float32')}",
            command=subject.trial("gpu", "model.dtype=float32"),
        )


def _without_float8(subject: Subject, facts: TorchFacts) -> Iterator[Finding]:
    model = subject.recipe.model
    old = [gpu for gpu in facts.gpus if gpu.capability < _FLOAT8_CAPABILITY]
    if old and model.base_precision == "fp8" and model.device != "cpu":
        yield broken(
            f"{old[0].name} (compute {_dotted(old[0].capability)}) does not multiply in 8 bits, "
            "and model.base_precision is fp8",
            "the training will not start: that came with compute 8.9",
            "hold the base in the format that it computes in: "
            f"{written('model.base_precision=dtype')}",
            command=subject.trial("gpu", "model.base_precision=dtype"),
        )


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


CHECK = Check("gpu", "GPUs", look, needs_torch=True)
