"""The recipe: whether it can be used, and what in it asks for what is not there."""

import shlex
import sys
from collections.abc import Iterator, Sequence

from mltune_cli.diagnosis.finding import Check, Finding, broken, doubtful, in_order
from mltune_cli.diagnosis.packages import package_folder
from mltune_cli.diagnosis.subject import Subject, written
from mltune_cli.errors import UsageError
from mltune_cli.run_folder import require_writable_target

_TRACKER_PACKAGES = {
    "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio",
}  # fmt: skip


def look(subject: Subject) -> Sequence[Finding]:
    """Judge the recipe's own values."""
    if subject.loaded is None:
        return [
            broken(
                subject.problem or "the recipe cannot be used",
                "no command can run it",
                "mend it where the sentence says; the keys are in docs/reference/recipe.md",
                command=f"mltune train{subject.flags()} --dry-run",
            )
        ]
    findings = [*_trackers(subject), *_foreign_code(subject), *_output(subject)]
    return findings or [in_order(f"{subject.loaded.name}: {_summary(subject)}")]


def _summary(subject: Subject) -> str:
    recipe = subject.recipe
    length = f"{recipe.train.max_steps} steps" if recipe.train.max_steps else "by epochs"
    return f"{recipe.adapter.method} on {recipe.model.name_or_path}, {length}"


def _trackers(subject: Subject) -> Iterator[Finding]:
    for tracker in subject.recipe.log.trackers:
        if package_folder(tracker) is None:
            package = _TRACKER_PACKAGES[tracker]
            yield broken(
                f"log.trackers names {tracker}, which is not installed",
                "the training will not start",
                f"install it, or take {tracker} out of log.trackers",
                command=f"{shlex.quote(sys.executable)} -m pip install {package}",
            )


def _foreign_code(subject: Subject) -> Iterator[Finding]:
    if subject.recipe.model.trust_remote_code:
        setting = "model.trust_remote_code=false"
        yield doubtful(
            "model.trust_remote_code is on",
            "Python code that comes with the model runs on this machine, and a moved branch may "
            "bring other code",
            f"where the model does not need it, {written(setting)}; else pin model.revision",
            command=subject.trial("recipe", setting),
        )


def _output(subject: Subject) -> Iterator[Finding]:
    output = subject.recipe.output_dir
    if output is None:
        return
    try:
        # What `--resume` and `--overwrite` would go on with or replace is no fault.
        require_writable_target(subject.folder / output, overwrite=True)
    except UsageError as error:
        yield broken(
            f"output_dir {error.message}",
            "the training will not start",
            f"choose another folder: {written('output_dir=runs/next')}",
            command=subject.trial("recipe", "output_dir=runs/next"),
        )


CHECK = Check("recipe", "the recipe", look)
