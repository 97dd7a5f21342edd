"""Row formats: from a row's fields to what is trained on. A row is never trained on a guess."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mltune_cli.errors import UsageError
from mltune_cli.training.data.sources import Fields, SourceRow


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns to be rendered by the tokenizer's chat template.

    Assistant turns before `first_learned` belong to the prompt.
    """

    turns: tuple[Turn, ...]
    first_learned: int = 0


@dataclass(frozen=True)
class Document:
    """Text to be continued: the completion is what is learned. A plain text has no prompt."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Example:
    """A row that was understood: its format's name, its place, and what it says."""

    format: str
    place: str
    content: Conversation | Document


_ANSWERS = (
    "completion", "response", "answer", "output", "label", "chosen", "rejected", "solution",
    "target", "targets", "reference", "expected", "reply", "summary", "ground_truth",
)  # fmt: skip


def read_example(row: SourceRow, named_format: str) -> Example:
    """Understand one row.

    Args:
        row: the fields, and the place that an error names.
        named_format: `data.format` of the recipe; `auto` tells the format by the fields.

    Raises:
        UsageError: no format fits, several do, or a field is not what the format says.
    """
    name = named_format if named_format != "auto" else _detected(row)
    required = () if name == "text" else _REQUIRED[name]
    missing = [field for field in required if row.fields.get(field) is None]
    if missing:
        raise UsageError(
            f"{row.place}: {name} rows need {_listed(missing)}; this one has {_listed(row.fields)}"
        )
    return Example(name, row.place, _READERS[name](row))


def _detected(row: SourceRow) -> str:
    fields = _fields_present(row)
    fits = [name for name, required in _REQUIRED.items() if fields.issuperset(required)]
    if not fits and _lone_prompt(row):
        return "text"
    if len(fits) > 1:
        # A table of mixed rows has all columns; CSV spells the absent cells as empty ones.
        filled = {name for name in fields if row.fields[name] not in ("", [])}
        fits = [name for name in fits if filled.issuperset(_REQUIRED[name])] or fits
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise UsageError(
            f"{row.place}: fits the formats {_listed(fits)} at once; name one with data.format"
        )
    raise UsageError(
        f"{row.place}: no usable fields: has {_listed(_with_nulls(row))}; a row needs text, or "
        "prompt + completion, messages, instruction + output, conversations, question + answer"
    )


def _with_nulls(row: SourceRow) -> list[str]:
    return [name if value is not None else f"{name} (null)" for name, value in row.fields.items()]


def _fields_present(row: SourceRow) -> set[str]:
    return {name for name, value in row.fields.items() if value is not None}


def _lone_prompt(row: SourceRow) -> str | None:
    """Return `prompt` or `input` where it is all there is; beside an answer it is half a row."""
    fields = _fields_present(row)
    alone = [name for name in ("prompt", "input") if name in fields]
    if len(alone) != 1 or fields.intersection((*_ANSWERS, "instruction")):
        return None
    return alone[0]


def _text(row: SourceRow) -> Document:
    name = "text" if row.fields.get("text") is not None else _lone_prompt(row)
    if name:
        return Document("", _string(row, name))
    raise UsageError(f"{row.place}: text rows need text; this one has {_listed(row.fields)}")


def _prompt_completion(row: SourceRow) -> Document | Conversation:
    prompt, completion = row.fields["prompt"], row.fields["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        if not completion:
            raise UsageError(f"{row.place}: completion is empty")
        whole = _conversation(row, [*prompt, *completion], "prompt", "role", "content", {})
        if all(turn.role != "assistant" for turn in whole.turns[len(prompt) :]):
            raise UsageError(f"{row.place}: completion has no assistant turn, so nothing to learn")
        return Conversation(whole.turns, first_learned=len(prompt))
    return Document(_string(row, "prompt", may_be_empty=True), _string(row, "completion"))


def _messages(row: SourceRow) -> Conversation:
    return _conversation(row, row.fields["messages"], "messages", "role", "content", {})


def _sharegpt(row: SourceRow) -> Conversation:
    roles = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
    turns = row.fields["conversations"]
    return _conversation(row, turns, "conversations", "from", "value", roles)


def _alpaca(row: SourceRow) -> Conversation:
    question = _string(row, "instruction")
    if _is_given(row, "input"):
        question = f"{question}\n\n{_string(row, 'input')}"
    system = [Turn("system", _string(row, "system"))] if _is_given(row, "system") else []
    return Conversation(
        (*system, Turn("user", question), Turn("assistant", _string(row, "output")))
    )


def _question_answer(row: SourceRow) -> Conversation:
    return Conversation(
        (Turn("user", _string(row, "question")), Turn("assistant", _string(row, "answer")))
    )


def _conversation(
    row: SourceRow,
    messages: Any,
    field: str,
    role_key: str,
    content_key: str,
    roles: Mapping[str, str],
) -> Conversation:
    if not isinstance(messages, list) or not messages:
        raise UsageError(f"{row.place}: {field} must be a list of at least one message")
    turns = []
    for index, message in enumerate(messages):
        where = f"{field}[{index}]"
        if not isinstance(message, Mapping) or not {role_key, content_key} <= set(message):
            raise UsageError(f"{row.place}: {where} must have {role_key} and {content_key}")
        role = message[role_key]
        role = roles.get(role, role) if isinstance(role, str) else role
        if role not in ("system", "user", "assistant", "tool"):
            raise UsageError(f"{row.place}: {where}: {role_key} {role!r} is not known")
        content = message[content_key]
        if not isinstance(content, str):
            raise UsageError(f"{row.place}: {where}: {content_key} must be text")
        _require_characters(row, where, content)
        if message.get("tool_calls"):
            raise UsageError(
                f"{row.place}: {where}: tool_calls are not trained on; write the call as text in "
                f"{content_key}, in the model's own notation"
            )
        turns.append(Turn(role, content))
    if not any(turn.role == "assistant" and turn.content for turn in turns):
        raise UsageError(f"{row.place}: {field} has no assistant turn, so nothing to learn")
    return Conversation(tuple(turns))


def _is_given(row: SourceRow, name: str) -> bool:
    value = row.fields.get(name)
    return value is not None and not (isinstance(value, str) and not value.strip())


def _string(row: SourceRow, name: str, may_be_empty: bool = False) -> str:
    value = row.fields[name]
    if not isinstance(value, str):
        raise UsageError(f"{row.place}: {name} must be text, not {type(value).__name__}")
    if not value.strip() and not may_be_empty:
        raise UsageError(f"{row.place}: {name} is empty")
    _require_characters(row, name, value)
    return value


def _require_characters(row: SourceRow, name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which is no character and has no tokens.
        raise UsageError(
            f"{row.place}: {name} holds \\u{ord(text[error.start]):04x}, half of a character; "
            "write the whole character"
        ) from None


def _listed(names: Fields | list[str]) -> str:
    return ", ".join(map(str, names)) or "nothing"


_READERS: dict[str, Callable[[SourceRow], Conversation | Document]] = {
    "text": _text,
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "alpaca": _alpaca,
    "sharegpt": _sharegpt,
    "question_answer": _question_answer,
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "alpaca": ("instruction", "output"),
    "sharegpt": ("conversations",),
    "question_answer": ("question", "answer"),
}
