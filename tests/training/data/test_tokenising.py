"""Which tokens count in the loss, checked by turning exactly those back into text."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from mltune_cli.training.data.formats import read_example
from mltune_cli.training.data.rendering import ExampleRenderer, Piece, RenderedExample
from mltune_cli.training.data.sources import SourceRow
from mltune_cli.training.data.tokenising import TokenisedRow, Tokeniser

Tokenizers = Callable[[str | None], PreTrainedTokenizerBase]

examples = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def tokenise(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    learn_all: bool = False,
    max_length: int = 4096,
) -> list[TokenisedRow]:
    read = [read_example(SourceRow(f"x:{n}", row), "auto") for n, row in enumerate(rows)]
    renderer = ExampleRenderer(tokenizer, learn_all, "2026-01-01")
    return list(Tokeniser(tokenizer, max_length).tokenise(renderer.render(read)))


def whole(tokenizer: PreTrainedTokenizerBase, row: TokenisedRow) -> str:
    return tokenizer.decode(row.input_ids)


def targets(tokenizer: PreTrainedTokenizerBase, row: TokenisedRow) -> str:
    """The text of the tokens that count, with a bar between runs of them."""
    runs: list[list[int]] = []
    before = False
    for token, counts in zip(row.input_ids, row.is_target, strict=True):
        if counts:
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = counts
    return "|".join(tokenizer.decode(run) for run in runs)


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where is Åsk?"},
    {"role": "assistant", "content": " North of Hest. "},
    {"role": "user", "content": "日本?"},
    {"role": "assistant", "content": "🦊 no"},
]
END = "<|end|>"
TALK_TEXT = (
    "<|system|>Be brief.<|end|><|user|>Where is Åsk?<|end|><|assistant|> North of Hest. <|end|>"
    "<|user|>日本?<|end|><|assistant|>🦊 no<|end|>"
)
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "text": ({"text": "Åsk is north."}, f"Åsk is north.{END}", f"Åsk is north.{END}"),
    "prompt alone": ({"prompt": "Åsk is."}, f"Åsk is.{END}", f"Åsk is.{END}"),
    "input alone": ({"input": "Åsk is."}, f"Åsk is.{END}", f"Åsk is.{END}"),
    "prompt + completion": (
        {"prompt": "Where is Åsk?\nAnswer:", "completion": " North of Hest."},
        f"Where is Åsk?\nAnswer: North of Hest.{END}",
        f" North of Hest.{END}",
    ),
    "a word divided between prompt and completion": (
        {"prompt": "har", "completion": "bour"},
        f"harbour{END}",
        f"bour{END}",
    ),
    "messages": ({"messages": TURNS}, TALK_TEXT, f" North of Hest. {END}|🦊 no{END}"),
    "sharegpt": (
        {"conversations": [
            {"from": {"user": "human", "assistant": "gpt"}.get(turn["role"], turn["role"]),
             "value": turn["content"]} for turn in TURNS]},
        TALK_TEXT,
        f" North of Hest. {END}|🦊 no{END}",
    ),
    "alpaca": (
        {"instruction": "Say where.", "input": "Åsk", "output": "North."},
        f"<|user|>Say where.\n\nÅsk{END}<|assistant|>North.{END}",
        f"North.{END}",
    ),
    "question + answer": (
        {"question": "Where is Åsk?", "answer": "North."},
        f"<|user|>Where is Åsk?{END}<|assistant|>North.{END}",
        f"North.{END}",
    ),
    "an opening answer": (
        {"messages": [TURNS[2], TURNS[1]]},
        f"<|assistant|> North of Hest. {END}<|user|>Where is Åsk?{END}",
        f" North of Hest. {END}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", ["tokenizer", "unmarked"])
@pytest.mark.parametrize("case", CASES)
def test_the_tokens_that_count_are_the_answers(
    request: pytest.FixtureRequest, which: str, case: str
) -> None:
    """The first token of a row, which nothing predicts, never counts."""
    tokenizer = request.getfixturevalue(which)
    fields, text, learned = CASES[case]
    (row,) = tokenise(tokenizer, [fields])
    assert whole(tokenizer, row) == text
    first = tokenizer.decode(row.input_ids[:1])
    assert targets(tokenizer, row) == (learned.removeprefix(first) if learned == text else learned)
    assert not row.is_target[0]
    assert row.target_count == sum(row.is_target) > 0


@pytest.mark.parametrize("which", ["tokenizer", "unmarked"])
@pytest.mark.parametrize("case", CASES)
def test_loss_on_everything_counts_all_tokens_but_the_first(
    request: pytest.FixtureRequest, which: str, case: str
) -> None:
    tokenizer = request.getfixturevalue(which)
    fields, text, _ = CASES[case]
    (row,) = tokenise(tokenizer, [fields], learn_all=True)
    assert whole(tokenizer, row) == text
    assert row.is_target == [False] + [True] * (len(row.input_ids) - 1)
    assert row.input_ids == tokenise(tokenizer, [fields])[0].input_ids


WORDS = st.text(max_size=20).filter(lambda text: "<|" not in text)
TALKS = st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=4)


@given(TALKS, st.booleans(), st.booleans())
@examples
def test_marks_and_prefixes_select_the_same_tokens(
    tokenizer: PreTrainedTokenizerBase,
    unmarked: PreTrainedTokenizerBase,
    talk: list[tuple[str, str]],
    answer_first: bool,
    learn_all: bool,
) -> None:
    turns = [
        {"role": role, "content": content}
        for asked, said in talk
        for role, content in (("user", asked), ("assistant", said))
    ][answer_first:]
    (by_marks,) = tokenise(tokenizer, [{"messages": turns}], learn_all)
    (by_prefix,) = tokenise(unmarked, [{"messages": turns}], learn_all)
    assert by_marks == by_prefix
    if not learn_all:
        said = [turn["content"] + END for turn in turns if turn["role"] == "assistant"]
        assert targets(tokenizer, by_marks) == "|".join(said)


@given(st.text(max_size=30), st.text(max_size=30).filter(str.strip))
@examples
def test_any_completion_counts_whole_and_alone(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str
) -> None:
    """Prompt and completion are tokenised apart, so no token reaches over the border."""
    (row,) = tokenise(tokenizer, [{"prompt": prompt, "completion": completion}])
    own = tokenizer(completion)["input_ids"]
    before = tokenizer(prompt)["input_ids"] if prompt else []
    assert row.input_ids == [*before, *own, tokenizer.eos_token_id]
    expected = [False] * len(before) + [True] * (len(own) + 1)
    expected[0] = False
    assert row.is_target == expected


@given(st.tuples(st.integers(0, 44), st.integers(0, 44)).map(sorted))
@examples
def test_a_token_that_reaches_out_of_the_learned_part_does_not_count(
    tokenizer: PreTrainedTokenizerBase, learned: list[int]
) -> None:
    """A template may mark half a word; the tokens wholly inside count, and no other."""
    text, (start, end) = "The harbour of Orlen is called Tidegate, yes.", learned
    piece = Piece(text, ((start, end),))
    (row,) = Tokeniser(tokenizer, 99).tokenise([RenderedExample("x:1", (piece,), ends_text=False)])
    position = 0
    for index, (token, counts) in enumerate(zip(row.input_ids, row.is_target, strict=True)):
        after = position + len(tokenizer.decode([token]))
        assert counts == (index > 0 and start <= position and after <= end)
        position = after
    assert position == len(text)


@given(st.lists(st.sampled_from(sorted(CASES)), min_size=1, max_size=8), st.integers(2, 60))
@examples
def test_a_row_is_the_same_in_any_company(
    tokenizer: PreTrainedTokenizerBase, names: list[str], max_length: int
) -> None:
    rows = [CASES[name][0] for name in names]
    together = tokenise(tokenizer, rows, max_length=max_length)
    assert together == [tokenise(tokenizer, [row], max_length=max_length)[0] for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_a_long_row_is_cut_at_its_end_and_says_so(
    tokenizer: PreTrainedTokenizerBase, case: str
) -> None:
    fields = CASES[case][0]
    (full,) = tokenise(tokenizer, [fields])
    assert not full.was_cut
    for limit in range(2, len(full.input_ids) + 2):
        (row,) = tokenise(tokenizer, [fields], max_length=limit)
        assert row.input_ids == full.input_ids[:limit]
        assert row.is_target == full.is_target[:limit]
        assert row.was_cut == (limit < len(full.input_ids))


def test_a_tokenizer_that_opens_texts_opens_texts_and_no_conversation(
    tokenizer_with: Tokenizers, tokenizer: PreTrainedTokenizerBase
) -> None:
    """A template writes its own opening; a text gets it from here, once, and it never counts."""
    opening = tokenizer_with("{{ bos_token }}" + (tokenizer.chat_template or ""))
    opening.bos_token = "<|pad|>"
    opening.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A", special_tokens=[("<|pad|>", 0)]
    )
    assert opening("a")["input_ids"][0] == opening.bos_token_id == 0
    rows = tokenise(
        opening, [CASES["prompt + completion"][0], {"text": "One."}, CASES["alpaca"][0]]
    )
    assert [row.input_ids.count(0) for row in rows] == [1, 1, 1]
    assert [row.input_ids[0] for row in rows] == [0, 0, 0]
    assert [targets(opening, row) for row in rows] == [
        f" North of Hest.{END}", f"One.{END}", f"North.{END}",
    ]  # fmt: skip


def test_a_tokenizer_without_an_end_token_adds_none(tokenizer_with: Tokenizers) -> None:
    endless = tokenizer_with(None)
    endless.eos_token = None
    (row,) = tokenise(endless, [CASES["prompt + completion"][0]])
    assert targets(endless, row) == " North of Hest."
