"""Secrets in a command line, which is kept in goldens and reports: they are put out of sight.

What is run keeps them; what is written or printed of it has `***` in their place. A secret is known
by the name before it (`--hf_token X`, `API_KEY=X`) or by its own shape (`hf_...`, `ghp_...`).
"""

import re
import shlex
from collections.abc import Iterator, Sequence

HIDDEN = "***"
_SHAPES = (
    re.compile(r"(?<![A-Za-z0-9])(?:hf|api_org)_[A-Za-z0-9]{16,}"),
    re.compile(r"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,})"),
    re.compile(r"(?<![A-Za-z0-9])(?:glpat-|pypi-|nvapi-|sk-)[\w-]{16,}"),
    re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    re.compile(r"(?<![A-Za-z0-9])xox[abposr]-[\w-]{10,}"),
    re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"(?<=://)[^\s/@'\"]+(?=@)"),
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]{8,}|(?<=basic )[A-Za-z0-9+/=]{8,}"),
)
_SECRET_ENDINGS = (
    "token", "secret", "password", "passwd", "passphrase", "credential", "credentials", "apikey",
)  # fmt: skip
_SECRET_PARTS = {"auth", "authorization", "cookie", "bearer", "pwd", "pat"}
# `--text_key` and its like name a column of rows; any other key opens something.
_COLUMNS = {
    "answer", "batch", "cache", "column", "data", "feature", "group", "input", "label", "metric",
    "output", "prompt", "public", "query", "question", "record", "sort", "target", "text",
}  # fmt: skip
# A name with one of these is of something about a secret, or of a token that a model reads.
_HARMLESS_PARTS = {
    "file", "path", "dir", "folder", "id", "ids", "type", "count", "length", "len", "index",
    "limit", "size", "name", "num", "max", "min", "per", "bos", "eos", "pad", "unk", "sep", "cls",
    "mask", "special", "image", "stop",
}  # fmt: skip
_PLAIN_VALUE = re.compile(r"(?i)true|false|none|null|yes|no|auto|bearer|basic|[-+]?\d{1,5}|\*+|")
_ASSIGNMENT = re.compile(r"(?s)([-+]{0,2}[A-Za-z_][\w.-]*)=(.*)")
# Within a text of several words, as `sh -c` takes it. A value follows a flag after a space, a name
# of anything after an equals sign or, as in JSON, a colon.
_NAME_IN_TEXT = re.compile(
    r"(?P<flag>(?<![\w-])--?[A-Za-z_][\w.-]*)(?:=|\s+)"
    r"|(?P<name>(?<![\w.-])[A-Za-z_][\w.-]*)(?:[\"']?\s*:\s*|=)"
)
_VALUE_IN_TEXT = re.compile(
    r"\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|[\"'](?P<open>.+)|(?P<bare>[^\s\"';&|,})]+)",
    re.DOTALL,
)
# A shorter value may stand for many things in other texts.
_LEAST_TELLING = 6


def without_secrets(words: Sequence[str]) -> list[str]:
    """Return the words of a command with `***` in the place of every secret."""
    hidden = list(words)
    for place, start, value in _found(words):
        word = hidden[place]
        # From the end of a word to its beginning, so that the places before stay right.
        hidden[place] = word[:start] + HIDDEN + word[start + len(value) :]
    return hidden


def command_without_secrets(words: Sequence[str]) -> str:
    """Return a command as a shell takes it, with `***` in the place of every secret."""
    return shlex.join(without_secrets(words))


def secrets_in(words: Sequence[str]) -> list[str]:
    """Return the secrets of a command that are long enough to be looked for in other texts.

    The longest come first: one may be a part of another.
    """
    values = {value for _, _, value in _found(words) if len(value) >= _LEAST_TELLING}
    return sorted(values, key=lambda value: (-len(value), value))


def text_without(secrets: Sequence[str], text: str) -> str:
    """Return a text with `***` in the place of known secrets and of what has a secret's shape."""
    for value in secrets:
        text = text.replace(value, HIDDEN)
    for shape in _SHAPES:
        text = shape.sub(HIDDEN, text)
    return text


def _found(words: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yield each secret: number of its word, place in it, itself; the last of a word first."""
    follows_name = False
    for place, word in enumerate(words):
        spans = _in_word(word)
        if follows_name and not word.startswith("-") and _is_value(word):
            spans = [(0, word)]
        follows_name = word.startswith("-") and "=" not in word and is_secret_flag(word)
        for start, value in sorted(spans, reverse=True):
            yield place, start, value


def _in_word(word: str) -> list[tuple[int, str]]:
    match = _ASSIGNMENT.fullmatch(word)
    if match is not None and is_secret_flag(match[1]):
        return [(match.start(2), match[2])] if _is_value(match[2]) else []
    spans: list[tuple[int, str]] = []
    for start, value in [*_named_in(word), *_shaped_in(word)]:
        overlaps = any(start < s + len(v) and s < start + len(value) for s, v in spans)
        if not overlaps:
            spans.append((start, value))
    return spans


def _named_in(text: str) -> Iterator[tuple[int, str]]:
    for name in _NAME_IN_TEXT.finditer(text):
        value = _VALUE_IN_TEXT.match(text, name.end())
        if value is None or not is_secret_flag(name["flag"] or name["name"]):
            continue
        group = value.lastgroup or "bare"
        is_flag = group == "bare" and value[group].startswith("-")
        if _is_value(value[group]) and not is_flag:
            yield value.start(group), value[group]


def _shaped_in(text: str) -> Iterator[tuple[int, str]]:
    for shape in _SHAPES:
        for match in shape.finditer(text):
            yield match.start(), match[0]


def is_secret_flag(name: str) -> bool:
    """Tell whether the name of a flag or a variable says that its value is a secret."""
    spelled = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    parts = [part for part in re.split(r"[^a-z0-9]+", spelled.lower()) if part]
    if _HARMLESS_PARTS.intersection(parts):
        return False
    if any(part.endswith(_SECRET_ENDINGS) or part in _SECRET_PARTS for part in parts):
        return True
    return len(parts) > 1 and parts[-1] == "key" and parts[-2] not in _COLUMNS


def _is_value(text: str) -> bool:
    return _PLAIN_VALUE.fullmatch(text) is None
