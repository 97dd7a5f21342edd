"""The rows of the catalogue that need a GPU: 15 to 22."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SCRIPTS = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class GpuFault:
    """As `catalogue.Fault`; `may_agree` where what was measured may come out alike twice."""

    row: int
    line: str
    causes: tuple[str, ...]
    operation: str | None = None
    vary: tuple[str, ...] = ()
    may_agree: bool = False


_RACE = ("nondeterministic-operation",)
_SEARCH = ("cold-cache", "nondeterministic-operation", "argument")
FAULTS = (
    GpuFault(15, "gpu_attention_backward.py", _RACE, "attention_backward"),
    GpuFault(16, "gpu_attention_backward.py --backend EFFICIENT_ATTENTION --warn-only", _RACE,
             "attention_backward", may_agree=True),
    GpuFault(17, "gpu_index_add.py", _RACE, "index_add", may_agree=True),
    GpuFault(17, "gpu_scatter_add.py", _RACE, "scatter_add"),
    GpuFault(18, "gpu_streams.py", _RACE, may_agree=True),
    GpuFault(19, "gpu_products.py", ("environment-variable",), "addmm",
             ("env.NVIDIA_TF32_OVERRIDE=0",)),
    GpuFault(20, "gpu_convolutions.py", _RACE, "convolution", may_agree=True),
    GpuFault(21, "gpu_compiled.py", _SEARCH, vary=("argument=--mode max-autotune",),
             may_agree=True),
    GpuFault(22, "gpu_triton.py", _SEARCH, "planted.row_sums", ("cold-cache",), may_agree=True),
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.row} {fault.line}")
def test_a_planted_fault_of_the_gpu_is_found(fault: GpuFault, check: Any, programs: str) -> None:
    script, *rest = fault.line.split()
    # Twice may be alike by chance; four times is so less often.
    flags = ("--runs", "4") if fault.may_agree else ()
    found = check(
        [f"{programs}/python", str(SCRIPTS / script), *rest], vary=fault.vary, flags=flags
    )
    if fault.may_agree and found.code == 0:
        pytest.skip("what was measured came out alike in all runs")
    assert found.code == 1, found.output
    assert found.report["diagnosis"]["cause"] in fault.causes, found.output
    if fault.operation:
        assert fault.operation in found.report["localisation"]["operation"], found.output


def test_strict_mode_makes_an_atomic_addition_repeat(check: Any, programs: str) -> None:
    """The control: the same script, with the remedy, is reproducible."""
    text = (SCRIPTS / "gpu_scatter_add.py").read_text(encoding="utf-8")
    strict = text.replace(
        "torch.manual_seed(1)", "torch.manual_seed(1)\ntorch.use_deterministic_algorithms(True)"
    )
    found = check([f"{programs}/python", "-c", strict], env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"})
    assert found.code == 0, found.output
