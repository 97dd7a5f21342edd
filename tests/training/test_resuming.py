"""A run that goes on: where it starts, what it brings along, and which `best/` it has."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mltune_cli.errors import UsageError
from mltune_cli.launching.events import Event, EventPipe, Notice
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import read_manifest
from mltune_cli.recipe.schema import Recipe
from mltune_cli.run_folder import require_writable_target
from mltune_cli.training import loop, run_log
from mltune_cli.training.loop import Surroundings, train
from mltune_cli.training.resuming import after_restart, settle_best

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SmokeRecipe = Callable[..., Recipe]
RunTraining = Callable[..., Any]
Copied = Callable[..., Path]
Values = dict[str, Any]


# The logs of a run that is killed stay open: within a test nobody closes them.
killing = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class KilledError(BaseException):
    """The process is gone, whatever it was about to do."""


class Listening(EventPipe):
    """Keeps what the user would be told."""

    def __init__(self) -> None:
        super().__init__(None)
        self.notices: list[str] = []

    def send(self, event: Event) -> None:
        if isinstance(event, Notice):
            self.notices.append(event.message)


def job_for(folder: Path, recipe: Recipe, **values: Any) -> TrainingJob:
    output = recipe.with_values({"output_dir": str(folder)})
    return TrainingJob(recipe=output, origins={}, recipe_name="t", runs_folder="/none", **values)


def carry_out(job: TrainingJob) -> list[str]:
    """Train; return the notices."""
    pipe = Listening()
    train(job, Surroundings(pipe))
    return pipe.notices


def go_on(folder: Path, recipe: Recipe) -> list[str]:
    return carry_out(job_for(folder, recipe, resume=True))


def branch(folder: Path, step: int, target: Path, recipe: Recipe) -> list[str]:
    """Go on from one of a run's checkpoints, in another folder or its own."""
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    return carry_out(job_for(target, recipe, resume_from=str(checkpoint)))


def evaluations_of(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "evaluation_log.jsonl").read_text().splitlines()
    return [(fields["step"], fields["loss"]) for fields in map(json.loads, lines)]


def best_by_the_log(folder: Path) -> int:
    return min((loss, step) for step, loss in evaluations_of(folder) if step)[1]


def cut(folder: Path, newest_step: int) -> None:
    """Make a whole run one that was killed some time after a checkpoint."""
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > newest_step:
            shutil.rmtree(checkpoint)
    shutil.rmtree(folder / "adapter")
    (folder / "last_loss.txt").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["result"] = {"status": "running", "steps": 0}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def repeated(folder: Path) -> dict[str, bytes]:
    logs = ("training_log.jsonl", "witness.jsonl", "evaluation_log.jsonl", "last_loss.txt")
    files = [folder / name for name in logs]
    files += [path for sub in ("adapter", "best") for path in sorted((folder / sub).iterdir())]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def trained_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return what a checkpoint has of the adapter, by the names of an adapter's file."""
    state = load_file(folder / "checkpoints" / f"step-{step:06d}" / "state.safetensors")
    return {
        key.removeprefix("parameter.").replace(".default", ""): tensor
        for key, tensor in state.items()
        if key.startswith("parameter.")
    }


def require_saved(folder: Path, name: str, expected: dict[str, torch.Tensor], step: int) -> None:
    saved = load_file(folder / name / "adapter_model.safetensors")
    assert len(saved) == 56
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], expected[key]) for key in saved)
    assert json.loads((folder / name / "metadata.json").read_text())["step"] == step


def test_the_best_is_what_was_trained_at_the_lowest_loss(to_the_end: Path) -> None:
    """Its tensors are those of that step's checkpoint, and the adapter's are the last step's."""
    best_step = best_by_the_log(to_the_end)
    assert best_step < 6, "else best and last would not tell"
    for name, step in (("best", best_step), ("adapter", 6)):
        require_saved(to_the_end, name, trained_at(to_the_end, step), step)


