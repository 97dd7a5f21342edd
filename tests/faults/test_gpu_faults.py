"""The rows of the catalogue that need a GPU: 15 to 22."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
HERE = Path(__file__).parent
SCRIPTS = HERE / "scripts"
FAULTS = runpy.run_path(str(HERE / "gpu_catalogue.py"))["FAULTS"]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.row} {fault.script}")
def test_a_planted_fault_of_the_gpu_is_found(fault: Any, check: Any, programs: str) -> None:
    script = SCRIPTS / f"{fault.script}.py"
    found = check([f"{programs}/python", str(script)], vary=fault.vary)
    assert found.code == 1, found.output
    assert found.report["diagnosis"]["cause"] in fault.causes, found.output
    if fault.operation:
        assert fault.operation in found.report["localisation"]["operation"], found.output


_IMPORT = "import torch\n"
_STRICT = "torch.use_deterministic_algorithms(True)\n"


@pytest.mark.parametrize(
    ("script", "before", "after", "vary"),
    [
        ("gpu_attention_backward", "torch.manual_seed", f"{_STRICT}torch.manual_seed", ()),
        ("gpu_scatter_add", "torch.manual_seed", f"{_STRICT}torch.manual_seed", ()),
        ("gpu_convolutions", "benchmark = True", "benchmark = False", ()),
        ("gpu_compiled", _IMPORT,
         f"{_IMPORT}torch._inductor.config.deterministic = True\n{_STRICT}", ("cold-cache",)),
        ("gpu_triton", "(64, 128, 256, 512, 1024)", "(256,)", ("cold-cache",)),
    ],
    ids=("attention", "scatter", "convolutions", "compiled", "triton"),
)  # fmt: skip
def test_with_the_remedy_it_is_reproducible(
    script: str, before: str, after: str, vary: tuple[str, ...], check: Any, programs: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The controls: the same scripts, each with what the diagnosis advises."""
    text = (SCRIPTS / f"{script}.py").read_text(encoding="utf-8")
    assert before in text
    (tmp_path / "train.py").write_text(text.replace(before, after, 1), encoding="utf-8")
    found = check(
        [f"{programs}/python", str(tmp_path / "train.py")], vary=vary,
        env={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )  # fmt: skip
    assert found.code == 0, found.output
