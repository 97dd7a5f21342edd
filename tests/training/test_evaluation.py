"""The held-out loss: one value whoever measures it, and what follows from it, read by hand."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from mltune_cli.bundled import bundled_data
from mltune_cli.errors import UsageError
from mltune_cli.launching.events import EventPipe
from mltune_cli.launching.job import TrainingJob
from mltune_cli.manifest import read_manifest
from mltune_cli.recipe.schema import EvaluateSection, Recipe
from mltune_cli.training.determinism import random_state_bytes
from mltune_cli.training.evaluation import Evaluation, EvaluationResult, evaluate, standing
from mltune_cli.training.loop import Surroundings, train
from mltune_cli.training.processes import Processes
from mltune_cli.training.resuming import drop_other_best
from mltune_cli.training.setup import prepare_run

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Also of forking a process that has threads, which loaders do on newer Pythons.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SmokeRecipe = Callable[..., Recipe]
RunTraining = Callable[..., Any]
CPU = torch.device("cpu")
# The loss falls, falls, rises, falls a little: 3.15 2.86 2.76 2.97 2.88 ...
UNSTEADY = {
    "train__max_steps": 6, "train__schedule": "constant", "train__learning_rate": 0.016,
    "evaluate__every_steps": 1, "checkpoint__every_steps": 1, "checkpoint__keep": 20,
}  # fmt: skip
# In 64ths, so that sums and differences are exact.
losses = st.lists(st.integers(0, 500).map(lambda n: n / 64), max_size=25)
thresholds = st.integers(0, 300).map(lambda n: n / 64)


def numbered(values: Sequence[float], first_step: int = 0) -> list[Evaluation]:
    return [Evaluation(first_step + 2 * place, loss) for place, loss in enumerate(values)]


def evaluations_of(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "evaluation_log.jsonl").read_text().splitlines()
    return [(fields["step"], fields["loss"]) for fields in map(json.loads, lines)]


@given(losses, thresholds, st.sampled_from([0, 1]))
@settings(max_examples=200, deadline=None)
def test_the_standing_is_what_a_written_out_reading_gives(
    values: list[float], threshold: float, first_step: int
) -> None:
    evaluations = numbered(values, first_step)
    found = standing(evaluations, threshold)
    trained = [(one.loss, one.step) for one in evaluations if one.step > 0]
    assert found.best_step == (min(trained)[1] if trained else None), "the earliest of the lowest"
    marks = values[:1]
    last_improvement = 0
    for place, loss in enumerate(values):
        if marks[-1] - loss > threshold:
            marks.append(loss)
            last_improvement = place
    assert found.since_improvement == max(0, len(values) - 1 - last_improvement)


@given(losses.filter(len), thresholds, st.integers(0, 500).map(lambda n: n / 64))
@settings(max_examples=100, deadline=None)
def test_one_more_evaluation_improves_or_counts_one_more(
    values: list[float], threshold: float, loss: float
) -> None:
    """Nothing but the evaluations so far decides, so a run that goes on stops where it would."""
    before = standing(numbered(values), threshold).since_improvement
    after = standing(numbered([*values, loss]), threshold).since_improvement
    assert after in (0, before + 1)


@given(losses, thresholds, st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_patience_is_a_number_of_evaluations(
    values: list[float], threshold: float, patience: int
) -> None:
    found = standing(numbered(values), threshold)
    section = EvaluateSection(every_steps=1, early_stopping_patience=patience)
    assert found.ends_training(section) == (0 < patience <= found.since_improvement)


@pytest.mark.parametrize(
    ("values", "best_step", "since"),
    [
        ([], None, 0),
        ([1.0], None, 0),
        ([1.0, 2.0], 2, 1),
        ([math.nan, 2.0, 1.5], 4, 0),
        ([3.0, math.nan, 2.0], 4, 0),
        ([3.0, math.nan, math.nan], None, 2),
        ([3.0, math.inf, 2.5, math.nan], 4, 1),
        ([math.inf, math.inf, math.inf], None, 2),
    ],
)
def test_a_loss_that_is_no_number_is_never_the_best(
    values: list[float], best_step: int | None, since: int
) -> None:
    found = standing(numbered(values), 0.0)
    assert (found.best_step, found.since_improvement) == (best_step, since)


@dataclass(frozen=True)
class Noted(Processes):
    """One of several processes, told beforehand what the others send."""

    sent: list[torch.Tensor] = field(default_factory=list)
    others: list[torch.Tensor] = field(default_factory=list)

    def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.sent.append(tensor)
        return self.others or [tensor] * self.size


@pytest.mark.parametrize("in_step", [False, True])
def test_however_many_processes_measure_it_the_loss_is_the_same_number(
    smoke_recipe: SmokeRecipe, tmp_path: Path, in_step: bool
) -> None:
    """Seven rows are four micro-batches, so that of six processes two have nothing to do."""
    rows = bundled_data("mltune/repro_dataset/val.jsonl").read_text().splitlines()[:7]
    (tmp_path / "seven.jsonl").write_text("\n".join(rows) + "\n")
    recipe = smoke_recipe(
        data__validation=str(tmp_path / "seven.jsonl"), evaluate__every_steps=1,
        adapter__dropout=0.3,
    )  # fmt: skip
    run = prepare_run(recipe)
    state = replace(run.state, in_step=in_step)
    data = run.validation_data
    before = random_state_bytes(CPU)
    results: set[EvaluationResult] = set()
    for size in (1, 2, 3, 4, 6):
        ranks = [Noted(rank, rank, tuple(range(size)), CPU) for rank in range(size)]
        passes = []
        for processes in ranks:
            seen: list[int] = []
            hook = state.model.register_forward_pre_hook(lambda *_, seen=seen: seen.append(1))
            evaluate(state, processes, data, run.collator(data), 2)
            hook.remove()
            passes.append(len(seen))
        assert sum(passes) == (4 if not in_step else size * max(passes))
        told = [processes.sent[0] for processes in ranks]
        assert len({tensor.shape for tensor in told}) == 1, "gloo needs equal shapes"
        last = replace(ranks[-1], others=told)
        results.add(evaluate(state, last, data, run.collator(data), 2))
    assert len(results) == 1
    assert random_state_bytes(CPU) == before, "dropout is off, and nothing is drawn"
    assert all(parameter.grad is None for parameter in state.parameters.values())


@pytest.fixture
def copied(
    run_training: RunTraining, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> Callable[..., Path]:
    """Return a copy of a run that is trained once: `copied("name", evaluate__...=...)`."""

    def copy(name: str, **values: Any) -> Path:
        kept = tmp_path_factory.getbasetemp() / f"unsteady-{name}"
        if not kept.exists():
            shutil.move(run_training(name, **UNSTEADY, **values).folder, kept)
        return Path(shutil.copytree(kept, tmp_path / f"copy-of-{name}"))

    return copy


@pytest.fixture
def to_the_end(copied: Callable[..., Path]) -> Path:
    """A run of all 6 steps with a checkpoint after each."""
    return copied("whole")


def go_on(folder: Path, recipe: Recipe) -> None:
    resumed = recipe.with_values({"output_dir": str(folder)})
    job = TrainingJob(recipe=resumed, origins={}, recipe_name="t", runs_folder="/none", resume=True)
    train(job, Surroundings(EventPipe(None)))


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


@pytest.mark.parametrize(
    ("patience", "threshold", "stop"),
    [(1, 0.0, 3), (2, 0.0, 4), (2, 0.2, 3)],
)
def test_training_ends_where_a_reading_of_the_whole_runs_log_says(
    run_training: RunTraining, to_the_end: Path, patience: int, threshold: float, stop: int
) -> None:
    """With 0.2 nats of threshold step 2 (0.10 lower) is the best, and yet no improvement."""
    whole = evaluations_of(to_the_end)
    expected, since, mark = None, 0, whole[0][1]
    for step, loss in whole[1:]:
        since, mark = (0, loss) if mark - loss > threshold else (since + 1, mark)
        if since == patience and expected is None:
            expected = step
    assert expected == stop
    run = run_training(
        "early", **UNSTEADY, evaluate__early_stopping_patience=patience,
        evaluate__early_stopping_threshold=threshold, log__every_steps=5,
    )  # fmt: skip
    assert evaluations_of(run.folder) == whole[: stop + 1]
    result = read_manifest(run.folder).result
    assert (result.status, result.steps) == ("finished", stop)
    whole_witness = (to_the_end / "witness.jsonl").read_text().splitlines()
    assert run.lines("witness.jsonl") == whole_witness[: stop + 1]
    (last,) = map(json.loads, run.lines("training_log.jsonl"))
    assert last["step"] == stop, "the last step is logged whatever the cadence"
    assert float((run.folder / "last_loss.txt").read_text()) == last["loss"] == result.last_loss
    assert json.loads((run.folder / "best" / "metadata.json").read_text())["step"] == 2


def test_the_best_is_what_was_trained_at_the_lowest_loss(to_the_end: Path) -> None:
    """Its tensors are those of that step's checkpoint, and the adapter's are the last step's."""
    _, best_step = min((loss, step) for step, loss in evaluations_of(to_the_end) if step)
    assert best_step < 6, "else best and last would not tell"
    for name, step in (("best", best_step), ("adapter", 6)):
        saved = load_file(to_the_end / name / "adapter_model.safetensors")
        state = load_file(to_the_end / "checkpoints" / f"step-{step:06d}" / "state.safetensors")
        trained = {
            key.removeprefix("parameter.").replace(".default", ""): tensor
            for key, tensor in state.items()
            if key.startswith("parameter.")
        }
        assert len(saved) == 56
        assert saved.keys() == trained.keys()
        assert all(torch.equal(saved[key], trained[key]) for key in saved)
        assert json.loads((to_the_end / name / "metadata.json").read_text())["step"] == step


