"""A row is understood by its own fields, or refused with its place; it is never guessed at."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.errors import UsageError
from mltune_cli.training.data.formats import Conversation, Document, Example, Turn, read_example
from mltune_cli.training.data.sources import SourceRow

PLACE = "rows.jsonl:3"
FORMATS = ("text", "prompt_completion", "messages", "alpaca", "sharegpt", "question_answer")
ANSWERS = ("completion", "response", "answer", "output", "label", "rejected", "target", "solution")
ASK, SAY = Turn("user", "Where?"), Turn("assistant", "There.")
RULE = Turn("system", "Be brief.")

# One row of each shape: its fields, its format, and what it says.
SHAPES: dict[str, tuple[dict[str, Any], str, Document | Conversation]] = {
    "text": ({"text": "Once."}, "text", Document("", "Once.")),
    "prompt alone": ({"prompt": "Once."}, "text", Document("", "Once.")),
    "input alone": ({"input": "Once."}, "text", Document("", "Once.")),
    "prompt + completion": (
        {"prompt": "Where? ", "completion": "There."},
        "prompt_completion",
        Document("Where? ", "There."),
    ),
    "empty prompt": (
        {"prompt": "", "completion": "There."},
        "prompt_completion",
        Document("", "There."),
    ),
    "prompt + completion of turns": (
        {
            "prompt": [{"role": "user", "content": "Where?"}],
            "completion": [{"role": "assistant", "content": "There."}],
        },
        "prompt_completion",
        Conversation((ASK, SAY), first_learned=1),
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Where?"},
                {"role": "assistant", "content": "There."},
            ]
        },
        "messages",
        Conversation((RULE, ASK, SAY)),
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Where?"},
                {"from": "gpt", "value": "There."},
            ]
        },
        "sharegpt",
        Conversation((RULE, ASK, SAY)),
    ),
    "alpaca": (
        {"instruction": "Where?", "output": "There."},
        "alpaca",
        Conversation((ASK, SAY)),
    ),
    "alpaca with an input and a system": (
        {"instruction": "Where?", "input": "Hest", "output": "There.", "system": "Be brief."},
        "alpaca",
        Conversation((RULE, Turn("user", "Where?\n\nHest"), SAY)),
    ),
    "alpaca with blank extras": (
        {"instruction": "Where?", "input": " \n", "output": "There.", "system": ""},
        "alpaca",
        Conversation((ASK, SAY)),
    ),
    "question + answer": (
        {"question": "Where?", "answer": "There."},
        "question_answer",
        Conversation((ASK, SAY)),
    ),
}
KNOWN = sorted({name for fields, _, _ in SHAPES.values() for name in fields} | set(ANSWERS))


def read(fields: dict[str, Any], named: str = "auto") -> Example:
    return read_example(SourceRow(PLACE, fields), named)


def complaint(fields: dict[str, Any], named: str = "auto") -> str:
    with pytest.raises(UsageError) as raised:
        read(fields, named)
    message = raised.value.message
    assert message.startswith(f"{PLACE}: ")
    assert "\n" not in message
    return message.removeprefix(f"{PLACE}: ")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_format_is_told_by_the_fields_or_named(shape: str) -> None:
    fields, name, content = SHAPES[shape]
    assert read(fields) == Example(name, PLACE, content)
    assert read(fields, name) == Example(name, PLACE, content)


@pytest.mark.parametrize("shape", SHAPES)
def test_nulls_and_extra_columns_change_nothing(shape: str) -> None:
    """A table of mixed rows has every column, and null in those that a row lacks."""
    fields, name, content = SHAPES[shape]
    extras = {"id": 7, "meta": {"text": "x"}, "score": float("nan"), "source": None, "tags": ["a"]}
    table_row = dict.fromkeys(KNOWN) | extras | fields
    assert read(table_row) == Example(name, PLACE, content)
    assert read(table_row, name) == Example(name, PLACE, content)


@pytest.mark.parametrize("shape", [s for s in SHAPES if "alone" not in s and "empty" not in s])
def test_cells_that_csv_leaves_empty_are_no_fields(shape: str) -> None:
    fields, name, content = SHAPES[shape]
    columns = ("text", "prompt", "completion", "instruction", "input", "output", "question")
    assert read(dict.fromkeys(columns, "") | fields) == Example(name, PLACE, content)


@given(
    st.sampled_from(sorted(SHAPES)),
    st.dictionaries(
        st.text(max_size=6).filter(lambda name: name not in KNOWN),
        st.none() | st.integers() | st.text() | st.floats() | st.lists(st.text(), max_size=2),
        max_size=5,
    ),
)
@settings(max_examples=50, deadline=None)
def test_unknown_columns_change_nothing(shape: str, extras: dict[str, Any]) -> None:
    fields, name, content = SHAPES[shape]
    assert read(extras | fields) == Example(name, PLACE, content)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
TURNS = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "human", ["user"], {}, None, 3]),
        "content": LEAVES | st.sampled_from(["x", "\ud800", [], {"text": "x"}]),
        "from": st.sampled_from(["human", "gpt", [], {}]),
        "value": LEAVES,
        "tool_calls": st.sampled_from([None, [], [{"id": 1}]]),
    },
)
VALUES = LEAVES | st.sampled_from(["\udfff", " ", {}]) | st.lists(TURNS | LEAVES, max_size=3)


@given(
    st.dictionaries(st.sampled_from(KNOWN), VALUES, max_size=4),
    st.sampled_from(["auto", *FORMATS]),
)
@settings(max_examples=300, deadline=None)
def test_a_row_is_either_understood_or_refused_in_one_placed_sentence(
    fields: dict[str, Any], named: str
) -> None:
    """No row, however wrong, ends in another error; what is understood is text with an answer."""
    try:
        content = read(fields, named).content
    except UsageError as error:
        refusal = error.message
    else:
        refusal = None
    if refusal is not None:
        assert refusal.startswith(f"{PLACE}: ")
        return
    texts = (
        [turn.content for turn in content.turns]
        if isinstance(content, Conversation)
        else [content.prompt, content.completion]
    )
    assert all(isinstance(text, str) and text.encode() is not None for text in texts)
    if isinstance(content, Conversation):
        assert any(turn.role == "assistant" and turn.content for turn in content.turns)
    else:
        assert content.completion.strip()


@pytest.mark.parametrize(
    ("fields", "formats"),
    [
        ({"text": "a", "prompt": "b", "completion": "c"}, "text, prompt_completion"),
        ({"instruction": "a", "output": "b", "text": "c"}, "text, alpaca"),
        (
            {"question": "a", "answer": "b", "instruction": "c", "output": "d"},
            "alpaca, question_answer",
        ),
        ({"messages": [{}], "conversations": [{}]}, "messages, sharegpt"),
        ({"text": "", "messages": []}, "text, messages"),
    ],
)
def test_a_row_of_two_formats_is_refused_until_one_is_named(
    fields: dict[str, Any], formats: str
) -> None:
    expected = f"fits the formats {formats} at once; name one with data.format"
    assert complaint(fields) == expected


def test_a_named_format_settles_a_row_of_two() -> None:
    row = {"instruction": "Where?", "output": "There.", "text": "Once."}
    assert read(row, "alpaca").content == Conversation((ASK, SAY))
    assert read(row, "text").content == Document("", "Once.")


@pytest.mark.parametrize("fields", [{}, {"id": 1}, {"text": None}, {"content": "a", "title": "b"},
                                    {"prompt": "a", "input": "b"}, {"instruction": "a"},
                                    {"question": "a"}, {"answer": "a"}])  # fmt: skip
def test_a_row_of_no_format_lists_what_it_has_and_what_it_needs(fields: dict[str, Any]) -> None:
    message = complaint(fields)
    names = [name if fields[name] is not None else f"{name} (null)" for name in fields]
    assert message.startswith(f"no usable fields: has {', '.join(names) or 'nothing'}; ")
    assert "a row needs text, or prompt + completion, messages, instruction + output" in message


@pytest.mark.parametrize("asked", ["prompt", "input"])
@pytest.mark.parametrize("answer", [*ANSWERS, "instruction"])
def test_half_a_row_is_never_trained_as_text(asked: str, answer: str) -> None:
    """A prompt beside an answer of another name is no text: the answer would be lost."""
    if (asked, answer) == ("prompt", "completion"):
        return
    fields = {asked: "Where?", answer: "There."}
    assert complaint(fields).startswith(f"no usable fields: has {asked}, {answer}; ")
    assert complaint(fields, "text") == f"text rows need text; this one has {asked}, {answer}"


def test_a_row_named_text_keeps_its_completion_or_is_refused() -> None:
    fields = {"prompt": "Where?", "completion": "There."}
    assert "text rows need text" in complaint(fields, "text")


@pytest.mark.parametrize(
    ("named", "fields", "missing"),
    [
        ("text", {"question": "a", "answer": "b"}, "text"),
        ("prompt_completion", {"text": "a"}, "prompt, completion"),
        ("prompt_completion", {"prompt": "a", "completion": None}, "completion"),
        ("messages", {"text": "a"}, "messages"),
        ("alpaca", {"instruction": "a", "input": "b"}, "output"),
        ("sharegpt", {"messages": []}, "conversations"),
        ("question_answer", {"question": "a"}, "answer"),
    ],
)
def test_a_row_that_is_not_of_the_named_format_says_what_it_lacks(
    named: str, fields: dict[str, Any], missing: str
) -> None:
    expected = f"{named} rows need {missing}; this one has {', '.join(fields)}"
    assert complaint(fields, named) == expected


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"text": 3}, "text must be text, not int"),
        ({"text": float("nan")}, "text must be text, not float"),
        ({"text": ["a"]}, "text must be text, not list"),
        ({"text": " \n"}, "text is empty"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": 1, "completion": "a"}, "prompt must be text, not int"),
        ({"prompt": [], "completion": "a"}, "prompt must be text, not list"),
        ({"question": "a", "answer": 4}, "answer must be text, not int"),
        ({"question": " ", "answer": "a"}, "question is empty"),
        ({"instruction": "a", "input": 0, "output": "b"}, "input must be text, not int"),
        ({"text": "ab\ud83d"}, "text holds \\ud83d, half of a character; write the whole one"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(fields: dict[str, Any], problem: str) -> None:
    assert complaint(fields).startswith(problem.removesuffix("one"))


GOOD = {"role": "assistant", "content": "There."}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "messages must be a list of at least one message"),
        ("There.", "messages must be a list of at least one message"),
        ({"role": "user"}, "messages must be a list of at least one message"),
        ([GOOD, "There."], "messages[1] must have role and content"),
        ([GOOD, None], "messages[1] must have role and content"),
        ([{"from": "gpt", "value": "x"}], "messages[0] must have role and content"),
        ([GOOD, {"role": "user"}], "messages[1] must have role and content"),
        ([GOOD, {"role": "narrator", "content": "x"}], "messages[1]: role 'narrator' is not known"),
        ([GOOD, {"role": ["user"], "content": "x"}], "messages[1]: role ['user'] is not known"),
        ([GOOD, {"role": None, "content": "x"}], "messages[1]: role None is not known"),
        ([GOOD, {"role": "user", "content": None}], "messages[1]: content must be text"),
        (
            [GOOD, {"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "messages[1]: content must be text",
        ),
        ([GOOD, {"role": "user", "content": "\udc00"}], "messages[1] holds \\udc00, half of a"),
        ([{"role": "user", "content": "x"}], "messages has no assistant turn, so nothing to learn"),
        (
            [{"role": "assistant", "content": ""}],
            "messages has no assistant turn, so nothing to learn",
        ),
        (
            [{**GOOD, "tool_calls": [{"function": {"name": "f"}}]}],
            "messages[0]: tool_calls are not trained on; write the call as text in content",
        ),
    ],
)
def test_a_message_that_cannot_be_used_is_named_by_its_index(messages: Any, problem: str) -> None:
    assert complaint({"messages": messages}).startswith(problem)


def test_roles_of_sharegpt_are_its_own() -> None:
    def row(role: str) -> dict[str, Any]:
        return {"conversations": [{"from": role, "value": "x"}, {"from": "gpt", "value": "y"}]}

    for role, turn in [("human", "user"), ("user", "user"), ("chatgpt", "assistant"),
                       ("bot", "assistant"), ("tool", "tool"), ("system", "system")]:  # fmt: skip
        content = read(row(role)).content
        assert isinstance(content, Conversation)
        assert content.turns == (Turn(turn, "x"), Turn("assistant", "y"))
    assert complaint(row("function_call")).startswith("conversations[0]: from 'function_call' is")
    assert complaint({"messages": [{"role": "human", "content": "x"}]}).startswith("messages[0]: ")


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ([], "completion is empty"),
        ([{"role": "user", "content": "x"}], "completion has no assistant turn"),
    ],
)
def test_a_completion_of_turns_needs_an_answer(completion: list[Any], problem: str) -> None:
    """An answer in the prompt does not stand in for it."""
    prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UsageError, match=problem):
        read({"prompt": prompt, "completion": completion})
