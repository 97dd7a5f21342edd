"""The faults that need a GPU: scripts, what convicts them, and what the answer is.

Only the standard library is imported, so that the documentation can be written without torch.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GpuFault:
    """As `catalogue.Fault`.

    Attributes:
        operation: a part of its name; None where the trace runs other kernels, and finds none.
    """

    row: int
    script: str
    causes: tuple[str, ...]
    operation: str | None = None
    vary: tuple[str, ...] = ()


_RACE = ("nondeterministic-operation",)
_SEARCH = ("cold-cache", "nondeterministic-operation")
FAULTS = (
    GpuFault(15, "gpu_attention_backward", _RACE, "attention_backward"),
    GpuFault(16, "gpu_warnings_only", _RACE, "grid_sampler_2d_backward"),
    GpuFault(17, "gpu_index_add", _RACE, "index_add"),
    GpuFault(17, "gpu_scatter_add", _RACE, "scatter_add"),
    GpuFault(18, "gpu_workspace", ("environment-variable",), "mm",
             ("env.CUBLAS_WORKSPACE_CONFIG=:16:8",)),
    GpuFault(19, "gpu_products", ("environment-variable",), "addmm",
             ("env.NVIDIA_TF32_OVERRIDE=0",)),
    GpuFault(20, "gpu_convolutions", ("kernel-search",), "convolution"),
    GpuFault(21, "gpu_compiled", ("cold-cache",), vary=("cold-cache",)),
    GpuFault(22, "gpu_triton", _SEARCH, "planted.row_sums", ("cold-cache",)),
)  # fmt: skip