def test_the_untrained_state_is_never_the_best(run_training: RunTraining) -> None:
    """Training that only harms still keeps the least harmed, not a copy of what it began with."""
    harmful = UNSTEADY | {"train__learning_rate": 0.05, "train__max_steps": 2}
    folder = run_training("harmful", **harmful).folder
    first, *others = evaluations_of(folder)
    assert min(others, key=lambda one: one[1])[0] == 1
    assert all(loss > first[1] for _, loss in others)
    assert json.loads((folder / "best" / "metadata.json").read_text())["step"] == 1


def test_without_keep_best_there_is_none_and_nothing_else_changes(
    run_training: RunTraining, to_the_end: Path
) -> None:
    folder = run_training("lean", **UNSTEADY, evaluate__keep_best=False).folder
    assert not (folder / "best").exists()
    (folder / "best").mkdir()
    kept = {name: data for name, data in repeated(to_the_end).items() if "best/" not in name}
    assert repeated(folder) == kept


@pytest.mark.parametrize("newest", [1, 3, 4])
def test_a_run_that_goes_on_stops_where_it_would_have(
    smoke_recipe: SmokeRecipe, copied: Callable[..., Path], newest: int
) -> None:
    """From before the best step, from after it, and from the very step at which it stops."""
    patience = {"evaluate__early_stopping_patience": 2}
    folder = copied("patient", **patience)
    whole, result = repeated(folder), read_manifest(folder).result
    cut(folder, newest)
    go_on(folder, smoke_recipe(**UNSTEADY, **patience))
    assert repeated(folder) == whole
    assert read_manifest(folder).result == result


