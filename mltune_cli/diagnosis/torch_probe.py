"""The process that imports torch and says what it sees: `python -m ... FD [memory]`.

Its answer goes to an inherited descriptor, since libraries print to the others.
"""

import json
import os
import sys
import time
import warnings
from typing import Any


def main() -> None:
    """Write the facts as one JSON object."""
    descriptor, asks_memory = int(sys.argv[1]), sys.argv[2] == "memory"
    try:
        facts = torch_facts(asks_memory)
    except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the answer
        facts = {"problem": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        json.dump(facts, stream)
    # Nothing is left to do; taking torch down takes a while, and may crash with a broken driver.
    os._exit(0)


def torch_facts(asks_memory: bool) -> dict[str, Any]:
    """Import torch and read its facts.

    Args:
        asks_memory: ask the first GPU for its free memory, too.
    """
    start = time.perf_counter()
    import torch

    seconds = time.perf_counter() - start
    # No hints: some of what is asked has none.
    library: Any = torch
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        gpus = _gpus(torch, asks_memory) if library.cuda.is_available() else []
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        # `torch.cuda.get_arch_list` is empty where there is no GPU.
        "architectures": library._C._cuda_getArchFlags().split() if torch.version.cuda else [],
        "gpus": gpus,
        "gpu_problem": " ".join(str(caught[0].message).split()) if caught else None,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "settings": {
            "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
            "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
            "cuda_matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        },
        "import_seconds": seconds,
    }


def _gpus(torch: Any, asks_memory: bool) -> list[dict[str, Any]]:
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free = torch.cuda.mem_get_info(index)[0] if asks_memory and index == 0 else None
        found.append(
            {
                "name": properties.name,
                "capability": (properties.major, properties.minor),
                "total_bytes": properties.total_memory,
                "free_bytes": free,
            }
        )
    return found


if __name__ == "__main__":
    main()
