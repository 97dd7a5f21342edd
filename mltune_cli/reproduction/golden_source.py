"""What a run gave, as a golden's entry: of a recipe's run folder, or of a watched command."""

import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mltune_cli.bundled import BUNDLED_PREFIX
from mltune_cli.digests import json_digest
from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.manifest import MANIFEST_FILE, GitFacts, Manifest, read_manifest
from mltune_cli.paths import is_file, is_folder
from mltune_cli.recipe.layers import flatten
from mltune_cli.reproduction.golden import GoldenEntry, read_golden
from mltune_cli.reproduction.kept_commands import kept_command
from mltune_cli.reproduction.report import ReproductionReport
from mltune_cli.reproduction.run_diff import read_witness, what_is_missing
from mltune_cli.reproduction.witness_files import WitnessFiles
from mltune_cli.witness.record import DIGESTS, WitnessRecord

WITNESS_FOLDER = "witness"
_REPORT = "report.json"
# They name places; what lies there is known by its digest.
_PLACES = ("output_dir", "data.train", "data.validation")


def read_source(path: Path) -> list[GoldenEntry]:
    """Read what `--against` names: a golden file, a run, or the output of an earlier check.

    Raises:
        UsageError: it is none of them, or not whole.
    """
    if not is_folder(path):
        return read_golden(path).entries
    try:
        if is_file(path / MANIFEST_FILE):
            return [entry_of_run(path)]
        if is_file(path / "run-1" / MANIFEST_FILE):
            return [entry_of_run(path / "run-1")]
        if is_file(path / _REPORT) and is_folder(path / "run-1" / WITNESS_FOLDER):
            return [entry_of_command(path / "run-1", checked_command(path), "earlier", None)]
    except NoVerdictError as error:
        raise UsageError(f"--against {path}: {error.message}") from None
    raise UsageError(
        f"--against {path}: is neither a golden file nor a run, nor the output of a check"
    )


def checked_command(output: Path) -> list[str]:
    """Return the command of an earlier check, from its output; `***` stands for secrets.

    Raises:
        UsageError: its report is damaged.
    """
    path = output / _REPORT
    try:
        return shlex.split(_read_report(path).recipe_name)
    except ValueError as error:
        raise UsageError(f"{path}: is damaged: recipe_name: {error}") from None


def _read_report(path: Path) -> ReproductionReport:
    try:
        return ReproductionReport.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: is damaged: {str(error).splitlines()[0]}") from None


def entry_of_run(folder: Path) -> GoldenEntry:
    """Return what a finished run of a recipe gave.

    Raises:
        UsageError: the folder is not a run.
        NoVerdictError: the run is not whole, or was computed in several environments.
    """
    manifest = read_manifest(folder)
    problem = what_is_missing(folder, manifest)
    if problem is not None:
        raise NoVerdictError(f"{folder} is not a whole run: {problem}")
    if len(manifest.environment_classes) > 1:
        raise NoVerdictError(f"{folder} was computed in several environments, one after another")
    witness = read_witness(folder)
    return GoldenEntry(
        subject=manifest.recipe_name,
        kind="recipe",
        environment_class=manifest.environment_class,
        environment=_flat(manifest.environment.deciding()),
        mltune=manifest.mltune,
        commit=_commit(manifest.git),
        recipe=_without_places(flatten(manifest.recipe)),
        inputs=_inputs(manifest),
        last_loss=manifest.result.last_loss,
        records={"main": [_fields(witness[step]) for step in sorted(witness)]},
    )


def entry_of_command(
    folder: Path, command: list[str], mltune: str, git: GitFacts | None
) -> GoldenEntry:
    """Return what a watched command gave.

    Args:
        folder: the run's own, with the witness files of its processes.
        command: as it was given, in the present working directory.
        mltune: the version that watched it.
        git: the commit that it was started in.

    Raises:
        NoVerdictError: there are no records, or they do not tell of their surroundings.
    """
    streams: dict[str, list[WitnessRecord]] = {}
    for name, record in WitnessFiles(folder / WITNESS_FOLDER).new_records():
        streams.setdefault(name, []).append(record)
    found = (r.facts.get("surroundings") for name in sorted(streams) for r in streams[name])
    environment = next((facts for facts in found if isinstance(facts, dict)), None)
    if environment is None:
        raise NoVerdictError(f"{folder}: holds no records of a training")
    environment = _flat(environment)
    return GoldenEntry(
        subject=kept_command(command, Path.cwd()),
        kind="command",
        environment_class=json_digest(environment),
        environment=environment,
        mltune=mltune,
        commit=_commit(git),
        recipe={},
        inputs={},
        last_loss=None,
        records={name: [_fields(record) for record in streams[name]] for name in sorted(streams)},
        digests=DIGESTS,
    )


def _fields(record: WitnessRecord) -> dict[str, Any]:
    """Return a record without its facts: they explain, and are large."""
    bare = replace(record, facts={})
    fields: dict[str, Any] = json.loads(bare.to_json())
    return fields


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": str(leaf) for key, leaf in value.items()}
        elif value is not None:
            flat[name] = str(value)
    return dict(sorted(flat.items()))


def _without_places(recipe: Mapping[str, Any]) -> dict[str, Any]:
    model = str(recipe.get("model.name_or_path", ""))
    is_place = os.path.isabs(model) and not model.startswith(BUNDLED_PREFIX)  # noqa: PTH117
    places = (*_PLACES, "model.name_or_path") if is_place else _PLACES
    return {key: value for key, value in recipe.items() if key not in places}


def _inputs(manifest: Manifest) -> dict[str, str]:
    inputs = {
        "model": manifest.model.digest,
        "tokenizer": manifest.model.tokenizer_digest,
        "training rows": manifest.train_data.digest,
    }
    if manifest.validation_data is not None:
        inputs["validation rows"] = manifest.validation_data.digest
    return inputs


def _commit(git: GitFacts | None) -> str | None:
    return None if git is None else git.commit + ("+" if git.dirty else "")
