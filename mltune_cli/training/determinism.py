"""The process-wide settings that make equal inputs give equal bits."""

import random
from typing import Any

import numpy as np
import torch

# A module that gives itself attributes, which type hints do not know.
_memory: Any = torch.utils.deterministic


def settle(threads: int) -> None:
    """Fix every setting that decides bits; called once, before any tensor is made.

    What must be set before the process starts (hash seed, cuBLAS workspace, OpenMP) is set in the
    child's environment by `launching.environment`.

    Args:
        threads: CPU threads of one operation.
    """
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    _use_vector_functions_once()
    torch.use_deterministic_algorithms(mode=True, warn_only=False)
    # Fresh memory would be filled, thousands of times a step: 3.4 % of one on a GPU. Whoever reads
    # memory that nobody wrote gets other bits in another run, and that is what is found here.
    _memory.fill_uninitialized_memory = False
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _use_vector_functions_once() -> None:
    """Let this thread alone be the first to call MKL's vector functions (exp, cos, erf, ...).

    Where several threads are the first, at once, one of them may compute its share with another
    accuracy, or NaN: seen with torch 2.13.0, about once in a hundred processes of a busy machine.
    """
    torch.ones(8).cos()


def settings() -> dict[str, str | int | bool]:
    """Return the settings as they are now, for the manifest."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "fill_uninitialized_memory": _memory.fill_uninitialized_memory,
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "cuda_matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def seed_all(seed: int) -> None:
    """Start every generator of the process from `seed`: torch on all devices, NumPy, Python.

    Nothing of ours draws from the last two; code that comes with a model may.
    """
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_state_bytes(device: torch.device) -> bytes:
    """Return the states of the generators that a training step may draw from."""
    states = [torch.get_rng_state().numpy().tobytes(), repr(random.getstate()).encode()]
    name, keys, position, *_ = np.random.get_state()
    states.append(f"{name}{position}".encode() + np.asarray(keys).tobytes())
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device).numpy().tobytes())
    return b"".join(states)
