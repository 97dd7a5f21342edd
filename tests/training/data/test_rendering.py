"""A row becomes the text that the model will see, and the part of it that is learned."""

import datetime
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from mltune_cli.errors import RecipeValueError, UsageError
from mltune_cli.training.data.formats import read_example
from mltune_cli.training.data.rendering import ExampleRenderer
from mltune_cli.training.data.sources import SourceRow

Tokenizers = Callable[[str | None], PreTrainedTokenizerBase]

PLACE = "rows.jsonl:3"
DATE = "2026-01-01"
TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": " There. "},
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": "Åskådare 日本 🦊"},
    ]
}

TALK_TEXT = (
    "<|system|>Be brief.<|end|><|user|>Where?<|end|><|assistant|> There. <|end|>"
    "<|user|>When?<|end|><|assistant|>Åskådare 日本 🦊<|end|>"
)


def render(
    tokenizer: PreTrainedTokenizerBase,
    fields: dict[str, Any],
    learn_all: bool = False,
    date: str = DATE,
) -> tuple[str, list[str]]:
    """Return a row's whole text, and the parts of it that are learned."""
    example = read_example(SourceRow(PLACE, fields), "auto")
    (rendered,) = ExampleRenderer(tokenizer, learn_all, date).render([example])
    assert rendered.place == PLACE
    learned = [piece.text[start:end] for piece in rendered.pieces for start, end in piece.learned]
    return "".join(piece.text for piece in rendered.pieces), learned


def refusal(tokenizer: PreTrainedTokenizerBase, fields: dict[str, Any]) -> str:
    with pytest.raises(UsageError) as raised:
        render(tokenizer, fields)
    assert raised.value.message.startswith(f"{PLACE}: ")
    return raised.value.message.removeprefix(f"{PLACE}: ")


@pytest.mark.parametrize("which", ["tokenizer", "unmarked"])
@pytest.mark.parametrize(
    ("fields", "text", "learned"),
    [
        ({"text": "Once."}, "Once.", ["Once."]),
        ({"prompt": "Once."}, "Once.", ["Once."]),
        ({"prompt": "Where? ", "completion": "There."}, "Where? There.", ["There."]),
        ({"prompt": "", "completion": "There."}, "There.", ["There."]),
        (
            {"question": "Where?", "answer": "There."},
            "<|user|>Where?<|end|><|assistant|>There.<|end|>",
            ["There.<|end|>"],
        ),
        (
            {"instruction": "Where?", "input": "Hest", "output": "There.", "system": "Be brief."},
            "<|system|>Be brief.<|end|><|user|>Where?\n\nHest<|end|><|assistant|>There.<|end|>",
            ["There.<|end|>"],
        ),
        (
            TALK,
            TALK_TEXT,
            [" There. <|end|>", "Åskådare 日本 🦊<|end|>"],
        ),
        (
            # Answers in the prompt are given, not learned.
            {"prompt": TALK["messages"][:4], "completion": TALK["messages"][4:]},
            TALK_TEXT,
            ["Åskådare 日本 🦊<|end|>"],
        ),
        (
            {"conversations": [{"from": "gpt", "value": "Hi."}, {"from": "human", "value": "Yes"}]},
            "<|assistant|>Hi.<|end|><|user|>Yes<|end|>",
            ["Hi.<|end|>"],
        ),
    ],
)
def test_what_is_learned_is_the_answer_and_its_end(
    request: pytest.FixtureRequest, which: str, fields: dict[str, Any], text: str,
    learned: list[str],
) -> None:  # fmt: skip
    """With marks in the template and without, the same characters are learned."""
    tokenizer = request.getfixturevalue(which)
    assert render(tokenizer, fields) == (text, learned)
    all_text, all_learned = render(tokenizer, fields, learn_all=True)
    assert all_text == "".join(all_learned) == text


# Templates that do not show which part is the assistant's: nothing is guessed.

HEADER = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
UNCLEAR = {
    "numbers the turns from the end": "{% for m in messages %}{{ loop.revindex }}{{ m.role }}:"
    "{{ m.content }}\n{% endfor %}",
    "drops all answers but the last": "{% for m in messages %}{% if m.role != 'assistant' or "
    "loop.last %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}{% endfor %}" + PROMPT,
    "puts the last turn first": "{{ messages[-1].content }}" + HEADER + PROMPT,
    "opens a thought in the prompt": HEADER
    + "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}",
}


@pytest.mark.parametrize("template", UNCLEAR)
def test_a_template_that_renders_earlier_turns_anew_is_refused(
    tokenizer_with: Tokenizers, template: str
) -> None:
    tokenizer = tokenizer_with(UNCLEAR[template])
    assert refusal(tokenizer, TALK) == (
        "the chat template does not show which tokens are the assistant's; set data.loss_on=all, "
        "or give the template {% generation %} marks"
    )
    text, learned = render(tokenizer, TALK, learn_all=True)
    assert learned == [text]


def test_an_opening_answer_is_refused_where_the_template_needs_a_turn_before_it(
    tokenizer_with: Tokenizers,
) -> None:
    """The header of an answer is no part of the answer, so it has to be told apart or refused."""
    tokenizer = tokenizer_with("{{ messages[0].role[:0] }}" + HEADER + PROMPT)
    row = {"messages": [{"role": "assistant", "content": "Hi."}]}
    assert "does not show which tokens are the assistant's" in refusal(tokenizer, row)
    assert render(tokenizer, TALK)[1] == [" There. <|end|>", "Åskådare 日本 🦊<|end|>"]


