"""The held-out loss: one value whoever measures it, and what follows from it, read by hand."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.bundled import bundled_data
from mltune_cli.manifest import read_manifest
from mltune_cli.recipe.schema import EvaluateSection, Recipe
from mltune_cli.training.determinism import random_state_bytes
from mltune_cli.training.evaluation import Evaluation, EvaluationResult, evaluate, standing
from mltune_cli.training.processes import Processes
from mltune_cli.training.setup import prepare_run

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    # Also of forking a process that has threads, which loaders do on newer Pythons.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SmokeRecipe = Callable[..., Recipe]
RunTraining = Callable[..., Any]
CPU = torch.device("cpu")
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


@pytest.mark.parametrize(
    ("patience", "threshold", "stop"),
    [(1, 0.0, 3), (2, 0.0, 4), (2, 0.2, 3)],
)
def test_training_ends_where_a_reading_of_the_whole_runs_log_says(
    run_training: RunTraining,
    unsteady: dict[str, Any],
    to_the_end: Path,
    patience: int,
    threshold: float,
    stop: int,
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
        "early", **unsteady, evaluate__early_stopping_patience=patience,
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


@pytest.mark.parametrize(
    ("evaluate_every", "log_every", "checkpoint_every", "loader_workers"),
    [(4, 5, 2, 0), (0, 1, 0, 2), pytest.param(1, 5, 0, 1, marks=pytest.mark.long)],
)
def test_no_cadence_and_no_loader_leaves_a_trace(
    run_training: RunTraining,
    unsteady: dict[str, Any],
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
    folder = run_training("other", **(unsteady | changes)).folder
    for name in ("adapter/adapter_model.safetensors", "witness.jsonl", "last_loss.txt"):
        assert (folder / name).read_bytes() == (to_the_end / name).read_bytes(), name
    evaluated = [step for step, _ in evaluations_of(folder)]
    every_step = [*range(7)]
    assert evaluated == {4: [0, 4, 6], 0: [], 1: every_step}[evaluate_every]
    assert set(evaluations_of(folder)) <= set(evaluations_of(to_the_end))
