"""Checkpoints: parameters, optimizer state and step, written so that a kill leaves whole ones.

A checkpoint is written beside its place, flushed to the disk, moved there, and marked complete
last. The mark holds the digests of its files: what was cut or changed later is passed over with a
sentence, never loaded.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mltune_cli.digests import file_digest
from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.run_folder import CHECKPOINTS
from mltune_cli.training.optimization import optimizer_tensors
from mltune_cli.training.sharding import like, whole_tensors
from mltune_cli.training.step import TrainingState

_TENSORS, _STATE, _MARK = "state.safetensors", "state.json", "complete.json"
_NAME = re.compile(r"step-(\d+)")
_PARAMETER, _OPTIMIZER = "parameter.", "optimizer."


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; resuming under another identity is refused.

    Attributes:
        recipe: the values that decide bits, by dotted key.
        digests: content digests of model, tokenizer and training data, by name.
    """

    recipe: dict[str, Any]
    digests: dict[str, str]

    def changes_from(self, other: "Identity") -> list[str]:
        """Name what differs, as `key (was a, is b)`."""
        was, now = other.recipe | other.digests, self.recipe | self.digests
        return [
            f"{key} (was {was.get(key)!r}, is {now.get(key)!r})"
            for key in sorted(was.keys() | now.keys())
            if was.get(key) != now.get(key)
        ]


@dataclass(frozen=True)
class Provenance:
    """By what the steps of a run were taken, those before this start included; each sorted.

    Attributes:
        environment_classes: more than one where a run was moved.
        process_counts: by how many processes; more than one where some were lost or joined.
    """

    environment_classes: tuple[str, ...] = ()
    process_counts: tuple[int, ...] = ()

    def and_of(self, environment_classes: Iterable[str], process_count: int) -> "Provenance":
        """Return the provenance of these steps and of those to come."""
        return Provenance(
            tuple(sorted({*self.environment_classes, *environment_classes})),
            tuple(sorted({*self.process_counts, process_count})),
        )


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    folder: Path
    step: int
    last_loss: float
    identity: Identity
    provenance: Provenance


@dataclass(frozen=True)
class Snapshot:
    """The state of a run after a step, whole and on the CPU.

    Attributes:
        step: steps done.
        last_loss: of the last one.
        tensors: parameters and optimizer state, by prefixed name.
    """

    step: int
    last_loss: float | None
    tensors: dict[str, torch.Tensor]


def snapshot(state: TrainingState, *, keep: bool = True) -> Snapshot:
    """Take the state of a run. Where it is divided, all processes must ask.

    Args:
        state: is not changed.
        keep: False in a process that only helps the others to make tensors whole.
    """
    tensors = {_PARAMETER + key: value.detach() for key, value in state.parameters.items()}
    for key, value in optimizer_tensors(state.optimizer, state.parameters).items():
        tensors[_OPTIMIZER + key] = value
    return Snapshot(state.step, state.last_loss, whole_tensors(tensors, keep=keep))


