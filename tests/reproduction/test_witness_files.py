"""Reading what the processes of a run write while they train."""

from pathlib import Path

import pytest

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.witness_files import OrderedComparison, WitnessFiles, place_of
from mltune_cli.witness.record import WitnessRecord


@pytest.mark.parametrize("line", ["3", "[]", "null", "{", '{"step": "x"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "main.jsonl").write_text(f"{line}\n")
    with pytest.raises(NoVerdictError, match=r"main\.jsonl: holds a line that is no record"):
        list(WitnessFiles(tmp_path).new_records())


def test_a_late_optimizer_begins_within_the_step_that_follows() -> None:
    early = WitnessRecord(0, {"parameters": "a"}, "Adam 1")
    steps = [WitnessRecord(n, {"loss": str(n)}, "Adam 1") for n in (1, 2)]
    comparison = OrderedComparison(2)
    for run, start in enumerate(("b", "c")):
        late = WitnessRecord(0, {"parameters": start}, "Adam 2", after=2)
        found = [comparison.add(run, "main", one) for one in (early, *steps, late)]
    assert found[:3] == [None] * 3
    assert found[3] is not None
    assert (found[3].step, found[3].is_start, found[3].optimizer) == (3, True, "Adam 2")
    # What another process says of its second step came before.
    other = found[3].model_copy(update={"step": 2, "is_start": False, "stage": "loss"})
    later = other.model_copy(update={"step": 3, "stage": "batch"})
    assert sorted([later, found[3], other], key=place_of) == [other, found[3], later]
