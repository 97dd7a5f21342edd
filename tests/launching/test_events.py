"""The event pipe: every event comes out as it went in, and what is none is refused."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.errors import NoVerdictError
from mltune_cli.launching import events
from mltune_cli.launching.events import Event, EventPipe, Finished, Notice, parse_event

VALUES = {
    "str": st.text(),
    "int": st.integers(),
    "bool": st.booleans(),
    "float": st.floats(allow_nan=False),
    "Mapping[str, Any]": st.dictionaries(st.text(), st.one_of(st.text(), st.integers())),
}
KINDS = [
    kind
    for kind in vars(events).values()
    if isinstance(kind, type) and issubclass(kind, Event) and kind is not Event
]


def strategy_of(kind: type[Event]) -> st.SearchStrategy[Event]:
    types = {field.name: str(getattr(field.type, "__name__", field.type)) for field in
             dataclasses.fields(kind)}  # fmt: skip
    types = {
        name: "Mapping[str, Any]" if "Mapping" in kind else kind for name, kind in types.items()
    }
    return st.builds(kind, **{name: VALUES[type_name] for name, type_name in types.items()})


EVENTS: st.SearchStrategy[Event] = st.one_of([strategy_of(kind) for kind in KINDS])


@given(event=EVENTS)
def test_an_event_comes_out_as_it_went_in(event: Event) -> None:
    """Any text, newlines and emoji included, stays on one line of the pipe."""
    line = event.to_line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert parse_event(line) == event


def test_every_kind_is_known_by_a_name_of_its_own() -> None:
    assert len(KINDS) >= 7
    assert len({kind.kind for kind in KINDS}) == len(KINDS)


@given(event=EVENTS, data=st.data())
def test_a_torn_line_is_no_event(event: Event, data: st.DataObject) -> None:
    """Whatever a kill leaves of the last line, it is never read as another event."""
    line = event.to_line().rstrip(b"\n")
    cut = data.draw(st.integers(0, len(line) - 1))
    with pytest.raises(ValueError):
        parse_event(line[:cut])


@pytest.mark.parametrize(
    "line",
    [
        "", "null", "3", "[]", "{}", '{"kind": "nothing"}', '{"kind": ["notice"]}',
        '{"kind": null}', '{"kind": "notice"}', '{"kind": "notice", "message": "a", "more": 1}',
        '{"message": "a"}', "loading shards: 100%", b"\xff\xfe", "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(line: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_event(line)


def test_a_long_event_goes_through_a_pipe_that_is_read_slowly() -> None:
    """A pipe takes 64 KiB at once; the rest follows when the reader is ready."""
    import threading

    read_end, write_end = os.pipe()
    event = Notice("x" * 1_000_000)
    sender = threading.Thread(target=EventPipe(write_end).send, args=(event,))
    sender.start()
    with os.fdopen(read_end, "rb") as stream:
        line = stream.readline()
        sender.join()
        os.close(write_end)
        assert stream.read() == b""
    assert parse_event(line) == event


def test_a_pipe_that_nobody_reads_ends_the_worker() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        with pytest.raises(NoVerdictError, match="the command that started this worker is gone"):
            EventPipe(write_end).send(Finished("a", "b", 1.0))
    finally:
        os.close(write_end)


def test_numbers_that_json_lacks_survive() -> None:
    """A loss that is no number is still reported as what it is."""
    event: Any = parse_event(Finished("a", "b", float("inf")).to_line())
    assert event.last_loss == float("inf")
    nan: Any = parse_event(Finished("a", "b", float("nan")).to_line())
    assert nan.last_loss != nan.last_loss
    assert json.loads(Notice("é").to_line())["message"] == "é"
