"""Two finished runs compared: recipe, environment, data, steps, trained tensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mltune_cli.errors import ExitCode, NoVerdictError, UsageError
from mltune_cli.manifest import Manifest, read_manifest
from mltune_cli.paths import is_folder, sight_problem
from mltune_cli.recipe.layers import flatten
from mltune_cli.reproduction.diff_tree import DiffNode, NodeStatus, RunDiff
from mltune_cli.reproduction.report import stage_meaning
from mltune_cli.reproduction.tensor_files import RawTensor, read_tensors, tensor_distance
from mltune_cli.run_folder import ADAPTER, MODEL, TRAINING_LOG, WITNESS_LOG
from mltune_cli.witness.record import STAGES, WitnessRecord

# Where a run's files lie says nothing about the run.
_PLACES = ("output_dir",)


def diff_runs(folder_a: Path, folder_b: Path) -> RunDiff:
    """Compare two run folders.

    The verdict is about what training did: every stage of every step, and the trained tensors.
    Recipe, environment and data files are shown as what may explain it; where they differ and
    every bit is equal, the runs are equal.

    Raises:
        UsageError: a folder is not a run.
        NoVerdictError: a file of a run is damaged.
    """
    a, b = read_manifest(folder_a), read_manifest(folder_b)
    context = [
        _mapping_node("recipe", _recipe_values(a), _recipe_values(b)),
        _mapping_node("environment", _environment_values(a), _environment_values(b)),
        _mapping_node("data", _data_values(a), _data_values(b)),
    ]
    outcome = [
        _steps_node(folder_a, folder_b),
        _tensors_node(folder_a, folder_b),
    ]
    unfinished = [
        f"{folder} is not a whole run: {problem}"
        for folder, manifest in ((folder_a, a), (folder_b, b))
        if (problem := what_is_missing(folder, manifest))
    ]
    is_different = any(node is not None for node in outcome)
    code = ExitCode.NEGATIVE if is_different else ExitCode.OK
    return RunDiff(
        a=str(folder_a),
        b=str(folder_b),
        verdict="no_verdict" if unfinished else "different" if is_different else "same",
        reason="; ".join(unfinished) or None,
        nodes=tuple(node for node in (*context, *outcome) if node is not None),
        exit_code=ExitCode.NO_VERDICT if unfinished else code,
    )


def what_is_missing(folder: Path, manifest: Manifest) -> str | None:
    """Say what a run lacks of what its manifest promises: nothing equals nothing by itself.

    Raises:
        NoVerdictError: a file of the run is damaged.
    """
    result = manifest.result
    if result.status != "finished":
        return f"its manifest says {result.status}"
    witness = read_witness(folder)
    if sorted(witness) != list(range(result.steps + 1)):
        return f"its {WITNESS_LOG} does not hold the steps 0 to {result.steps}"
    if witness[result.steps].digests.get("parameters") != result.trained_digest:
        return f"its {WITNESS_LOG} and its manifest tell of different trained parameters"
    if not _trained_tensors(folder):
        return "its trained tensors are missing"
    return None


def _recipe_values(manifest: Manifest) -> dict[str, Any]:
    return {key: v for key, v in flatten(manifest.recipe).items() if key not in _PLACES}


def _environment_values(manifest: Manifest) -> dict[str, Any]:
    facts = manifest.environment.model_dump()
    values = {key: value for key, value in facts.items() if not isinstance(value, dict)}
    for group in ("packages", "settings", "variables"):
        values |= {f"{group}.{key}": value for key, value in facts[group].items()}
    return values | {"processes": manifest.processes}


def _data_values(manifest: Manifest) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model.digest": manifest.model.digest,
        "model.tokenizer_digest": manifest.model.tokenizer_digest,
    }
    for name, facts in (("train", manifest.train_data), ("validation", manifest.validation_data)):
        if facts is not None:
            values |= {f"{name}.{key}": v for key, v in facts.model_dump(exclude={"name"}).items()}
    return values


def _mapping_node(name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> DiffNode | None:
    """Return a node with one child for each key whose values differ; None where none does."""
    children = []
    for key in list(a) + [key for key in b if key not in a]:
        if key not in b:
            children.append(DiffNode(key, "only_in_a", a=_shown(a[key])))
        elif key not in a:
            children.append(DiffNode(key, "only_in_b", b=_shown(b[key])))
        elif a[key] != b[key]:
            children.append(DiffNode(key, "different", a=_shown(a[key]), b=_shown(b[key])))
    if not children:
        return None
    equal = len(a.keys() | b.keys()) - len(children)
    return DiffNode(name, "different", detail=f"{equal} equal", children=tuple(children))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _steps_node(folder_a: Path, folder_b: Path) -> DiffNode | None:
    a, b = read_witness(folder_a), read_witness(folder_b)
    losses_a, losses_b = _losses(folder_a), _losses(folder_b)
    children: list[DiffNode] = []
    differing = [step for step in sorted(a.keys() & b.keys()) if a[step].digests != b[step].digests]
    if differing:
        children.append(_first_step_node(a[differing[0]], b[differing[0]]))
        if len(differing) > 1:
            detail = f"{len(differing)} of {len(a.keys() & b.keys())} steps differ"
            children.append(DiffNode("all steps", "different", detail=detail))
    children += [
        node
        for node in (_missing_node("only_in_a", a, b), _missing_node("only_in_b", b, a))
        if node is not None
    ]
    if not children:
        return None
    shared = [s for s in sorted(losses_a.keys() & losses_b.keys()) if losses_a[s] != losses_b[s]]
    if shared:
        last = shared[-1]
        children.append(
            DiffNode(
                f"loss at step {last}", "different", a=repr(losses_a[last]), b=repr(losses_b[last])
            )
        )
    equal = len(a.keys() & b.keys()) - len(differing)
    return DiffNode("steps", "different", detail=f"{equal} equal", children=tuple(children))


def _missing_node(
    status: NodeStatus, present: Mapping[int, WitnessRecord], other: Mapping[int, WitnessRecord]
) -> DiffNode | None:
    missing = present.keys() - other.keys()
    if not missing:
        return None
    name = f"steps {min(missing)} to {max(missing)}"
    return DiffNode(name, status, detail=f"{len(missing)} steps")


def _first_step_node(a: WitnessRecord, b: WitnessRecord) -> DiffNode:
    stages = tuple(
        DiffNode(stage, "different", a=a.digests.get(stage), b=b.digests.get(stage))
        for stage in STAGES
        if a.digests.get(stage) != b.digests.get(stage)
    )
    detail = f"parts first in {stages[0].name}: {stage_meaning(a.step, stages[0].name)}"
    return DiffNode(f"step {a.step}", "different", detail=detail, children=stages)


def read_witness(folder: Path) -> dict[int, WitnessRecord]:
    """Read a run's `witness.jsonl`, by step.

    Raises:
        NoVerdictError: the file is missing or damaged; the sentence names the line.
    """
    records = {}
    for number, fields in _json_lines(folder / WITNESS_LOG):
        try:
            record = WitnessRecord.from_fields(fields)
        except ValueError as error:
            raise NoVerdictError(f"{folder / WITNESS_LOG}:{number}: is damaged: {error}") from None
        records[record.step] = record
    return records


def _losses(folder: Path) -> dict[int, float]:
    return {
        int(fields["step"]): float(fields["loss"])
        for _, fields in _json_lines(folder / TRAINING_LOG)
        if "step" in fields and "loss" in fields
    }


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NoVerdictError(f"{path}: cannot be read: {error}") from None
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError:
            fields = None
        if not isinstance(fields, dict):
            raise NoVerdictError(f"{path}:{number}: is damaged: not a JSON object")
        rows.append((number, fields))
    return rows


def _tensors_node(folder_a: Path, folder_b: Path) -> DiffNode | None:
    a, b = _trained_tensors(folder_a), _trained_tensors(folder_b)
    children = []
    for name in sorted(a.keys() | b.keys()):
        if name not in b:
            children.append(DiffNode(name, "only_in_a"))
        elif name not in a:
            children.append(DiffNode(name, "only_in_b"))
        else:
            node = _tensor_node(name, a[name], b[name])
            if node is not None:
                children.append(node)
    if not children:
        return None
    equal = len(a.keys() | b.keys()) - len(children)
    return DiffNode("tensors", "different", detail=f"{equal} equal", children=tuple(children))


def _tensor_node(name: str, a: RawTensor, b: RawTensor) -> DiffNode | None:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return DiffNode(
            name, "different", a=f"{a.dtype} {list(a.shape)}", b=f"{b.dtype} {list(b.shape)}"
        )
    distance = tensor_distance(a, b)
    if distance is None:
        return None
    parts = [f"{distance.differing} of {distance.elements} elements"]
    if distance.largest_absolute is not None:
        parts.append(f"at most {distance.largest_absolute:.3g} apart")
    if distance.largest_ulp is not None:
        parts.append(f"at most {distance.largest_ulp} ulp")
    parts.append(f"first at {list(distance.first_index)}")
    first_a, first_b = distance.first_values
    return DiffNode(name, "different", detail=", ".join(parts), a=first_a, b=first_b)


def _trained_tensors(folder: Path) -> dict[str, RawTensor]:
    """Return the trained tensors of a run; none where it ended before they were written."""
    tensors: dict[str, RawTensor] = {}
    for name in (ADAPTER, MODEL):
        for path in sorted((folder / name).glob("*.safetensors")):
            tensors |= read_tensors(path)
    return tensors


def require_runs(*folders: Path) -> None:
    """Refuse paths that are not run folders.

    Raises:
        UsageError: names the first that is none.
    """
    for folder in folders:
        if problem := sight_problem(folder):
            raise UsageError(f"{folder}: cannot be read: {problem}")
        if not is_folder(folder):
            raise UsageError(f"{folder}: no such run folder")
        if is_folder(folder / "run-1"):
            raise UsageError(f"{folder}: holds the runs of a check; name one, {folder / 'run-1'}")
