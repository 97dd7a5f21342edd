"""The model that a recipe names, as far as its small files tell of it."""

import json
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from mltune_cli.bundled import BUNDLED_PREFIX, bundled_model
from mltune_cli.diagnosis.hub import cached_snapshot
from mltune_cli.errors import UsageError
from mltune_cli.paths import is_folder
from mltune_cli.recipe.schema import ModelSection

# A header of safetensors is some hundred bytes for a tensor; a larger number is no header.
_MOST_HEADER_BYTES = 100 * 2**20
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def model_folder(section: ModelSection, variables: Mapping[str, str]) -> Path | None:
    """Return the folder of a recipe's model; None where it is not on this machine."""
    name = section.name_or_path or ""
    if name.startswith(BUNDLED_PREFIX):
        try:
            return bundled_model(name)
        except UsageError:
            return None
    if is_folder(name):
        return Path(name)
    return cached_snapshot(variables, "model", name, section.revision)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model's configuration.

    Raises:
        OSError: there is none, or it cannot be read.
        ValueError: it is no JSON object.
    """
    value = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("it holds no object")  # noqa: TRY004 - as for any other wrong content
    return value


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a model's weights, as the worker takes them."""
    found = folder.glob("*.safetensors")
    return sorted(path for path in found if not path.name.startswith("consolidated"))


def parameter_count(folder: Path) -> int | None:
    """Return how many parameters a model's files hold; None where they do not tell."""
    files = weight_files(folder)
    counts = [_parameters_in(path) for path in files]
    return sum(c for c in counts if c is not None) if files and None not in counts else None


def _parameters_in(path: Path) -> int | None:
    """Read the header of a safetensors file: its length in eight bytes, then JSON."""
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MOST_HEADER_BYTES:
                return None
            header = json.loads(stream.read(length))
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        return sum(int(prod(tensor["shape"])) for tensor in tensors)
    except (OSError, ValueError, struct.error, AttributeError, KeyError, TypeError):
        return None