def put_back(
    state: TrainingState,
    step: int,
    last_loss: float | None,
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> None:
    """Make a state that of an earlier step, from tensors that every process has whole."""
    for key, value in tensors:
        if key.startswith(_OPTIMIZER):
            slot, _, name = key.removeprefix(_OPTIMIZER).partition(".")
            parameter = state.parameters[name]
            state.optimizer.state[parameter][slot] = like(value, parameter)
        else:
            parameter = state.parameters[key.removeprefix(_PARAMETER)]
            with torch.no_grad():
                parameter.copy_(like(value, parameter))
    if state.kernels.copies is not None:
        state.kernels.copies.renew()
    state.step, state.last_loss = step, last_loss


def write_checkpoint(
    run_folder: Path,
    taken: Snapshot,
    identity: Identity,
    provenance: Provenance,
    keep: int,
) -> Path:
    """Write a snapshot, then remove all but the newest `keep`.

    Args:
        run_folder: of the run that goes on.
        taken: what is written.
        identity: what it belongs to.
        provenance: of the steps so far.
        keep: how many complete checkpoints stay, this one included.

    Raises:
        NoVerdictError: the disk is full; earlier checkpoints are as they were.
    """
    base = run_folder / CHECKPOINTS
    name = f"step-{taken.step:06d}"
    draft, target = base / f".draft-{name}", base / name
    fields = {
        "step": taken.step,
        "last_loss": taken.last_loss,
        "recipe": identity.recipe,
        "digests": identity.digests,
        **asdict(provenance),
    }
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file(taken.tensors, draft / _TENSORS, metadata={"format": "pt"})
        (draft / _STATE).write_text(json.dumps(fields, sort_keys=True), encoding="utf-8")
        seal = {name: file_digest(draft / name) for name in (_TENSORS, _STATE)}
        for path in (draft / _TENSORS, draft / _STATE, draft):
            _flush(path)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
        _flush(base)
        _write_whole(target / _MARK, json.dumps(seal, sort_keys=True))
        _flush(target)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise NoVerdictError(f"{target}: the checkpoint was not written: {error}") from None
    for older in _by_step(base)[:-keep]:
        # What is damaged is not worth one of the places that are kept.
        if older != target:
            _remove(older)
    return target


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    _flush(draft)
    draft.replace(path)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _by_step(base: Path) -> list[Path]:
    """Return the checkpoint folders below `base`, the newest last; nothing else that lies there."""
    if not base.is_dir():
        return []
    steps = {p: int(m[1]) for p in base.iterdir() if (m := _NAME.fullmatch(p.name))}
    return sorted(steps, key=steps.__getitem__)


def _remove(folder: Path) -> None:
    # The mark goes first: a removal that is cut short leaves nothing that looks whole.
    (folder / _MARK).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_later(run_folder: Path, step: int) -> None:
    """Remove checkpoints of later steps, when a run goes on from `step`.

    They are damaged, or belong to a course that the logs no longer tell of.
    """
    for folder in _by_step(run_folder / CHECKPOINTS):
        if int(folder.name.removeprefix("step-")) > step:
            _remove(folder)


def newest_checkpoint(run_folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest complete checkpoint, and a sentence for each that was passed over."""
    passed_over: list[str] = []
    for folder in reversed(_by_step(run_folder / CHECKPOINTS)):
        try:
            return open_checkpoint(folder), passed_over
        except UsageError as error:
            passed_over.append(f"passed over {error.message}")
    return None, passed_over


def open_checkpoint(folder: Path) -> Checkpoint:
    """Check a checkpoint's files against its mark.

    Raises:
        UsageError: it is not complete, or its files are not what was written.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such checkpoint")
    if not _NAME.fullmatch(folder.name):
        raise UsageError(
            f"{folder}: is not a checkpoint; name a folder such as checkpoints/step-000010, "
            "or use --resume"
        )
    try:
        seal = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder}: is not complete: writing it was cut short") from None
    except (OSError, ValueError):
        raise UsageError(f"{folder}: is damaged: its {_MARK} cannot be read") from None
    try:
        for name in (_TENSORS, _STATE):
            if file_digest(folder / name) != seal[name]:
                raise UsageError(f"{folder}: is damaged: {name} is not what was written")
        fields = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        identity = Identity(fields["recipe"], fields["digests"])
        return Checkpoint(
            folder,
            int(fields["step"]),
            float(fields["last_loss"]),
            identity,
            Provenance(
                tuple(fields["environment_classes"]),
                # Checkpoints of before it was recorded know nothing of it.
                tuple(map(int, fields.get("process_counts", ()))),
            ),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder}: is damaged: {error}") from None


def require_same(folder: Path, was: Identity, now: Identity) -> None:
    """Refuse to go on with what belongs to another recipe, model or data set.

    Raises:
        UsageError: names what changed.
    """
    changes = now.changes_from(was)
    if changes:
        more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise UsageError(
            f"{folder}: belongs to another run: {', '.join(changes[:3])}{more}; "
            "undo the change, or start anew with --overwrite"
        )


def read_tensors(checkpoint: Checkpoint, identity: Identity) -> dict[str, torch.Tensor]:
    """Read a checkpoint's parameters and optimizer state.

    Raises:
        UsageError: it belongs to another recipe, model or data set; the sentence says what changed.
    """
    require_same(checkpoint.folder, checkpoint.identity, identity)
    return load_file(checkpoint.folder / _TENSORS)
