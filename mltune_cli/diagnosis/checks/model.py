"""The model: there, whole, and pinned to a commit where it comes from the hub."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from mltune_cli.bundled import BUNDLED_PREFIX
from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order, known
from mltune_cli.diagnosis.hub import (
    COMMIT,
    HubAnswer,
    ask_hub,
    cached_snapshot,
    offline_switches,
)
from mltune_cli.diagnosis.model_files import (
    TOKENIZER_FILES,
    model_folder,
    read_config,
    weight_files,
)
from mltune_cli.diagnosis.subject import Subject, is_hub_name, written
from mltune_cli.paths import is_file, is_folder, sight_problem

_STOPS = "the training will not start"


def look(subject: Subject) -> Sequence[Finding]:
    """Look at the folder, or ask the hub."""
    if subject.loaded is None:
        return []
    section = subject.recipe.model
    name = section.name_or_path or ""
    if is_hub_name(name):
        return _on_the_hub(subject, name, section.revision)
    folder = model_folder(section, subject.variables)
    if folder is None or not is_folder(folder):
        return [
            broken(
                f"model.name_or_path: {name}: {_sight(folder or Path(name))}",
                _STOPS,
                "name a folder that is there, or a hub id",
            )
        ]
    findings = folder_findings(folder, subject)
    if findings:
        return findings
    where = "bundled with mltune" if name.startswith(BUNDLED_PREFIX) else "a folder"
    return [in_order(f"{name} ({where})")]


def _sight(folder: Path) -> str:
    problem = sight_problem(folder)
    return "there is no such folder" if problem is None else f"cannot be read: {problem}"


def folder_findings(folder: Path, subject: Subject) -> list[Finding]:
    """Return what is wrong with a model's folder.

    Args:
        folder: exists.
        subject: tells how long rows are.
    """
    if is_file(folder / "adapter_config.json"):
        return [
            broken(
                f"{folder} holds an adapter, not a model",
                _STOPS,
                "name the adapter's base model; `mltune export --merge` makes one model of both",
                command=f"mltune export --merge {shlex.quote(str(folder.parent))} merged",
            )
        ]
    try:
        config = read_config(folder)
    except FileNotFoundError:
        return [
            broken(
                f"{folder} holds no config.json", _STOPS, "name the folder that does, or a hub id"
            )
        ]
    except (OSError, ValueError) as error:
        return [broken(f"{folder}/config.json cannot be read: {error}", _STOPS, "get it anew")]
    found = []
    missing = missing_weights(folder)
    if missing:
        found.append(
            broken(
                f"{folder} lacks {missing[0]}"
                + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
                _STOPS,
                "get the model's weights as safetensors; other formats are not read",
            )
        )
    if not any(is_file(folder / name) for name in TOKENIZER_FILES):
        found.append(
            broken(f"{folder} has no tokenizer", _STOPS, "copy the model's tokenizer.json into it")
        )
    max_length = subject.recipe.data.max_length
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and max_length > positions:
        found.append(
            broken(
                f"data.max_length is {max_length}, and the model has {positions} positions",
                _STOPS,
                f"lower it: {written(f'data.max_length={positions}')}",
                command=subject.trial("model", f"data.max_length={positions}"),
            )
        )
    return found


def missing_weights(folder: Path) -> list[str]:
    """Return the files of weights that an index names and that are not there."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        named = sorted(set(index["weight_map"].values()))
    except FileNotFoundError:
        return [] if weight_files(folder) else ["model.safetensors"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["a readable model.safetensors.index.json"]
    return [name for name in named if not is_file(folder / name)]


def _on_the_hub(subject: Subject, name: str, revision: str | None) -> list[Finding]:
    snapshot = cached_snapshot(subject.variables, "model", name, revision)
    if offline_switches(subject.variables):
        if snapshot is None:
            return [known(f"{name} was not asked for: the hub is switched off")]
        return _cached(
            subject, name, revision, snapshot, "the hub was not asked: it is switched off"
        )
    answer = ask_hub("model", name, revision)
    if answer.commit is not None:
        return _pinned(subject, name, revision, answer.commit, "the hub has it")
    if answer.problem == "unreachable" and snapshot is not None:
        return _cached(
            subject, name, revision, snapshot, f"the hub does not answer: {answer.detail}"
        )
    return [hub_problem(name, revision, answer, "model")]


def _cached(
    subject: Subject, name: str, revision: str | None, snapshot: Path, note: str
) -> list[Finding]:
    wrong = folder_findings(snapshot, subject)
    return wrong or _pinned(subject, name, revision, snapshot.name, f"it is in the cache ({note})")


def _pinned(
    subject: Subject, name: str, revision: str | None, commit: str, where: str
) -> list[Finding]:
    if revision is not None and COMMIT.fullmatch(revision):
        return [in_order(f"{name} at {revision[:12]}: {where}")]
    branch = revision or "the default branch"
    return [
        doubtful(
            f"{name} is not pinned: model.revision is {branch}, today {commit[:12]}",
            "a branch may move; then the same recipe trains another model",
            written(f"model.revision={commit}"),
            command=subject.trial("model", f"model.revision={commit}"),
        )
    ]


def hub_problem(name: str, revision: str | None, answer: HubAnswer, kind: str) -> Finding:
    """Return what is to be done where the hub does not give something out."""
    key = "model.name_or_path" if kind == "model" else "data.train"
    repo_type = "" if kind == "model" else " --repo-type dataset"
    if answer.problem == "gated":
        return broken(
            f"{name} is gated on the hub, and this token has no access to it",
            _STOPS,
            f"ask for access on the {kind}'s page, then sign in",
            command="hf auth login",
        )
    if answer.problem == "token":
        return broken(
            f"the hub does not take the token: {answer.detail}",
            _STOPS,
            "make a new token, and sign in with it",
            command="hf auth login",
        )
    if answer.problem == "revision":
        return broken(
            f"{name} has no revision {revision}",
            _STOPS,
            f"name a branch, a tag or a commit that the {kind}'s page lists",
        )
    if answer.problem == "missing":
        return broken(
            f"{key}: {name} is neither a folder here nor a {kind} on the hub that you may see",
            _STOPS,
            "correct the name; where it is private or gated, sign in",
            command="hf auth login",
        )
    return broken(
        f"{name} is not in the cache, and the hub does not answer: {answer.detail}",
        _STOPS,
        "connect the machine; or download it elsewhere and name the folder",
        command=f"hf download {shlex.quote(name)}{repo_type}",
    )


CHECK = Check("model", "the model", look)