def test_a_trailing_prompt_is_not_learned(tokenizer_with: Tokenizers) -> None:
    """A line break after the end token belongs to the answer's turn, the next header does not."""
    tokenizer = tokenizer_with(HEADER.replace("<|end|>", "<|end|>\n") + PROMPT)
    assert render(tokenizer, TALK)[1] == [" There. <|end|>\n", "Åskådare 日本 🦊<|end|>\n"]


def test_marks_are_believed_where_prefixes_would_not_do(tokenizer_with: Tokenizers) -> None:
    template = (
        "{{ messages | length }} turns{% for m in messages %}{% if m.role == 'assistant' %}A:"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}Q:{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    expected = ("5 turnsQ:Be brief.Q:Where?A: There. Q:When?A:Åskådare 日本 🦊",
                [" There. ", "Åskådare 日本 🦊"])  # fmt: skip
    assert render(tokenizer_with(template), TALK) == expected


# No template


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"question": "Where?", "answer": "There."}, "Where?\nThere."),
        ({"instruction": "Where?", "output": "There."}, "Where?\nThere."),
        (
            {"instruction": "Where?", "input": "Hest", "output": "There.", "system": "Be brief."},
            "Be brief.\n\nWhere?\n\nHest\nThere.",
        ),
    ],
)
def test_without_a_template_a_question_and_its_answer_are_text(
    tokenizer_with: Tokenizers, fields: dict[str, Any], text: str
) -> None:
    tokenizer = tokenizer_with(None)
    assert render(tokenizer, fields) == (text, ["There."])
    assert "".join(render(tokenizer, fields, learn_all=True)[1]) == text


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        (TALK, "messages"),
        ({"conversations": [{"from": "gpt", "value": "x"}]}, "sharegpt"),
        ({"prompt": TALK["messages"][:2], "completion": TALK["messages"][2:3]},
         "prompt_completion"),
    ],
)  # fmt: skip
def test_without_a_template_turns_are_refused(
    tokenizer_with: Tokenizers, fields: dict[str, Any], name: str
) -> None:
    assert refusal(tokenizer_with(None), fields) == (
        f"{name} rows need a chat template, and the model's tokenizer has none; use a model that "
        "has one, or prompt + completion rows"
    )


def test_of_several_templates_the_default_one_is_used(tokenizer_with: Tokenizers) -> None:
    tokenizer = tokenizer_with(None)
    row = {"question": "Where?", "answer": "There."}
    tokenizer.chat_template = {"tool_use": "never", "default": HEADER + PROMPT}
    assert render(tokenizer, row)[1] == ["There.<|end|>"]
    tokenizer.chat_template = {"tool_use": "never"}
    assert render(tokenizer, row) == ("Where?\nThere.", ["There."])


# The clock

CLOCK = "{{ strftime_now('%d %b %Y, %H:%M') }};" + HEADER + PROMPT


class LaterDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime(2031, 5, 6, 7, 8, tzinfo=tz)


def test_a_template_that_asks_for_the_day_is_told_the_recipes(
    tokenizer_with: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_with(CLOCK)
    today = render(tokenizer, TALK)
    monkeypatch.setattr(chat_template_utils, "datetime", LaterDatetime)
    # The planted day is seen by whoever asks transformers directly: the fault is real.
    assert tokenizer.apply_chat_template(TALK["messages"], tokenize=False).startswith("06 May 2031")
    assert render(tokenizer, TALK) == today
    assert today[0].startswith("01 Jan 2026, 00:00;")
    assert render(tokenizer, TALK, date="2024-02-29")[0].startswith("29 Feb 2024, 00:00;")


def test_each_renderer_keeps_its_day_and_the_clock_of_others_is_left_alone(
    tokenizer_with: Tokenizers,
) -> None:
    tokenizer = tokenizer_with(CLOCK)
    example = read_example(SourceRow(PLACE, TALK), "auto")
    first, second = (ExampleRenderer(tokenizer, False, f"2026-01-0{n}") for n in (1, 2))
    for renderer, day in [(first, "01 Jan"), (second, "02 Jan"), (first, "01 Jan")]:
        assert renderer.render([example])[0].pieces[0].text.startswith(day)
    assert chat_template_utils.datetime is datetime.datetime


@pytest.mark.parametrize("date", ["2026-02-30", "2026-13-01", "0000-01-01"])
def test_a_day_that_does_not_exist_is_a_problem_of_its_key(
    tokenizer: PreTrainedTokenizerBase, date: str
) -> None:
    with pytest.raises(RecipeValueError, match="is not in the calendar") as raised:
        ExampleRenderer(tokenizer, False, date)
    assert raised.value.key == "data.chat_template_date"


# Templates that refuse or fail


def test_what_a_template_says_in_refusing_is_told_with_the_row(tokenizer: Any) -> None:
    row = {"messages": [*TALK["messages"][1:3], {"role": "tool", "content": "7"}]}
    assert refusal(tokenizer, row) == (
        "the model's chat template refuses this row: "
        "The roles are system, user and assistant, not tool"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.index('absent') }}",
        "{{ nothing.at.all }}",
        "{{ messages | unheard_of }}",
        "{% for m in messages %}",
        "{{ messages[0].__class__.__mro__ }}",
    ],
)
def test_a_template_that_fails_is_told_with_the_row(
    tokenizer_with: Tokenizers, template: str
) -> None:
    message = refusal(tokenizer_with(template), TALK)
    assert message.startswith("the model's chat template refuses this row: ")
