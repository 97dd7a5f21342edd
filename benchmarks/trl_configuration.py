"""How TRL can be set up, and whether it can be here. No TRL and no transformers needed."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass

import torch

# FlashAttention-2 as `torch_flash` offers it.
BORROWED = "torch_flash_attention_2"
# In the order in which they are tried, and what brings them besides the package `kernels`, which
# transformers falls back to; the first that runs is taken.
FLASH = {
    "flash_attention_3": "flash_attn_interface",
    "flash_attention_2": "flash_attn",
    BORROWED: "torch",
}


@dataclass(frozen=True)
class Configuration:
    """How TRL is set up; everything that is not named here is as TRL has it by default.

    Attributes:
        packing: documents of several rows in one, best-fit decreasing; else padded rows.
        attention: transformers' name of the kernel, or `BORROWED`.
        liger: whether Liger's kernels are used.
    """

    packing: bool
    attention: str
    liger: bool


def why_unavailable(configuration: Configuration) -> str | None:
    """Say why a configuration cannot run here, as far as that shows before anything is loaded."""
    if importlib.util.find_spec("trl") is None:
        return "trl is not installed"
    if configuration.liger and importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed"
    if "flash" in configuration.attention:
        if not torch.cuda.is_available():
            return "FlashAttention's kernels need a CUDA device"
        packages = (FLASH.get(configuration.attention, "kernels"), "kernels")
        if not any(importlib.util.find_spec(package) for package in packages):
            return f"neither of the packages {' and '.join(packages)} is installed"
    return None


def candidates(name: str, flash: Iterable[str]) -> list[Configuration]:
    """Return the ways to set a configuration of TRL's up, the best first."""
    has_liger = importlib.util.find_spec("liger_kernel") is not None
    kinds = {
        "trl-padded": [Configuration(False, "sdpa", False)],
        "trl-stock": [Configuration(True, "sdpa", False)],
        "trl-stock-liger": [Configuration(True, "sdpa", True)],
        "trl-best": [Configuration(True, kernel, has_liger) for kernel in flash],
    }
    return kinds[name]
