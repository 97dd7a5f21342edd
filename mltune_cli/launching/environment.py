"""The environment that a worker starts in: everything that must be fixed before Python runs."""

import os
from collections.abc import Mapping

from mltune_cli.bundled import BUNDLED_PREFIX
from mltune_cli.recipe.schema import Recipe

# Families of inherited settings that change bits behind the recipe's back: instruction sets,
# thread limits, kernels picked by timing, TF32. None of them is needed to reach a GPU or a hub.
_REMOVED_PREFIXES = (
    "ATEN_", "CUBLAS", "CUDNN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "NVIDIA_TF32", "OMP_",
    "ONEDNN_", "OPENBLAS_", "PYTORCH_TUNABLEOP_", "TORCHDYNAMO_", "TORCHINDUCTOR_",
    "TORCH_ALLOW_TF32", "TORCH_BLAS_", "TORCH_COMPILE_", "TORCH_CUDNN_", "TRITON_",
)  # fmt: skip
# Where compilers find their parts, and keep what they made.
_KEPT_SUFFIXES = ("_DIR", "_HOME", "_PATH")


def worker_environment(recipe: Recipe, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker of ours.

    Args:
        recipe: decides threads, and whether the hub is needed at all.
        inherited: the environment of the command.
    """
    threads = str(recipe.reproducibility.threads)
    environment = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(_REMOVED_PREFIXES) or name.endswith(_KEPT_SUFFIXES)
    }
    environment |= {
        "PYTHONHASHSEED": "0",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TORCHINDUCTOR_DETERMINISTIC": "1",
        "TORCH_COMPILE_CACHE_KEY_TAG": _compiled_for(recipe),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": environment.get("TRANSFORMERS_VERBOSITY", "error"),
    }
    if not _needs_hub(recipe):
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return environment


def _compiled_for(recipe: Recipe) -> str:
    """Return what tells compiled code of one recipe from that of another in torch's caches.

    Where sizes vary, code is written for those that are seen first, but a cache does not ask for
    which it was: without this, what another training left there would decide bits.
    """
    data, train = recipe.data, recipe.train
    evaluates = "evaluated" if recipe.evaluate.every_steps else "alone"
    return f"mltune-{train.micro_batch_size}-{data.max_length}-{data.packing}-{evaluates}"


def _needs_hub(recipe: Recipe) -> bool:
    names = (recipe.model.name_or_path, recipe.data.train, recipe.data.validation)
    return any(
        # Unlike Path.exists, os.path.exists is False for a name that no file can have.
        name is not None and not name.startswith(BUNDLED_PREFIX) and not os.path.exists(name)  # noqa: PTH110
        for name in names
    )
