"""Every planted fault is found: where the runs part, and for which cause."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
FAULTS = runpy.run_path(str(HERE / "catalogue.py"))["FAULTS"]
prepare = runpy.run_path(str(HERE / "preparations.py"))["prepare"]


def _cases() -> list[Any]:
    return [
        pytest.param(
            fault, id=f"{fault.row or 'x'} {fault.name}",
            marks=[pytest.mark.long] if fault.is_long else [],
        )
        for fault in FAULTS
    ]  # fmt: skip


def _rounds_products() -> bool:
    before = torch.get_float32_matmul_precision()
    rows = torch.linspace(0, 1, 256 * 256).view(256, 256)
    try:
        results = []
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            results.append(rows @ rows)
    finally:
        torch.set_float32_matmul_precision(before)
    return not torch.equal(*results)


@pytest.mark.parametrize("fault", _cases())
def test_a_planted_fault_is_found(fault: Any, check: Any, programs: str, tmp_path: Path) -> None:
    if fault.needs_rounding and not _rounds_products():
        pytest.skip("this processor multiplies alike, whatever precision it may take")
    made = tmp_path / "made"
    made.mkdir()
    if fault.prepared:
        prepare(fault.prepared, made)
    env = {name: value.replace("{made}", str(made)) for name, value in fault.env}
    found = check(fault.command(str(HERE / "scripts"), programs), vary=fault.vary, env=env)
    assert found.code == 1, found.output
    difference = found.report["first_difference"]
    assert fault.step is None or difference["step"] == fault.step, found.output
    assert difference["stage"] in fault.stages, found.output
    if fault.process:
        assert difference["process"] == fault.process, found.output
    diagnosis = found.report["diagnosis"]
    assert diagnosis["cause"] == fault.cause, found.output
    assert diagnosis["evidence"], found.output
    assert diagnosis["remedy"], found.output
    if fault.operation or fault.frame:
        where = found.report["localisation"]
        assert where is not None, found.output
        # Where the runs call different operations, either may be the one that is shown.
        called = " ".join([where["operation"], *(where["values"] or ())])
        assert (fault.operation or "") in called, found.output
        assert (fault.frame or "") in where["frame"], found.output
