"""The run that is exported: finished, of a known recipe, with what it trained in good order."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.exporting.trained_files import TrainedState, exported_files, trained_state
from mltune_cli.manifest import MANIFEST_FILE, Manifest, read_manifest
from mltune_cli.recipe.schema import Recipe
from mltune_cli.reproduction.run_diff import read_witness
from mltune_cli.run_folder import ADAPTER, BEST, EVALUATION_LOG, MODEL


@dataclass(frozen=True)
class FinishedRun:
    """What is exported, and what is known of it.

    Attributes:
        folder: the run folder, as it was given.
        trained: the folder of the adapter or model: the last step's, or the best one's.
        files: of `trained`.
        is_best: whether it is the one at the lowest held-out loss.
        step: the step after which it was taken; None where the best one's is unknown.
        trained_digest: of its parameters, as the witness computes it; None where unknown.
        held_out_loss: after `step`, in nats per token, where it was measured.
    """

    folder: Path
    manifest: Manifest
    recipe: Recipe
    trained: Path
    files: tuple[Path, ...]
    is_best: bool
    step: int | None
    trained_digest: str | None
    held_out_loss: float | None

    @property
    def is_full(self) -> bool:
        """Whether the whole model was trained, instead of an adapter."""
        return self.recipe.adapter.method == "full"


def open_run(folder: Path, *, is_best: bool) -> FinishedRun:
    """Read a run and check what it trained.

    Args:
        folder: the run folder.
        is_best: take `best/` instead of the last step's.

    Raises:
        UsageError: it is no finished run, has no `best/`, or its files are not what it wrote.
    """
    manifest = _manifest(folder)
    recipe = _recipe(folder, manifest)
    trained = folder / _part(folder, recipe, is_best)
    files = exported_files(trained, recipe)
    state = trained_state(files, manifest, recipe)
    step: int | None = manifest.result.steps
    if is_best:
        step = _best_step(folder, trained, state)
    elif state.digest not in (None, manifest.result.trained_digest):
        raise UsageError(
            f"{trained}: its tensors are not those that the run trained (their digest is not the "
            "manifest's); take the folder from a backup, or train again"
        )
    return FinishedRun(
        folder=folder,
        manifest=manifest,
        recipe=recipe,
        trained=trained,
        files=tuple(files),
        is_best=is_best,
        step=step,
        trained_digest=state.digest if is_best else manifest.result.trained_digest,
        held_out_loss=_held_out_loss(folder, step),
    )


def _manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise UsageError(f"{folder}: is neither the folder of a run nor a bundled model")
    if not (folder / MANIFEST_FILE).exists() and (folder / "run-1").is_dir():
        raise UsageError(f"{folder}: holds the runs of a check; name one, {folder / 'run-1'}")
    manifest = read_manifest(folder)
    if manifest.result.status != "finished":
        raise UsageError(
            f"{folder}: its manifest says {manifest.result.status}, and only a finished run can "
            "be exported; go on with it by mltune train --resume"
        )
    return manifest


def _recipe(folder: Path, manifest: Manifest) -> Recipe:
    try:
        return Recipe.model_validate(manifest.recipe)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(
            f"{folder / MANIFEST_FILE}: its recipe is not one of this version of mltune: {key}: "
            f"{error.errors()[0]['msg']}; export with mltune {manifest.mltune}"
        ) from None


def _part(folder: Path, recipe: Recipe, is_best: bool) -> str:
    if not is_best:
        return MODEL if recipe.adapter.method == "full" else ADAPTER
    if not (folder / BEST).is_dir():
        raise UsageError(
            f"--best: {folder} has no {BEST}/, which a run keeps when it measures the held-out "
            "loss (evaluate.every_steps); drop --best to export the last step's"
        )
    return BEST


def _best_step(folder: Path, trained: Path, state: TrainedState) -> int | None:
    """Return the step that `best/` is of, after asking the witness whether it is."""
    if state.digest is None:
        return state.step
    try:
        records = read_witness(folder)
    except NoVerdictError as error:
        raise UsageError(error.message) from None
    steps = [
        step
        for step, record in sorted(records.items())
        if record.digests.get("parameters") == state.digest
    ]
    if not steps or state.step not in (None, *steps):
        raise UsageError(
            f"{trained}: its tensors are not those that the run had at the step it names; take the "
            "folder from a backup, or drop --best"
        )
    return steps[0] if state.step is None else state.step


def _held_out_loss(folder: Path, step: int | None) -> float | None:
    """Return what the evaluation log says of a step; a card can do without it."""
    try:
        lines = (folder / EVALUATION_LOG).read_text(encoding="utf-8").splitlines()
        losses = {entry["step"]: float(entry["loss"]) for entry in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return losses.get(step)
