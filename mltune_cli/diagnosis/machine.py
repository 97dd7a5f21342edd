"""The machine as a bug report tells of it, and how much memory it has to give."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from mltune_cli import __version__
from mltune_cli.diagnosis.packages import installed_packages, installed_version, torch_build
from mltune_cli.diagnosis.redaction import is_secret_name
from mltune_cli.diagnosis.report import MachineReport
from mltune_cli.diagnosis.subject import Subject
from mltune_cli.diagnosis.torch_facts import TorchFacts
from mltune_cli.witness.hardware import driver_version, processor

_PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "deepspeed", "docker", "flash-attn",
    "huggingface-hub", "jinja2", "liger-kernel", "numpy", "peft", "pip", "pyarrow", "pydantic",
    "rich", "safetensors", "tokenizers", "torch", "torchao", "transformers", "triton", "trl",
    "typer", "unsloth",
)  # fmt: skip
# The beginnings of the variables that a training's bits or its start may hang on.
VARIABLES = (
    "ATEN_", "CUBLAS", "CUDA_", "CUDNN_", "DNNL_", "FLASH_ATTENTION_", "GOMP_", "HF_DATASETS_",
    "HF_HOME", "HF_HUB_", "KMP_", "LANG", "LC_", "LD_", "MKL_", "MLTUNE_", "NCCL_", "NVIDIA_",
    "OMP_", "ONEDNN_", "OPENBLAS_", "PYTHON", "PYTORCH_", "TOKENIZERS_", "TORCH", "TRANSFORMERS_",
    "TRITON_", "TZ", "VIRTUAL_ENV",
)  # fmt: skip
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_CGROUP_USES = (
    Path("/sys/fs/cgroup/memory.current"),
    Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def machine_report(subject: Subject, torch: TorchFacts | None) -> MachineReport:
    """Gather the facts.

    Args:
        subject: its environment is shown as far as it decides anything.
        torch: what torch said; None where it was not asked.
    """
    torch = torch if torch is not None and torch.problem is None else None
    build = torch_build()
    versions = {name: installed_version(name) for name in (*_PACKAGES, *_cuda_packages())}
    return MachineReport(
        mltune=__version__,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        libc=" ".join(platform.libc_ver()).strip() or "unknown",
        processor=processor(),
        cores=usable_cores(),
        memory_bytes=_meminfo().get("MemTotal"),
        is_container=is_container(),
        packages={name: str(v) for name, v in sorted(versions.items()) if v is not None},
        torch=build[0] if build else None,
        cuda=".".join(map(str, build[1])) if build and build[1] else None,
        instruction_set=torch.instruction_set if torch else None,
        driver=driver_version(),
        gpus=[
            f"{gpu.name} (compute {gpu.capability[0]}.{gpu.capability[1]}, "
            f"{gpu.total_bytes / 2**30:.0f} GiB)"
            for gpu in (torch.gpus if torch else ())
        ],
        settings=torch.settings if torch else {},
        variables=deciding_variables(subject.variables),
    )


def deciding_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may decide bits, sorted, less those with a secret."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(VARIABLES) and not is_secret_name(name)
    }


def _cuda_packages() -> list[str]:
    return [name for name in installed_packages() if name.startswith("nvidia-")]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_container() -> bool:
    """Tell whether this looks like the inside of a container."""
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


def available_memory_bytes() -> int | None:
    """Return the memory that a new process can get; None where the system does not tell.

    In a container its limit counts, not the machine's memory.
    """
    free = _meminfo().get("MemAvailable")
    for limit_file, use_file in zip(_CGROUP_LIMITS, _CGROUP_USES, strict=True):
        limit, used = _number(limit_file), _number(use_file)
        if limit is not None and used is not None and limit < 1 << 60:
            free = min(limit - used, free if free is not None else limit)
    return free


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # `max` is no limit


def _meminfo() -> dict[str, int]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in lines)
    return {name: int(rest.split()[0]) * 1024 for name, rest in pairs if rest.split()}
