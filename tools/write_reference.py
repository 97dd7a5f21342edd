"""Write `docs/reference/` from the program itself, or check with `--check` that it is true.

The command reference is each command's own help text; the recipe reference is the schema. A
reference that is generated cannot lie about a flag.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
COMMANDS = ("", "train", "repro-check", "build-image", "diff", "export")


def command_reference() -> str:
    """Return the help text of every command as one Markdown page."""
    parts = ["# Commands", "", "Written by `python tools/write_reference.py`; do not edit."]
    mltune = Path(sys.executable).parent / "mltune"
    for command in COMMANDS:
        arguments = [*command.split(), "--help"]
        text = subprocess.run(
            [mltune, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "90", "TERMINAL_WIDTH": "90"},
        ).stdout
        parts += ["", f"## mltune {command}".rstrip(), "", "```", text.strip(), "```"]
    return "\n".join(parts) + "\n"


def recipe_reference() -> str:
    """Return every key of the recipe with type, default and meaning as one Markdown page."""
    from mltune_cli.recipe.schema import Recipe

    schema = Recipe.model_json_schema()
    lines = [
        "# Recipe keys",
        "",
        "Written by `python tools/write_reference.py`; do not edit.",
        "The JSON schema is [recipe.schema.json](../schemas/recipe.schema.json).",
    ]
    for name, field in schema["properties"].items():
        if "$ref" not in field:
            lines += ["", f"## {name}", "", *_table({name: field})]
            continue
        section = schema["$defs"][field["$ref"].rpartition("/")[2]]
        lines += ["", f"## {name}", "", section["description"], "", *_table(section["properties"])]
    return "\n".join(lines) + "\n"


def _table(fields: dict[str, Any]) -> list[str]:
    rows = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        default = json.dumps(field["default"]) if "default" in field else "required"
        meaning = field.get("description", "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_values(field)} | `{default}` | {meaning} |")
    return rows


def _values(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_values(option) for option in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    bounds = [
        f"{words} {field[key]:g}"
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("exclusiveMaximum", "below"),
        )
        if key in field
    ]
    names = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "`true`, `false`",
        "null": "`null`",
        "array": "list",
    }
    return ", ".join([names[field["type"]], *bounds])


def main() -> int:
    """Write or check; return the exit status."""
    pages = {"commands.md": command_reference(), "recipe.md": recipe_reference()}
    if "--check" in sys.argv[1:]:
        for name, text in pages.items():
            path = FOLDER / name
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                print(f"docs/reference/{name} is out of date; run python tools/write_reference.py")
                return 1
        return 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
