"""What the worker runs on, for the manifest: packages, processor, accelerator, settings."""

import os
import platform
import re
import resource
import sys

import torch

from mltune_cli import __version__
from mltune_cli.manifest import EnvironmentFacts
from mltune_cli.training.determinism import settings
from mltune_cli.witness.hardware import driver_version, processor
from mltune_cli.witness.surroundings import gpu_model, installed_packages

_FLAG_PREFIXES = (
    "ATEN_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "MKL_", "NCCL_", "NVIDIA_TF32", "OMP_",
    "ONEDNN_", "OPENBLAS_", "PYTHONHASHSEED", "PYTORCH_", "TORCH_", "TORCHINDUCTOR_", "TRITON_",
)  # fmt: skip
_SECRET = re.compile("TOKEN|SECRET|KEY|PASSW|CREDENTIAL")


def environment_facts(device: torch.device) -> EnvironmentFacts:
    """Read the facts that decide whether two runs may be compared bit for bit."""
    gpu = driver = None
    if device.type == "cuda":
        gpu, driver = gpu_model(device), driver_version()
    return EnvironmentFacts(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        packages={"mltune": __version__, **installed_packages()},
        torch_build=torch.__version__,
        cuda=torch.version.cuda,
        processor=processor(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        gpu=gpu,
        driver=driver,
        settings=settings(),
        variables={
            name: value for name, value in sorted(os.environ.items())
            if name.startswith(_FLAG_PREFIXES) and not _SECRET.search(name)
        },
    )  # fmt: skip


def peak_memory_bytes() -> int:
    """Return the most memory this process has held so far: the GPU's, or on a CPU its own."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The one system that counts in bytes instead is macOS.
    return kibibytes if sys.platform == "darwin" else kibibytes * 1024


def image_digest() -> str | None:
    """Return the digest of the container image the run is in, where the starter named it."""
    return os.environ.get("MLTUNE_IMAGE_DIGEST") or None