def test_the_untrained_state_is_never_the_best(run_training: RunTraining, unsteady: Values) -> None:
    """Training that only harms still keeps the least harmed, not a copy of what it began with."""
    harmful = unsteady | {"train__learning_rate": 0.05, "train__max_steps": 2}
    folder = run_training("harmful", **harmful).folder
    first, *others = evaluations_of(folder)
    assert min(others, key=lambda one: one[1])[0] == 1
    assert all(loss > first[1] for _, loss in others)
    assert json.loads((folder / "best" / "metadata.json").read_text())["step"] == 1


def test_without_keep_best_there_is_none_and_nothing_else_changes(
    run_training: RunTraining, unsteady: Values, to_the_end: Path
) -> None:
    folder = run_training("lean", **unsteady, evaluate__keep_best=False).folder
    assert not (folder / "best").exists()
    (folder / "best").mkdir()
    kept = {name: data for name, data in repeated(to_the_end).items() if "best/" not in name}
    assert repeated(folder) == kept


@pytest.mark.parametrize("newest", [1, 3, 4])
def test_a_run_that_goes_on_stops_where_it_would_have(
    smoke_recipe: SmokeRecipe, unsteady: Values, copied: Copied, newest: int
) -> None:
    """From before the best step, from after it, and from the very step at which it stops."""
    patience = {"evaluate__early_stopping_patience": 2}
    folder = copied("patient", **patience)
    whole, result = repeated(folder), read_manifest(folder).result
    cut(folder, newest)
    go_on(folder, smoke_recipe(**unsteady, **patience))
    assert repeated(folder) == whole
    assert read_manifest(folder).result == result


def test_when_to_stop_is_part_of_the_recipe_once_it_decides_bits(
    smoke_recipe: SmokeRecipe, unsteady: Values, to_the_end: Path
) -> None:
    cut(to_the_end, 3)
    with pytest.raises(UsageError, match=r"evaluate\.early_stopping_patience"):
        go_on(to_the_end, smoke_recipe(**unsteady, evaluate__early_stopping_patience=2))


@pytest.mark.parametrize(
    ("metadata", "best_step", "stays"),
    [
        ('{"step": 2}', 2, True),
        ('{"step": 4}', 2, False),
        ('{"step": 2}', None, False),
        ('{"step": 2', 2, False),
        ("[]", 2, False),
        ("{}", 2, False),
        (None, 2, False),
    ],
)
def test_a_best_that_the_log_does_not_know_is_dropped(
    tmp_path: Path, metadata: str | None, best_step: int | None, stays: bool
) -> None:
    """It is of a step that lies ahead again, or its writing was cut short."""
    (tmp_path / "best").mkdir()
    if metadata is not None:
        (tmp_path / "best" / "metadata.json").write_text(metadata)
    settle_best(tmp_path, best_step, None)
    assert (tmp_path / "best").exists() == stays


@killing
@pytest.mark.parametrize("same_cadence", [True, False])
def test_the_last_line_of_a_log_that_stopped_early_outlives_a_kill(
    smoke_recipe: SmokeRecipe,
    run_training: RunTraining,
    unsteady: Values,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    same_cadence: bool,
) -> None:
    """That step 4 is the last one shows only in its evaluation; its checkpoint comes after that.

    A successor takes no step any more, and so has nothing that it could log.
    """
    patient = unsteady | {"evaluate__early_stopping_patience": 2, "log__every_steps": 5}
    whole = repeated(run_training("whole", **patient).folder)
    assert b'"step":4,' in whole["training_log.jsonl"]
    write = loop.write_checkpoint

    def write_and_die(folder: Path, taken: Any, *rest: Any) -> Path:
        written = write(folder, taken, *rest)
        if taken.step == 4:
            raise KilledError
        return written

    with monkeypatch.context() as fault:
        fault.setattr(loop, "write_checkpoint", write_and_die)
        with pytest.raises(KilledError):
            run_training("run", **patient)
    successor = patient | ({} if same_cadence else {"log__every_steps": 3})
    go_on(tmp_path / "run", smoke_recipe(**successor))
    assert repeated(tmp_path / "run") == whole


