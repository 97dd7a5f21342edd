"""The mathematics of a step: what must not change it does not, and what must stop it does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from mltune_cli.bundled import bundled_model
from mltune_cli.errors import NoVerdictError
from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.adapter import Trained, save_trained, trained_tensors
from mltune_cli.training.setup import PreparedRun, prepare_run
from mltune_cli.training.step import StepPlan, StepResult, begin_step

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SmokeRecipe = Callable[..., Recipe]


def take_step(run: PreparedRun, learning_rate: float = 1e-3) -> StepResult:
    collator = run.collator(run.train_data)
    step = run.state.step + 1
    units = [
        run.stream.micro_batch(step, i) for i in range(run.recipe.train.micro_batches_per_step)
    ]
    counts = run.train_data.unit_target_counts
    plan = StepPlan(
        micro_batches=len(units),
        target_tokens=int(sum(counts[unit] for batch in units for unit in batch)),
        seed=run.recipe.reproducibility.seed,
        learning_rate=learning_rate,
        max_grad_norm=1.0,
    )
    return begin_step(run.state, run.processes, map(collator.collate, units), plan).result()


def test_accumulation_does_not_change_the_normalisation(smoke_recipe: SmokeRecipe) -> None:
    """Eight rows are one batch however they are cut: 4 x 2, 2 x 4, 8 x 1, 1 x 8.

    fp32 sums in another order: relative tolerance 1e-5.
    """
    results = []
    for size, count in ((4, 2), (2, 4), (8, 1), (1, 8)):
        recipe = smoke_recipe(
            train__micro_batch_size=size, train__micro_batches_per_step=count, adapter__dropout=0.0
        )
        run = prepare_run(recipe)
        results.append([take_step(run) for _ in range(2)])
    for result in results[1:]:
        for step, reference in zip(result, results[0], strict=True):
            assert step.target_tokens == reference.target_tokens
            assert step.loss == pytest.approx(reference.loss, rel=1e-5)
            assert step.gradient_norm == pytest.approx(reference.gradient_norm, rel=1e-4)


def test_the_adapter_loads_with_plain_peft(smoke_recipe: SmokeRecipe, tmp_path: Path) -> None:
    run = prepare_run(smoke_recipe(adapter__method="dora"))
    for _ in range(2):
        take_step(run)
    tensors = trained_tensors(run.state.model, run.recipe)
    trained = Trained(run.state.model, run.base, run.recipe, tensors, {})
    folder = save_trained(tmp_path, "adapter", trained)
    base = AutoModelForCausalLM.from_pretrained(bundled_model("mltune/tiny"), dtype=torch.float32)
    reloaded = PeftModel.from_pretrained(base, folder)
    tokens = torch.arange(40).reshape(2, 20)
    run.state.model.eval()
    reloaded.eval()
    with torch.no_grad():
        ours = run.state.model(input_ids=tokens).logits
        theirs = reloaded(input_ids=tokens).logits
    assert torch.equal(ours, theirs)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "mltune/tiny"
    assert config["target_modules"] == sorted(config["target_modules"])


def test_a_full_model_loads_with_plain_transformers(
    smoke_recipe: SmokeRecipe, tmp_path: Path
) -> None:
    run = prepare_run(smoke_recipe(adapter__method="full"))
    take_step(run)
    tensors = trained_tensors(run.state.model, run.recipe)
    trained = Trained(run.state.model, run.base, run.recipe, tensors, {})
    folder = save_trained(tmp_path, "adapter", trained)
    reloaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    run.state.model.eval()
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        assert torch.equal(run.state.model(input_ids=tokens).logits, reloaded(tokens).logits)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_who_only_helps_to_make_tensors_whole_keeps_none(
    smoke_recipe: SmokeRecipe, method: str
) -> None:
    run = prepare_run(smoke_recipe(adapter__method=method))
    assert trained_tensors(run.state.model, run.recipe, keep=False) == {}
    assert len(trained_tensors(run.state.model, run.recipe, keep=True)) > 30


@pytest.mark.parametrize("poison", ["weights", "gradients"])
def test_a_step_that_is_not_finite_changes_nothing(smoke_recipe: SmokeRecipe, poison: str) -> None:
    run = prepare_run(smoke_recipe())
    take_step(run)
    if poison == "weights":
        frozen = next(p for p in run.state.model.parameters() if not p.requires_grad)
        frozen.data.view(-1)[0] = float("inf")
    else:
        first = next(iter(run.state.parameters.values()))
        first.register_hook(lambda gradient: gradient * float("nan"))
    before = {name: p.detach().clone() for name, p in run.state.parameters.items()}
    with pytest.raises(NoVerdictError, match=r"step 2: the (loss|gradient norm) is (nan|inf)"):
        take_step(run)
    assert run.state.step == 1
    assert all(torch.equal(before[name], p) for name, p in run.state.parameters.items())


def test_an_unused_parameter_has_a_gradient_of_zero(smoke_recipe: SmokeRecipe) -> None:
    run = prepare_run(smoke_recipe())
    unused = torch.nn.Parameter(torch.ones(3))
    run.state.parameters["unused"] = unused
    run.state.optimizer.add_param_group({"params": [unused]})
    take_step(run)
    assert torch.isfinite(unused).all()


def test_random_numbers_belong_to_the_micro_batch(smoke_recipe: SmokeRecipe) -> None:
    """Whatever draws between steps, dropout sees the same numbers."""
    digests: list[Any] = []
    for disturb in (False, True):
        run = prepare_run(smoke_recipe(adapter__dropout=0.3))
        take_step(run)
        if disturb:
            torch.rand(1000)
        digests.append(take_step(run).witness)
    assert digests[0] == digests[1]
