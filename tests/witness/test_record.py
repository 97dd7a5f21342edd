"""Witness records travel as JSON lines and come back equal, or are refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.witness.record import STAGES, WitnessRecord, bytes_digest, chained_digest


@given(st.integers(0, 10**9), st.dictionaries(st.sampled_from(STAGES), st.text(max_size=20)))
def test_round_trip(step: int, digests: dict[str, str]) -> None:
    record = WitnessRecord(step, digests)
    assert WitnessRecord.from_fields(json.loads(record.to_json())) == record


def test_stages_are_written_in_the_order_of_computation() -> None:
    record = WitnessRecord(1, {"parameters": "b", "batch": "a"})
    assert record.to_json() == '{"step":1,"batch":"a","parameters":"b"}'


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"step": "1"},
        {"step": True},
        {"step": -1},
        {"step": 1, "loss": 3},
        {"step": 1, "x": "y"},
    ],
)
def test_damage_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        WitnessRecord.from_fields(fields)


def test_chained_digests_keep_order_and_borders() -> None:
    assert chained_digest(["ab", "c"]) != chained_digest(["a", "bc"])
    assert chained_digest(["a", "b"]) != chained_digest(["b", "a"])
    assert len(bytes_digest(b"")) == 16