@killing
@pytest.mark.parametrize("place", ["copyfile", "settle_best", "_run_steps", "write_checkpoint"])
def test_a_branch_that_is_killed_as_it_begins_is_a_run_and_begins_again(
    smoke_recipe: SmokeRecipe,
    unsteady: Values,
    to_the_end: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    """Whatever was copied already: a successor starts where the branch did, and a user may too."""
    calls = []

    def die(*arguments: Any) -> None:
        calls.append(arguments)
        if place == "copyfile" and len(calls) == 1:  # in the middle of the second log
            arguments[1].write_bytes(arguments[0].read_bytes())
            return
        raise KilledError

    recipe = smoke_recipe(**unsteady)
    checkpoint = to_the_end / "checkpoints" / "step-000003"
    job = job_for(tmp_path / "branch", recipe, resume_from=str(checkpoint))
    with monkeypatch.context() as fault:
        fault.setattr(run_log.shutil if place == "copyfile" else loop, place, die)
        with pytest.raises(KilledError):
            carry_out(job)
    require_writable_target(tmp_path / "branch", overwrite=True)
    carry_out(after_restart(job, tmp_path / "branch"))
    assert repeated(tmp_path / "branch") == repeated(to_the_end)
    assert read_manifest(tmp_path / "branch").result.status == "finished"


def test_a_folder_is_the_same_by_another_name(
    smoke_recipe: SmokeRecipe, unsteady: Values, to_the_end: Path, tmp_path: Path
) -> None:
    """Going back in a folder that is reached over a link is no branch of it."""
    whole = repeated(to_the_end)
    (tmp_path / "link").symlink_to(to_the_end)
    branch(tmp_path / "link", 3, tmp_path / "link", smoke_recipe(**unsteady))
    assert repeated(to_the_end) == whole


@pytest.mark.parametrize("is_branch", [True, False])
@pytest.mark.parametrize(
    ("start", "cadence", "best_step"),
    [
        pytest.param(4, 6, 2, id="it lies behind, and is there"),
        pytest.param(2, 6, 2, id="it is where the run goes on"),
        pytest.param(1, 6, 1, id="the better one is not met again"),
        pytest.param(1, 2, 2, id="the better one is met again"),
        pytest.param(3, 0, 2, id="no evaluation comes after it"),
    ],
)
def test_the_best_is_that_of_this_runs_own_log(
    smoke_recipe: SmokeRecipe,
    unsteady: Values,
    to_the_end: Path,
    tmp_path: Path,
    is_branch: bool,
    start: int,
    cadence: int,
    best_step: int,
) -> None:
    """The source's best is of step 2. Only where its loss is in the log is it the best here."""
    assert best_by_the_log(to_the_end) == 2
    expected = trained_at(to_the_end, best_step)
    folder = tmp_path / "branch" if is_branch else to_the_end
    recipe = smoke_recipe(**(unsteady | {"evaluate__every_steps": cadence}))
    notices = branch(to_the_end, start, folder, recipe)
    assert best_by_the_log(folder) == best_step
    require_saved(folder, "best", expected, best_step)
    assert not [notice for notice in notices if notice.startswith("there is no best")]


@pytest.mark.parametrize("is_branch", [True, False])
def test_a_best_that_nobody_kept_is_missed_aloud(
    smoke_recipe: SmokeRecipe, unsteady: Values, copied: Copied, tmp_path: Path, is_branch: bool
) -> None:
    """The lowest loss lies behind, in a run that kept no best."""
    source = copied("lean", evaluate__keep_best=False)
    folder = tmp_path / "branch" if is_branch else source
    notices = branch(source, 4, folder, smoke_recipe(**unsteady))
    assert best_by_the_log(folder) == 2
    assert not (folder / "best").exists()
    (told,) = [notice for notice in notices if notice.startswith("there is no best")]
    assert told.startswith("there is no best/: the held-out loss was lowest after step 2, before ")


@pytest.mark.parametrize("is_branch", [True, False])
def test_a_run_that_keeps_no_best_any_more_has_none(
    smoke_recipe: SmokeRecipe, unsteady: Values, to_the_end: Path, tmp_path: Path, is_branch: bool
) -> None:
    """Left where it was, it would be the best of another run's log."""
    folder = tmp_path / "branch" if is_branch else to_the_end
    recipe = smoke_recipe(**unsteady, evaluate__keep_best=False)
    notices = branch(to_the_end, 4, folder, recipe)
    assert not (folder / "best").exists()
    assert not [notice for notice in notices if notice.startswith("there is no best")]