def test_when_to_stop_is_part_of_the_recipe_once_it_decides_bits(
    smoke_recipe: SmokeRecipe, to_the_end: Path
) -> None:
    cut(to_the_end, 3)
    with pytest.raises(UsageError, match=r"evaluate\.early_stopping_patience"):
        go_on(to_the_end, smoke_recipe(**UNSTEADY, evaluate__early_stopping_patience=2))


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
    drop_other_best(tmp_path, best_step)
    assert (tmp_path / "best").exists() == stays


@pytest.mark.parametrize(
    ("evaluate_every", "log_every", "checkpoint_every", "loader_workers"),
    [(4, 5, 2, 0), (0, 1, 0, 2), pytest.param(1, 5, 0, 1, marks=pytest.mark.long)],
)
def test_no_cadence_and_no_loader_leaves_a_trace(
    run_training: RunTraining,
    to_the_end: Path,
    evaluate_every: int,
    log_every: int,
    checkpoint_every: int,
    loader_workers: int,
) -> None:
    """The reference evaluates and saves after each step, logs each, and has no loader."""
    changes = {
        "evaluate__every_steps": evaluate_every, "log__every_steps": log_every,
        "checkpoint__every_steps": checkpoint_every, "data__loader_workers": loader_workers,
    }  # fmt: skip
    folder = run_training("other", **(UNSTEADY | changes)).folder
    for name in ("adapter/adapter_model.safetensors", "witness.jsonl", "last_loss.txt"):
        assert (folder / name).read_bytes() == (to_the_end / name).read_bytes(), name
    evaluated = [step for step, _ in evaluations_of(folder)]
    every_step = [*range(7)]
    assert evaluated == {4: [0, 4, 6], 0: [], 1: every_step}[evaluate_every]
    assert set(evaluations_of(folder)) <= set(evaluations_of(to_the_end))
