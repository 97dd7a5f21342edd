"""What a run trained, as files: whole, of this run, and bit for bit what it wrote."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.exporting.tensor_digest import adapter_digest, raw_tensors_digest
from mltune_cli.manifest import Manifest
from mltune_cli.recipe.schema import Recipe
from mltune_cli.reproduction.tensor_files import RawTensor, read_tensors

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "metadata.json")
_METADATA = "metadata.json"
_AGAIN = "take the folder from a backup, or train again"


@dataclass(frozen=True)
class TrainedState:
    """What the files say of the parameters in them.

    Attributes:
        digest: what the witness calls them; None where the files do not tell (a model that was
            trained in parts, or whose tensors are named otherwise in files).
        step: the step after which they were written; None where an older mltune did not say.
    """

    digest: str | None
    step: int | None


def exported_files(folder: Path, recipe: Recipe) -> list[Path]:
    """Return the files of `adapter/`, `model/` or `best/` that other tools read, sorted.

    Raises:
        UsageError: one is missing.
    """
    if recipe.adapter.method == "full":
        files = sorted(path for path in _entries(folder) if path.is_file())
        has_weights = any(path.suffix == ".safetensors" for path in files)
        needed = ["config.json", _METADATA] if has_weights else ["model.safetensors"]
        needed += _parts(folder)
    else:
        files = [folder / name for name in ADAPTER_FILES]
        needed = list(ADAPTER_FILES)
    for name in needed:
        if not (folder / name).is_file():
            raise UsageError(f"{folder / name}: is missing; {_AGAIN}")
    return files


def _parts(folder: Path) -> list[str]:
    """Return the files that a large model is divided into, as its index names them."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    places = _json_object(index).get("weight_map")
    if not isinstance(places, dict):
        raise UsageError(f"{index}: has no weight_map; {_AGAIN}")
    return sorted({str(name) for name in places.values()})


def _entries(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None


def trained_state(files: Sequence[Path], manifest: Manifest, recipe: Recipe) -> TrainedState:
    """Check that the files are whole and of one run, and read what state they hold.

    Args:
        files: as `exported_files` returns them.
        manifest: of the run.
        recipe: of the run.

    Raises:
        UsageError: a file is damaged, or another run wrote it.
    """
    folder = files[0].parent
    metadata = _json_object(folder / _METADATA)
    _require_same_run(folder / _METADATA, metadata, manifest)
    is_full = recipe.adapter.method == "full"
    _json_object(folder / ("config.json" if is_full else "adapter_config.json"))
    tensors: dict[str, RawTensor] = {}
    weights = [path for path in files if path.suffix == ".safetensors"]
    for path in weights:
        tensors |= _whole_tensors(path)
    saved, step = metadata.get("saved_keys"), metadata.get("step")
    has_written_names = isinstance(saved, list) and tensors.keys() == set(map(str, saved))
    if not has_written_names and not is_full:
        raise UsageError(
            f"{weights[0]}: does not hold the tensors that {_METADATA} lists; {_AGAIN}"
        )
    digest = raw_tensors_digest(tensors) if is_full else adapter_digest(tensors)
    is_comparable = has_written_names and not (is_full and recipe.model.sharding != "none")
    return TrainedState(digest if is_comparable else None, step if isinstance(step, int) else None)


def _require_same_run(path: Path, metadata: Mapping[str, Any], manifest: Manifest) -> None:
    expected = {"recipe_digest": manifest.recipe_digest, "model_digest": manifest.model.digest}
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise UsageError(f"{path}: is of another run: its {key} is not the manifest's")


def _whole_tensors(path: Path) -> dict[str, RawTensor]:
    try:
        return read_tensors(path)
    except NoVerdictError as error:
        # There, a damaged file leaves a comparison open; here, it is the input that is wrong.
        raise UsageError(f"{error.message}; {_AGAIN}") from None


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}; {_AGAIN}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: is no JSON object; {_AGAIN}")
    return value
