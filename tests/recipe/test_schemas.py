"""The published JSON schemas: frozen, and true of what a real run writes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

PROJECT = Path(__file__).parent.parent.parent
FOLDER = PROJECT / "docs" / "schemas"
TOOL = PROJECT / "tools" / "write_schemas.py"


def validator(name: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_published_schemas_are_those_of_the_code() -> None:
    """A change of a file format is seen here; `python tools/write_schemas.py` writes it down."""
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(FOLDER.glob("*.schema.json"))) >= 5


def test_the_check_finds_a_schema_that_differs_or_lacks(tmp_path: Path) -> None:
    tool = tmp_path / "tools" / "write_schemas.py"
    tool.parent.mkdir()
    shutil.copy(TOOL, tool)

    def run(*options: str) -> int:
        return subprocess.run([sys.executable, tool, *options], capture_output=True).returncode

    assert run("--check") == 1
    assert not (tmp_path / "docs").exists()
    assert (run(), run("--check")) == (0, 0)
    schema = tmp_path / "docs" / "schemas" / "report.schema.json"
    schema.write_text(schema.read_text().replace("verdict", "judgement"))
    assert run("--check") == 1


def test_what_a_run_writes_fits_the_schemas(finished_run: Path) -> None:
    validator("manifest").validate(json.loads((finished_run / "manifest.json").read_text()))
    lines = (finished_run / "witness.jsonl").read_text().splitlines()
    assert len(lines) == 4
    for line in lines:
        validator("witness").validate(json.loads(line))


def test_a_diff_fits_its_schema(mltune: Any, finished_run: Path, tmp_path: Path) -> None:
    """Of two runs that differ in a step, so that the tree is not empty."""
    changed = tmp_path / "changed"
    shutil.copytree(finished_run, changed)
    witness = changed / "witness.jsonl"
    lines = witness.read_text().splitlines()
    record = json.loads(lines[2])
    lines[2] = json.dumps(record | {"loss": "0" * len(record["loss"])})
    witness.write_text("\n".join(lines) + "\n")
    for other, code in ((finished_run, 0), (changed, 1)):
        done = mltune("diff", "--json", finished_run, other, cwd=tmp_path)
        assert done.code == code, done.stderr
        validator("diff").validate(json.loads(done.stdout))


@pytest.mark.parametrize("path", sorted((PROJECT / "templates" / "recipes").glob("*.yaml")))
def test_the_bundled_recipes_fit_the_schema(path: Path) -> None:
    """As an editor sees them that checks YAML against the published schema."""
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    # YAML 1.1 in the reader used here takes 5e-3 for text.
    if isinstance(tree["train"].get("learning_rate"), str):
        tree["train"]["learning_rate"] = float(tree["train"]["learning_rate"])
    validator("recipe").validate(tree)


def test_the_recipe_schema_refuses_what_the_command_refuses() -> None:
    for tree in (
        {"train": {"lr": 1}},
        {"train": {"max_steps": 0}},
        {"model": {"dtype": "float16"}},
        {"nonsense": {}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            validator("recipe").validate(tree)
