"""From what a row says to the text that is tokenised, and which characters of it are learned."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from mltune_cli.errors import RecipeValueError, UsageError
from mltune_cli.training.data.formats import Conversation, Document, Example, Turn

Span = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """Text that is tokenised on its own; `learned` are the character ranges that are targets."""

    text: str
    learned: tuple[Span, ...]


@dataclass(frozen=True)
class RenderedExample:
    """The pieces of one row in order, and whether the end-of-text token closes it."""

    place: str
    pieces: tuple[Piece, ...]
    ends_text: bool


class ExampleRenderer:
    """Renders rows for one tokenizer.

    Args:
        tokenizer: a fast tokenizer; its chat template is used where it has one.
        learn_all: learn every token instead of completions and assistant turns alone.
        date: `YYYY-MM-DD`, what a template that asks for today's date is told.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, learn_all: bool, date: str) -> None:
        self._tokenizer = tokenizer
        self._learn_all = learn_all
        self._template = _chat_template(tokenizer)
        self._clock = _frozen_clock(date)
        self._marks_turns = bool(re.search(r"\{%-?\s*generation\s*-?%\}", self._template or ""))

    def render(self, examples: Sequence[Example]) -> list[RenderedExample]:
        """Render rows, in order.

        Raises:
            UsageError: a conversation that the tokenizer's template cannot render.
        """
        return [self._render(example) for example in examples]

    def _render(self, example: Example) -> RenderedExample:
        content = example.content
        if isinstance(content, Conversation) and self._template is None:
            content = self._as_document(example, content)
        if isinstance(content, Document):
            whole = (0, len(content.completion))
            prompt_learned = ((0, len(content.prompt)),) if self._learn_all else ()
            pieces = [Piece(content.prompt, prompt_learned)] if content.prompt else []
            pieces.append(Piece(content.completion, (whole,)))
            return RenderedExample(example.place, tuple(pieces), ends_text=True)
        text, spans = self._template_text(example, content)
        learned = ((0, len(text)),) if self._learn_all else tuple(spans)
        return RenderedExample(example.place, (Piece(text, learned),), ends_text=False)

    def _as_document(self, example: Example, content: Conversation) -> Document:
        """Without a chat template a question and its answer are two lines of text."""
        if example.format not in ("question_answer", "alpaca"):
            raise UsageError(
                f"{example.place}: {example.format} rows need a chat template, and the model's "
                "tokenizer has none; use a model that has one, or prompt + completion rows"
            )
        *before, answer = content.turns
        prompt = "\n\n".join(turn.content for turn in before)
        return Document(f"{prompt}\n", answer.content)

    def _template_text(self, example: Example, content: Conversation) -> tuple[str, list[Span]]:
        text, spans = self._run_template(example, content.turns, mark=self._marks_turns)
        if self._learn_all:
            return text, spans
        if not self._marks_turns:
            return text, self._spans_by_prefix(example, content, text)
        given = sum(turn.role == "assistant" for turn in content.turns[: content.first_learned])
        return text, spans[given:]

    def _spans_by_prefix(self, example: Example, content: Conversation, text: str) -> list[Span]:
        """Find assistant turns in a template that does not mark them.

        The text up to a turn and the text through it differ by that turn, provided that the
        template renders a prefix of a conversation as a prefix of its text. Where it does not
        (some drop earlier reasoning), nothing is guessed.
        """
        spans = []
        turns = content.turns
        for index in range(content.first_learned, len(turns)):
            if turns[index].role != "assistant":
                continue
            before = self._text_before(example, turns[:index])
            through, _ = self._run_template(example, turns[: index + 1])
            if before is None or not (through.startswith(before) and text.startswith(through)):
                raise UsageError(
                    f"{example.place}: the chat template does not show which tokens are the "
                    "assistant's; set data.loss_on=all, or give the template "
                    "{% generation %} marks"
                )
            spans.append((len(before), len(through)))
        return spans

    def _text_before(self, example: Example, turns: Sequence[Turn]) -> str | None:
        """Return the text up to where an answer starts; None where the template refuses that."""
        try:
            return self._run_template(example, turns, prompt=True)[0]
        except UsageError:
            # Some refuse to render no turns at all, which is what an opening answer follows.
            if turns:
                raise
            return None

    def _run_template(
        self, example: Example, turns: Sequence[Turn], mark: bool = False, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        special: dict[str, Any] = dict(self._tokenizer.special_tokens_map)
        try:
            with _template_clock(self._clock):
                rendered: Any = chat_template_utils.render_jinja_template(
                    conversations=[messages],
                    chat_template=self._template,
                    return_assistant_tokens_mask=mark,
                    add_generation_prompt=prompt,
                    **special,
                )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            # The template is a program of the model's author: besides refusing, it can fail.
            raise UsageError(
                f"{example.place}: the model's chat template refuses this row: {error}"
            ) from None
        texts, spans = rendered
        return texts[0], [(start, end) for start, end in spans[0]] if mark else []


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def template_asks_for_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether the tokens of a conversation would change with the day."""
    return "strftime_now" in (_chat_template(tokenizer) or "")


def _frozen_clock(date: str) -> type[datetime]:
    """Return a `datetime` whose `now` is always that day: tokens must not change overnight."""
    try:
        moment = datetime.strptime(date, "%Y-%m-%d")  # noqa: DTZ007 - a calendar day, no instant
    except ValueError:
        raise RecipeValueError(
            "data.chat_template_date", f"{date} is not in the calendar; write YYYY-MM-DD"
        ) from None

    class FrozenDatetime(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]  # noqa: ARG003
            return moment

    return FrozenDatetime


@contextlib.contextmanager
def _template_clock(frozen: type[datetime]) -> Iterator[None]:
    # Templates call `strftime_now`, which looks the class up in that module at every call.
    names = vars(chat_template_utils)
    clock = names["datetime"]
    names["datetime"] = frozen
    try:
        yield
    finally:
        names["datetime"] = clock
