"""Free disk, against what a run will write."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from mltune_cli.diagnosis.finding import Check, Finding, broken, in_order, judged
from mltune_cli.diagnosis.model_files import model_folder, parameter_count, read_config
from mltune_cli.diagnosis.places import free_bytes, nearest_folder, write_problem
from mltune_cli.diagnosis.subject import Subject, written
from mltune_cli.memory_estimate import (
    adapter_parameters,
    gibibytes,
)
from mltune_cli.model_shape import UnknownShapeError, model_shape

_FLOAT = 4
_OTHER = "output_dir=~/mltune-run"
# Logs, manifest, tokenizer.
_BESIDE_BYTES = 32 * 2**20


def look(subject: Subject) -> Sequence[Finding]:
    """Compare the room in the output folder with the run's checkpoints and results."""
    folder = _output(subject)
    problem = write_problem(folder)
    if problem is not None:
        return [
            broken(
                f"{folder} cannot be written: {problem}",
                "the training will not start",
                f"{written(_OTHER)}, or name another folder, or mend this one",
                command=subject.trial("disk", _OTHER),
            )
        ]
    free, needed = free_bytes(folder), run_bytes(subject)
    place = nearest_folder(folder)
    seen = f"{gibibytes(free)} free in {place}, and a run writes about {gibibytes(needed)}"
    if free >= 2 * needed:
        return [in_order(seen)]
    return [
        judged(
            free < needed,
            seen,
            "a run whose disk is full stops; its last whole checkpoint stays",
            "remove old runs, keep fewer checkpoints, or write to another disk",
            command=f"du -sh {shlex.quote(str(place))}/* | sort -h",
        )
    ]


def _output(subject: Subject) -> Path:
    named = subject.recipe.output_dir
    return Path(named) if named is not None else subject.folder / "runs"


def run_bytes(subject: Subject) -> int:
    """Return about how much a run of the recipe writes.

    A checkpoint holds the trained parameters and two moments for each, as float32; the last
    adapter, or model, and the best are the parameters alone.
    """
    recipe = subject.recipe
    trained = _trained_parameters(subject)
    results = _FLOAT * trained * (1 + (recipe.evaluate.every_steps > 0))
    # One more is written before the oldest goes.
    kept = recipe.checkpoint.keep + 1 if recipe.checkpoint.every_steps else 0
    return _BESIDE_BYTES + results + 3 * _FLOAT * trained * kept


def _trained_parameters(subject: Subject) -> int:
    folder = model_folder(subject.recipe.model, subject.variables)
    if folder is None:
        return 0
    try:
        shape = model_shape(read_config(folder))
    except (OSError, ValueError, UnknownShapeError):
        return 0
    if subject.recipe.adapter.method == "full":
        return parameter_count(folder) or shape.parameters
    return adapter_parameters(shape, subject.recipe)


CHECK = Check("disk", "free disk", look)
