"""The learning rate is a function of the step; hyperparameters are seen to the last bit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.recipe.schema import TrainSection
from mltune_cli.training.optimization import (
    build_optimizer,
    hyperparameters,
    learning_rate_at,
    optimizer_tensors,
)

SCHEDULES = ("constant", "linear", "cosine")


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 400),
    data=st.data(),
)
def test_rises_to_the_peak_then_never_rises(schedule: str, total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total))
    train = TrainSection(schedule=schedule, learning_rate=0.5, warmup_steps=warmup)
    rates = [learning_rate_at(step, total, train) for step in range(1, total + 1)]
    assert all(0 < rate <= 0.5 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert rates[max(0, warmup - 1)] == 0.5


def test_known_values() -> None:
    train = TrainSection(schedule="linear", learning_rate=1.0, warmup_steps=2)
    assert [learning_rate_at(step, 6, train) for step in range(1, 7)] == [
        0.5, 1.0, 1.0, 0.75, 0.5, 0.25,
    ]  # fmt: skip
    cosine = TrainSection(schedule="cosine", learning_rate=1.0)
    assert learning_rate_at(3, 4, cosine) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_a_learning_rate_off_by_a_trillionth_shows() -> None:
    parameters = {"w": torch.nn.Parameter(torch.ones(2, 2)), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = build_optimizer(parameters, TrainSection())
    before = hyperparameters(optimizer)
    optimizer.param_groups[0]["lr"] *= 1 + 1e-12
    assert hyperparameters(optimizer) != before


def test_weight_decay_is_for_matrices_alone() -> None:
    parameters = {"b": torch.nn.Parameter(torch.ones(2)), "w": torch.nn.Parameter(torch.ones(2, 2))}
    optimizer = build_optimizer(parameters, TrainSection(weight_decay=0.5))
    decay = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decay == {id(parameters["w"]): 0.5, id(parameters["b"]): 0.0}


def test_state_is_named_after_its_parameter() -> None:
    parameters = {"w": torch.nn.Parameter(torch.ones(2, 2))}
    optimizer = build_optimizer(parameters, TrainSection())
    parameters["w"].grad = torch.ones(2, 2)
    optimizer.step()
    assert sorted(optimizer_tensors(optimizer, parameters)) == [
        "exp_avg.w",
        "exp_avg_sq.w",
        "step.w",
    ]
