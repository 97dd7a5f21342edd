"""Reading what the processes of a run write while they train."""

from pathlib import Path

import pytest

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.witness_files import WitnessFiles


@pytest.mark.parametrize("line", ["3", "[]", "null", "{", '{"step": "x"}'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "main.jsonl").write_text(f"{line}\n")
    with pytest.raises(NoVerdictError, match=r"main\.jsonl: holds a line that is no record"):
        list(WitnessFiles(tmp_path).new_records())
