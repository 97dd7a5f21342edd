"""Goldens as files, and what parts from them, over generated records."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.reproduction.golden import Golden, GoldenEntry, read_golden, record_golden
from mltune_cli.reproduction.golden_comparison import first_difference
from mltune_cli.witness.record import STAGES

_DIGEST = st.text("0123456789abcdef", min_size=16, max_size=16)
_STAGES = ("batch", "loss", "gradients", "optimizer", "parameters")


def entry(records: dict[str, list[dict[str, Any]]], environment: str = "class") -> GoldenEntry:
    return GoldenEntry(
        subject='a "name" with ä line\nbreak', kind="command", environment_class=environment,
        environment={"threads": "1"}, mltune="0", commit=None, recipe={}, inputs={},
        last_loss=None, records=records,
    )  # fmt: skip


@st.composite
def streams(draw: st.DrawFn) -> dict[str, list[dict[str, Any]]]:
    names = draw(st.lists(st.sampled_from(["main", "rank-0", "rank-1"]), min_size=1, unique=True))
    steps = draw(st.integers(1, 4))
    return {
        name: [
            {"step": step, "source": "SGD 1", **{stage: draw(_DIGEST) for stage in _STAGES}}
            for step in range(steps + 1)
        ]
        for name in sorted(names)
    }


@settings(max_examples=60, deadline=None)
@given(records=streams())
def test_a_golden_comes_back_as_it_was_written(records: dict[str, list[dict[str, Any]]]) -> None:
    golden = Golden(entries=[entry(records), entry(records, "other")])
    text = golden.to_json()
    assert Golden.model_validate_json(text) == golden
    # A step changes one line of the file.
    steps = [line for line in text.splitlines() if line.startswith('{"step"')]
    assert len(steps) == 2 * sum(map(len, records.values()))
    assert first_difference(golden.entries[0], golden.entries[1]) is None


@settings(max_examples=100, deadline=None)
@given(records=streams(), data=st.data())
def test_every_changed_digest_is_found_at_its_place(
    records: dict[str, list[dict[str, Any]]], data: st.DataObject
) -> None:
    changed = json.loads(json.dumps(records))
    stream = data.draw(st.sampled_from(sorted(records)))
    step = data.draw(st.integers(0, len(records[stream]) - 1))
    stage = data.draw(st.sampled_from(_STAGES))
    digest = changed[stream][step][stage]
    changed[stream][step][stage] = ("1" if digest[0] == "0" else "0") + digest[1:]
    found = first_difference(entry(records), entry(changed))
    assert found is not None
    assert (found.process, found.step, found.stage) == (stream, step, stage)
    assert found.values == (digest, changed[stream][step][stage])
    assert found.runs == (0, 1)


@settings(max_examples=50, deadline=None)
@given(records=streams(), data=st.data())
def test_a_lost_step_and_a_lost_process_are_found(
    records: dict[str, list[dict[str, Any]]], data: st.DataObject
) -> None:
    stream = data.draw(st.sampled_from(sorted(records)))
    shorter = {**records, stream: records[stream][:-1]}
    without = {name: lines for name, lines in records.items() if name != stream}
    for lost in (shorter, without):
        for pair in ((entry(records), entry(lost)), (entry(lost), entry(records))):
            found = first_difference(*pair)
            assert found is not None
            assert (found.stage, found.process) == ("missing", stream)


def test_a_child_that_has_another_number_now_is_the_same_child() -> None:
    was, now, other = (
        entry({name: [{"step": 0, "source": "A", "parameters": digest}]})
        for name, digest in (("child-5", "a"), ("child-1", "a"), ("child-1", "b"))
    )
    assert first_difference(was, now) is None
    found = first_difference(was, other)
    assert found is not None
    assert (found.process, found.stage) == ("child-5", "parameters")


def test_a_class_is_replaced_and_the_others_stay() -> None:
    first = Golden(entries=[]).with_entry(entry({"main": []}, "a")).with_entry(entry({}, "b"))
    second = first.with_entry(entry({"main": [{"step": 0}]}, "a"))
    assert [(e.environment_class, e.records) for e in second.entries] == [
        ("a", {"main": [{"step": 0}]}), ("b", {}),
    ]  # fmt: skip
    assert set(_STAGES) <= set(STAGES)


def test_recording_at_the_same_time_loses_no_class(tmp_path: Path) -> None:
    path, count = tmp_path / "g.json", 8
    for _ in range(5):
        path.unlink(missing_ok=True)
        barrier = threading.Barrier(count)

        def record(name: str, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            record_golden(path, entry({"main": []}, name))

        with ThreadPoolExecutor(count) as pool:
            list(pool.map(record, map(str, range(count))))
        written = [e.environment_class for e in read_golden(path).entries]
        assert written == list(map(str, range(count)))
        assert [found.name for found in tmp_path.iterdir()] == ["g.json"]


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    link, kept = tmp_path / "g.json", tmp_path / "kept" / "real.json"
    link.symlink_to("kept/real.json")
    for name in ("a", "b"):
        assert len(record_golden(link, entry({"main": []}, name))) == (name == "b")
        assert link.is_symlink()
        assert not kept.is_symlink()
    assert [e.environment_class for e in read_golden(kept).entries] == ["a", "b"]
    assert [found.name for found in kept.parent.iterdir()] == ["real.json"]


def test_what_an_earlier_version_kept_of_a_command_is_hidden_when_it_is_read(
    tmp_path: Path,
) -> None:
    path = tmp_path / "g.json"
    raw = entry({"main": []}).model_copy(
        update={"subject": "/opt/python /a/t.py --hf_token=s3cr3t-value"}
    )
    path.write_text(Golden(entries=[raw]).to_json())
    assert read_golden(path).entries[0].subject == "python t.py '--hf_token=***'"
    record_golden(path, entry({"main": []}, "other"))
    assert "s3cr3t" not in path.read_text()
