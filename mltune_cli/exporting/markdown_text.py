"""Text of unknown origin, put into Markdown so that it is shown and nothing more.

A name may hold what Markdown, HTML or a site's own extensions read as markup: a link, a script, a
table's bar, a mention, a formula, or marks that turn the direction of reading.
"""

import re
import unicodedata

# These stand for themselves in every Markdown when they are not at the start of a line.
_PLAIN = re.compile(r"[A-Za-z0-9 .,;:/+=?'\"%()^-]")
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/+-]*", re.ASCII)
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def shown(text: str) -> str:
    """Return a name as code where it is made of harmless characters, else as escaped text."""
    return f"`{text}`" if _CODE.fullmatch(text) and "://" not in text else escaped(text)


def escaped(text: str) -> str:
    """Return one line of prose without any markup of its own."""
    line = " ".join(text.split())
    parts = []
    for index, character in enumerate(line):
        if _PLAIN.match(character) or _is_inside_word(line, index):
            parts.append(character)
        elif ord(character) < 128 and character.isprintable():
            parts.append(f"&#{ord(character)};")
        else:
            parts.append(character if _is_visible(character) else _REPLACEMENT)
    # Addresses would become links by themselves.
    return re.sub(r"(?i)\bwww\.", "www&#46;", "".join(parts)).replace("://", "&#58;//")


def _is_inside_word(line: str, index: int) -> bool:
    """Tell whether an underscore stands between letters or digits, where it emphasises nothing."""
    return line[index] == "_" and bool(
        re.fullmatch(r"\w_\w", line[index - 1 : index + 2], re.ASCII)
    )


def _is_visible(character: str) -> bool:
    """Tell letters, marks, numbers, signs and punctuation from what steers the reader's screen."""
    return unicodedata.category(character)[0] in "LMNPS"


def fenced(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
