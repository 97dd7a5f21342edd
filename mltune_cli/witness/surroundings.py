"""What a process runs on that may decide bits: packages, processor, accelerator, variables."""

import contextlib
import os
import platform
from importlib import metadata

import torch

from mltune_cli.witness.hardware import driver_version, processor

_PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "jinja2", "numpy", "nvidia-cublas",
    "nvidia-cublas-cu12", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "nvidia-nccl-cu12",
    "nvidia-nccl-cu13", "peft", "pyarrow", "safetensors", "tokenizers", "torch", "transformers",
    "triton",
)  # fmt: skip
# Packages that bring training loops of their own.
_TRAINERS = (
    "deepspeed", "flash-attn", "liger-kernel", "lightning", "pytorch-lightning", "torchao",
    "torchvision", "trl", "unsloth",
)  # fmt: skip
# Each chooses a kernel, an algorithm or an order, on its own.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NCCL_ALGO", "NCCL_PROTO", "NVIDIA_TF32_OVERRIDE",
    "ONEDNN_MAX_CPU_ISA", "PYTHONHASHSEED", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


def installed_packages(names: tuple[str, ...] = _PACKAGES) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def gpu_model(device: torch.device | None = None) -> str:
    """Return the model of a CUDA device and its compute capability."""
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name} (compute {properties.major}.{properties.minor})"


def surroundings() -> dict[str, str]:
    """Return what two processes must share for equal bits, besides script and data.

    What the script itself sets, such as deterministic algorithms, is not among it.
    """
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    facts = {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "processor": processor(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
    }
    if cuda:
        facts |= {"gpu": gpu_model(), "driver": driver_version() or "unknown"}
    packages = installed_packages(_PACKAGES + _TRAINERS)
    facts |= {f"package {name}": version for name, version in sorted(packages.items())}
    return facts | {name: os.environ[name] for name in _VARIABLES if name in os.environ}
