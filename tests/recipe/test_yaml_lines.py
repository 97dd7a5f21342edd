"""Recipe files: every value with its line, and every way in which a file is no recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from mltune_cli.errors import UsageError
from mltune_cli.recipe.yaml_lines import PlacedValue, parse_scalar, read_placed_values


def refusal(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "r.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UsageError) as caught:
        read_placed_values(path)
    assert "\n" not in caught.value.message
    return caught.value.message.replace(f"{tmp_path}/", "")


def test_values_come_flat_and_with_the_line_of_their_key(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("# a comment\nmodel:\n\n  dtype: auto\ntrain: {lr: 1, b: [2,\n 3]}\nout: x\n")
    assert read_placed_values(path) == [
        PlacedValue("model.dtype", "auto", 4),
        PlacedValue("train.lr", 1, 5),
        PlacedValue("train.b", [2, 3], 5),
        PlacedValue("out", "x", 7),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel:\r\n  dtype: auto\r\n")
    assert read_placed_values(path) == [PlacedValue("model.dtype", "auto", 2)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("train:\n  a: 1\n  b: 2\n  a: 3\n", "r.yaml:4: train.a: stands already on line 2"),
        ("train:\n  a: 1\nmodel:\n  b: 1\ntrain:\n  c: 1\n",
         "r.yaml:5: train: stands already on line 1"),
        ("train:\n  a: 1\ntrain.a: 2\n", "r.yaml:3: train.a: stands already on line 2"),
        ("", "r.yaml: is empty; a recipe needs at least data.train"),
        ("# only a comment\n", "r.yaml: is empty; a recipe needs at least data.train"),
        ("- a\n- b\n", "r.yaml:1: a recipe is a mapping of sections"),
        ("\n\njust text\n", "r.yaml:3: a recipe is a mapping of sections"),
        ("model:\n  a: [1, 2\n", ("r.yaml:3: not valid YAML: expected ',' or ']', but got "
         "'<stream end>'")),
        ("model:\n\ta: 1\n", ("r.yaml:2: not valid YAML: found character '\\t' that cannot start "
         "any token")),
        ("a: 1\n---\nb: 2\n", "r.yaml:2: not valid YAML: but found another document"),
        ("a: *nobody\n", "r.yaml:1: not valid YAML: found undefined alias 'nobody'"),
        ("a: &a [*a]\n", "r.yaml:1: not valid YAML: found unconstructable recursive node"),
        ("a: !!int five\n", "r.yaml:1: a: not a value that YAML can hold"),
        ("a:\n  b: !!timestamp x\n", "r.yaml:2: a.b: not a value that YAML can hold"),
        (b"model: caf\xe9\n", "r.yaml: not UTF-8 text (byte 10); save it as UTF-8"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused_with_the_line(
    tmp_path: Path, text: str | bytes, sentence: str
) -> None:
    assert refusal(tmp_path, text) == sentence


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch planted']\n",
        "a: !!python/object:pathlib.Path {}\n",
        "a: !!python/name:os.system\n",
        "a:\n  b: !!python/module:os\n",
        "!!python/object/apply:os.system ['touch planted']\n",
        "? !!python/object/apply:os.system ['touch planted']\n: 1\n",
    ],
)
def test_tags_that_would_run_code_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Recipes are data: a file from a stranger cannot make an object, let alone a process."""
    monkeypatch.chdir(tmp_path)
    message = refusal(tmp_path, text)
    assert message.startswith("r.yaml:")
    assert "python" in message or "mapping of sections" in message
    assert not (tmp_path / "planted").exists()
    value = text.partition(": ")[2]
    if "python" in value:
        with pytest.raises(ValueError, match="python"):
            parse_scalar(value)


def test_nesting_that_exhausts_the_stack_is_one_sentence(tmp_path: Path) -> None:
    text = "a: " + "[" * 20_000 + "]" * 20_000
    assert refusal(tmp_path, text) == "r.yaml: not valid YAML: nested too deeply"
    with pytest.raises(ValueError):
        parse_scalar("[" * 20_000)


def test_a_number_with_more_digits_than_python_reads_is_one_sentence(tmp_path: Path) -> None:
    assert refusal(tmp_path, f"a: {'9' * 5000}\n") == "r.yaml:1: a: not a value that YAML can hold"


def test_aliases_cannot_be_multiplied(tmp_path: Path) -> None:
    """Nested aliases that would spell a thousand million values are read in no time."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{x: *a{n - 1}, y: *a{n - 1}}}" for n in range(1, 40)]
    path = tmp_path / "r.yaml"
    path.write_text("\n".join(lines))
    assert len(read_placed_values(path)) == 1 + 2 * 39


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path, problem in (
        (tmp_path / "none.yaml", "no such recipe file"),
        (tmp_path, "cannot be read: Is a directory"),
        (tmp_path / ("x" * 300), "cannot be read: File name too long"),
    ):
        with pytest.raises(UsageError) as caught:
            read_placed_values(path)
        assert caught.value.message == f"{path}: {problem}"
