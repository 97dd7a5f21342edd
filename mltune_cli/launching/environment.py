"""The environment that a worker starts in: everything that must be fixed before Python runs."""

import os
from collections.abc import Mapping

from mltune_cli.bundled import BUNDLED_PREFIX
from mltune_cli.recipe.schema import Recipe

# Inherited settings that change bits behind the recipe's back.
_REMOVED = (
    "ATEN_CPU_CAPABILITY", "CUBLASLT_WORKSPACE_SIZE", "DNNL_MAX_CPU_ISA", "GOMP_CPU_AFFINITY",
    "KMP_AFFINITY", "MKL_CBWR", "MKL_DYNAMIC", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE",
    "OMP_DYNAMIC", "OMP_SCHEDULE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)  # fmt: skip


def worker_environment(recipe: Recipe, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker of ours.

    Args:
        recipe: decides threads, and whether the hub is needed at all.
        inherited: the environment of the command.
    """
    threads = str(recipe.reproducibility.threads)
    environment = {name: value for name, value in inherited.items() if name not in _REMOVED}
    environment |= {
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": environment.get("TRANSFORMERS_VERBOSITY", "error"),
    }
    if not _needs_hub(recipe):
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return environment


def _needs_hub(recipe: Recipe) -> bool:
    names = (recipe.model.name_or_path, recipe.data.train, recipe.data.validation)
    return any(
        # Unlike Path.exists, os.path.exists is False for a name that no file can have.
        name is not None and not name.startswith(BUNDLED_PREFIX) and not os.path.exists(name)  # noqa: PTH110
        for name in names
    )
