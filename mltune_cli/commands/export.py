"""`mltune export`: a model of ours, or what a run trained, as a folder for any other tool."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.bundled import BUNDLED_PREFIX, bundled_model
from mltune_cli.digests import file_digest
from mltune_cli.errors import ExitCode, UsageError
from mltune_cli.exporting.finished_run import FinishedRun, open_run
from mltune_cli.exporting.hub_upload import HubUpload
from mltune_cli.exporting.model_card import CARD_FILE, CardFacts, Kind, model_card
from mltune_cli.exporting.target_folder import filled_folder
from mltune_cli.launching.merge_process import MergeJob, run_merge
from mltune_cli.rendering.console import print_line, print_notice


@dataclass(frozen=True)
class ExportOptions:
    """What is written, and where else it goes.

    Attributes:
        merge: write the base model with the adapter merged in, not the adapter.
        best: take what was trained at the lowest held-out loss, not the last step's.
        push: name of a model on the hub that the folder is uploaded to.
        public: the uploaded model may be seen by everybody.
    """

    merge: bool = False
    best: bool = False
    push: str | None = None
    public: bool = False


def export(source: str, target: Path, options: ExportOptions) -> ExitCode:
    """Write a bundled model, or what a run trained, into a folder; and upload it, if asked to.

    Args:
        source: a run folder, or the name of a bundled model.
        target: a new or empty folder.
        options: what of it.

    Raises:
        UsageError: the source cannot be exported so, or the target cannot be written.
        NoVerdictError: the disk is full, the merge failed, or the hub cannot be reached.
    """
    if options.public and options.push is None:
        raise UsageError("--public: says who may see an upload; pass --push REPO_ID with it")
    upload = None
    if options.push is not None:
        upload = HubUpload(options.push, is_public=options.public)
    what = _export_run if _is_run(source) else _export_bundled
    exported = what(source, target, options)
    print_line(f"wrote {exported} to {target}")
    if upload is not None:
        print_line(f"uploaded {target} to {upload.send(target)}")
    return ExitCode.OK


def _is_run(source: str) -> bool:
    # Unlike Path.is_dir, os.path.isdir is False for a name that no folder can have.
    return not source.startswith(BUNDLED_PREFIX) and os.path.isdir(source)  # noqa: PTH112


def _export_bundled(source: str, target: Path, options: ExportOptions) -> str:
    if not source.startswith(BUNDLED_PREFIX):
        raise UsageError(f"{source}: is neither the folder of a run nor a bundled model")
    folder = bundled_model(source)
    if options.merge:
        raise UsageError(f"--merge: {source} has no adapter to merge; drop --merge")
    if options.best:
        raise UsageError(f"--best: {source} is no run, and has no best step; drop --best")
    with filled_folder(target) as draft:
        _copy_files(sorted(folder.iterdir()), draft)
    return source


def _export_run(source: str, target: Path, options: ExportOptions) -> str:
    run = open_run(Path(source), is_best=options.best)
    if options.merge and run.is_full:
        raise UsageError(
            f"--merge: {run.folder} trained the whole model, so there is no adapter to merge; "
            "drop --merge"
        )
    _require_outside(target, run.folder)
    kind: Kind = "full" if run.is_full else "merged" if options.merge else "adapter"
    with filled_folder(target) as draft:
        if kind == "merged":
            run_merge(_merge_job(run, draft, target), print_notice)
        else:
            _copy_files(run.files, draft)
        weights = {path.name: file_digest(path) for path in sorted(draft.glob("*.safetensors"))}
        card = model_card(CardFacts(run, kind, weights))
        (draft / CARD_FILE).write_text(card, encoding="utf-8")
    part = {"full": "the model of", "merged": "the merged model of", "adapter": "the adapter of"}
    return f"{part[kind]} {source}"


def _require_outside(target: Path, run: Path) -> None:
    """Refuse a place in the run folder: mltune would not know its own run again."""
    if Path(os.path.realpath(target)).is_relative_to(os.path.realpath(run)):
        raise UsageError(f"{target}: lies in the run's own folder; choose a folder outside {run}")


def _merge_job(run: FinishedRun, draft: Path, target: Path) -> MergeJob:
    return MergeJob(
        recipe=run.recipe,
        revision=run.manifest.model.revision,
        model_digest=run.manifest.model.digest,
        tokenizer_digest=run.manifest.model.tokenizer_digest,
        run=str(run.folder),
        adapter=str(run.trained),
        output=str(draft),
        target=str(target),
    )


def _copy_files(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        shutil.copyfile(file, folder / file.name)
