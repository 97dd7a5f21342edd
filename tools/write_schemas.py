"""Writes the JSON schemas of what mltune reads and writes to docs/schemas/, or checks them.

Usage: python tools/write_schemas.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mltune_cli.diagnosis.report import DoctorReport
from mltune_cli.imaging.receipt import ImageReceipt
from mltune_cli.manifest import Manifest
from mltune_cli.recipe.schema import Recipe
from mltune_cli.reproduction.diff_tree import DIFF_SCHEMA, RunDiff
from mltune_cli.reproduction.golden import Golden
from mltune_cli.reproduction.report import ReproductionReport
from mltune_cli.witness.record import STAGES

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "schemas"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """Return each schema by the name of its file."""
    described = {
        "recipe": Recipe.model_json_schema(),
        "manifest": Manifest.model_json_schema(mode="serialization"),
        "report": ReproductionReport.model_json_schema(mode="serialization"),
        "golden": Golden.model_json_schema(mode="serialization"),
        "diff": diff_schema(),
        "doctor": DoctorReport.model_json_schema(mode="serialization"),
        "image": ImageReceipt.model_json_schema(mode="serialization"),
        "witness": witness_schema(),
    }
    return {
        f"{name}.schema.json": {"$schema": _DIALECT, **schema} for name, schema in described.items()
    }


def diff_schema() -> dict[str, Any]:
    """Return the schema of `mltune diff --json`."""
    schema = TypeAdapter(RunDiff).json_schema(mode="serialization")
    # The exit code is the process's, not the object's; the name of the schema is added instead.
    del schema["properties"]["exit_code"]
    schema.get("$defs", {}).pop("ExitCode", None)
    schema["properties"] = {"schema_name": {"const": DIFF_SCHEMA}, **schema["properties"]}
    schema["required"] = list(schema["properties"])
    return schema | {"additionalProperties": False}


def witness_schema() -> dict[str, Any]:
    """Return the schema of one line of `witness.jsonl`."""
    digest = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
    return {
        "title": "WitnessRecord",
        "description": "One line of witness.jsonl: the digests of a step; 0 is the initial state.",
        "type": "object",
        "properties": {
            "step": {"type": "integer", "minimum": 0},
            **{stage: dict(digest) if stage != "loss" else {"type": "string"} for stage in STAGES},
        },
        "required": ["step"],
        "additionalProperties": False,
    }


def main() -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; 1 on a difference")
    check = parser.parse_args().check
    status = 0
    for name, schema in schemas().items():
        path = FOLDER / name
        text = json.dumps(schema, indent=2) + "\n"
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        if check:
            print(f"{path} is not what the code says; run python tools/write_schemas.py")
            status = 1
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote {path}")
    return status


if __name__ == "__main__":
    sys.exit(main())
