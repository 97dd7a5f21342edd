"""Where a run starts: at step 0, or at a checkpoint of a run that was cut short."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from mltune_cli.errors import UsageError
from mltune_cli.launching.events import EventPipe, Notice
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import MANIFEST_FILE, Manifest, read_manifest
from mltune_cli.recipe.schema import Recipe
from mltune_cli.run_folder import (
    BEST,
    CHECKPOINTS,
    RunLock,
    claim_folder,
    claim_next_folder,
    remove,
)
from mltune_cli.training.checkpoint import (
    Checkpoint,
    Identity,
    newest_checkpoint,
    open_checkpoint,
    read_tensors,
    remove_later,
    require_same,
)
from mltune_cli.training.setup import PreparedRun


def run_identity(run: PreparedRun) -> Identity:
    """Return what this run's checkpoints belong to."""
    validation = run.validation_data.summary.digest if run.validation_data else None
    return Identity(
        run.recipe.bit_deciding_values(),
        {
            "model": run.base.digest,
            "tokenizer": run.base.tokenizer_digest,
            "training data": run.train_data.summary.digest,
            **_deciding_validation(run.recipe, validation),
        },
    )


def _deciding_validation(recipe: Recipe, digest: str | None) -> dict[str, str]:
    """Return the held-out rows' digest where they decide when training ends."""
    if recipe.evaluate.early_stopping_patience and digest is not None:
        return {"validation data": digest}
    return {}


@dataclass(frozen=True)
class EnteredFolder:
    """A run folder that is ours.

    Attributes:
        path: the folder.
        lock: holds it until it is closed.
        checkpoint: what the run goes on from; None at step 0.
        tensors: the checkpoint's.
        finished: the manifest of a run that has nothing left to do.
        branched_from: the run whose logs tell of the steps before the checkpoint; None where they
            stand in this folder. Nothing of it is copied yet.
    """

    path: Path
    lock: RunLock
    checkpoint: Checkpoint | None = None
    tensors: dict[str, torch.Tensor] | None = None
    finished: Manifest | None = None
    branched_from: Path | None = None


def after_restart(job: TrainingJob, folder: Path) -> TrainingJob:
    """Return the job of processes that take the place of ones that died.

    Whatever the first ones were to do with an earlier run in the folder, they have done.

    Args:
        job: what the first processes were told.
        folder: the run folder that they claimed.
    """
    recipe = job.recipe.with_values({"output_dir": str(folder)})
    return job.model_copy(update={"recipe": recipe, "overwrite": False, "resume": True})


def enter_folder(job: TrainingJob, run: PreparedRun, pipe: EventPipe) -> EnteredFolder:
    """Claim the run folder, and open the checkpoint that the job asks for.

    Raises:
        UsageError: folder or checkpoint cannot be used; nothing in them was changed.
    """
    explicit = None
    if job.resume_from and not (job.resume and _has_checkpoint(job.recipe.output_dir)):
        explicit = open_checkpoint(Path(job.resume_from))
    if explicit is not None:
        require_same(explicit.folder, explicit.identity, run_identity(run))
    if job.recipe.output_dir is None:
        folder = claim_next_folder(Path(job.runs_folder), job.recipe_name)
        lock = RunLock(folder)
    else:
        folder = Path(job.recipe.output_dir)
        goes_on = job.resume or (explicit is not None and _run_of(explicit) == folder.resolve())
        lock = claim_folder(folder, job.overwrite, goes_on)
    try:
        return _opened(folder, lock, job, run, explicit, pipe)
    except BaseException:
        lock.close()
        raise


def _has_checkpoint(folder: str | None) -> bool:
    return folder is not None and newest_checkpoint(Path(folder))[0] is not None


def _opened(
    folder: Path,
    lock: RunLock,
    job: TrainingJob,
    run: PreparedRun,
    explicit: Checkpoint | None,
    pipe: EventPipe,
) -> EnteredFolder:
    identity = run_identity(run)
    checkpoint = None
    if job.resume:
        earlier = _earlier_run(folder, identity)
        if earlier is not None and earlier.result.status == "finished":
            return EnteredFolder(folder, lock, finished=earlier)
        checkpoint = _newest(folder, pipe)
        if checkpoint is None and explicit is None:
            start = "holds no complete checkpoint, so training starts at step 0"
            pipe.send(Notice(f"{folder}: {start}"))
    branched_from = None
    if checkpoint is None and explicit is not None:
        checkpoint = explicit
        if _run_of(explicit) != folder.resolve():
            branched_from = _run_of(explicit)
    remove_later(folder, checkpoint.step if checkpoint else 0)
    if checkpoint is None:
        return EnteredFolder(folder, lock)
    tensors = read_tensors(checkpoint, identity)
    pipe.send(Notice(f"going on after step {checkpoint.step}, from {checkpoint.folder}"))
    return EnteredFolder(folder, lock, checkpoint, tensors, branched_from=branched_from)


def _earlier_run(folder: Path, identity: Identity) -> Manifest | None:
    """Return the manifest of the run in a folder; refuse another run's folder.

    Raises:
        UsageError: the run in it had another recipe, model or data set.
    """
    if not (folder / MANIFEST_FILE).is_file():
        return None
    manifest = read_manifest(folder)
    recipe = Recipe.model_validate(manifest.recipe)
    validation = manifest.validation_data.digest if manifest.validation_data else None
    was = Identity(
        recipe.bit_deciding_values(),
        {
            "model": manifest.model.digest,
            "tokenizer": manifest.model.tokenizer_digest,
            "training data": manifest.train_data.digest,
            **_deciding_validation(recipe, validation),
        },
    )
    require_same(folder, was, identity)
    return manifest


def _newest(folder: Path, pipe: EventPipe) -> Checkpoint | None:
    checkpoint, passed_over = newest_checkpoint(folder)
    for sentence in passed_over:
        pipe.send(Notice(sentence))
    return checkpoint


def _run_of(checkpoint: Checkpoint) -> Path:
    """Return the folder of the run that wrote a checkpoint."""
    folder = checkpoint.folder.resolve().parent
    if folder.name != CHECKPOINTS:
        raise UsageError(
            f"{checkpoint.folder}: does not stand in a run's {CHECKPOINTS} folder, "
            "so the log of its steps is missing"
        )
    return folder.parent


def settle_best(folder: Path, best_step: int | None, branched_from: Path | None) -> None:
    """Leave a `best/` that is of the given step, or none: another is of a step that lies ahead.

    Args:
        folder: the run folder.
        best_step: the best so far, as the evaluation log says; None where none is to be kept.
        branched_from: another run, whose `best/` is taken over where it is of that step.
    """
    if holds_best(folder, best_step):
        return
    remove(folder / BEST)
    if branched_from is not None and holds_best(branched_from, best_step):
        draft = folder / f".{BEST}.part"
        remove(draft)
        shutil.copytree(branched_from / BEST, draft)
        draft.rename(folder / BEST)


def holds_best(folder: Path, best_step: int | None) -> bool:
    """Tell whether the `best/` of a run folder is of a step; never where that is None."""
    try:
        metadata = json.loads((folder / BEST / "metadata.json").read_text(encoding="utf-8"))
        return best_step is not None and bool(metadata["step"] == best_step)
    except (OSError, ValueError, KeyError, TypeError):
        return False
