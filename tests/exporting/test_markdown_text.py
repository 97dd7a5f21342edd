"""Names from anywhere, as Markdown that shows them and does nothing else."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mltune_cli.exporting.markdown_text import escaped, fenced, shown

READER = MarkdownIt("gfm-like", {"linkify": False})
MARKUP = "`*_{}[]()#+-.!|~$@&<>\\/:=\"' \n\tabc12é語\u202e\u200b\x00\x1b"


def visible(line: str) -> str:
    """What a reader sees of a list item; fails on anything but text."""
    tokens = READER.parse(f"- name: {line}\n")
    kinds = [token.type for token in tokens]
    assert kinds == [
        "bullet_list_open", "list_item_open", "paragraph_open", "inline", "paragraph_close",
        "list_item_close", "bullet_list_close",
    ]  # fmt: skip
    children = tokens[3].children or []
    assert {child.type for child in children} <= {"text", "text_special", "code_inline"}
    return "".join(child.content for child in children)


@pytest.mark.parametrize("name", ["org/base-1.5", "sha256:12ab", "model.safetensors", "a_b", "x"])
def test_ordinary_names_stand_as_code(name: str) -> None:
    assert shown(name) == f"`{name}`"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my run", "my run"),
        ("a_b", "a_b"),
        ("_a_", "&#95;a&#95;"),
        ("<b>", "&#60;b&#62;"),
        (
            "see http://x.example and www.x.example",
            "see http&#58;//x.example and www&#46;x.example",
        ),
        ("two\nlines", "two lines"),
        ("語é", "語é"),
        ("a\u202eb\x1bc", "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"),
    ],
)
def test_others_stand_as_text(text: str, expected: str) -> None:
    assert escaped(text) == expected
    assert shown(text) == (f"`{text}`" if text == "a_b" else expected)


@given(st.text(alphabet=MARKUP, min_size=1) | st.text(min_size=1))
def test_a_reader_sees_the_name_itself(text: str) -> None:
    seen = visible(shown(text))
    assert seen.startswith("name: ") or not text.split()
    wanted = "".join(
        character
        if unicodedata.category(character)[0] in "LMNPS " or character == " "
        else "\ufffd"
        for character in " ".join(text.split())
    )
    assert seen.removeprefix("name:").strip() == wanted.strip()


@given(st.text(alphabet="`~\n a", max_size=30))
def test_nothing_ends_a_code_block_before_its_end(text: str) -> None:
    tokens = READER.parse(f"{fenced(text, 'yaml')}\n\nafter\n")
    assert [token.type for token in tokens] == [
        "fence", "paragraph_open", "inline", "paragraph_close",
    ]  # fmt: skip
    assert re.sub(r"\s+$", "", tokens[0].content) == text.rstrip()
