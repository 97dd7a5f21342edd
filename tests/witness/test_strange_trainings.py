"""What scripts do that few scripts do: it is seen, and nothing is changed by being seen."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd.graph import get_gradient_edge
from torch.utils.data import DataLoader

from mltune_cli.witness.api import witness
from mltune_cli.witness.stages import value_digest

Backward = Callable[[torch.Tensor], None]


def trained(backward: Backward, batch: Any = None) -> torch.Tensor:
    """Return the weights after two steps."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        backward(model(torch.ones(2, 4) if batch is None else batch).sum())
        optimizer.step()
    return model.weight.detach().clone()


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "main.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "backward",
    [
        lambda loss: torch.autograd.backward(one for one in [loss]),
        lambda loss: torch.autograd.backward([loss, loss * 2]),
        lambda loss: torch.autograd.backward(get_gradient_edge(loss), torch.ones(())),
        lambda loss: torch.autograd.backward([get_gradient_edge(loss)], [torch.ones(())]),
    ],
    ids=["generator", "list", "edge", "edges"],
)
def test_whatever_backward_is_given_trains_as_without_a_witness(
    backward: Backward, tmp_path: Path
) -> None:
    alone = trained(backward)
    with witness(tmp_path):
        seen = trained(backward)
    assert torch.equal(alone, seen)
    assert not torch.equal(alone, trained(lambda loss: None))
    assert [record["step"] for record in records(tmp_path)] == [0, 1, 2]


class Node:
    """A batch that holds itself."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.parent = {"child": [self]}


def test_a_batch_that_holds_itself_has_a_digest(tmp_path: Path) -> None:
    rows = torch.arange(8.0).view(4, 2)
    with witness(tmp_path):
        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for batch in DataLoader(rows, batch_size=2, collate_fn=lambda r: Node(torch.stack(r))):
            model(batch.rows).sum().backward()
            optimizer.step()
    assert value_digest(Node(rows)) == value_digest(Node(rows.clone()))
    assert value_digest(Node(rows)) != value_digest(Node(rows + 1))
    twice = [1, 2]
    assert value_digest([twice, twice]) == value_digest([[1, 2], [1, 2]])


def test_an_array_of_objects_is_its_objects_not_their_addresses() -> None:
    def names(*words: str) -> dict[str, Any]:
        return {"name": np.array(["".join(word) for word in words], dtype=object)}

    assert value_digest(names("one row", "two rows")) == value_digest(names("one row", "two rows"))
    assert value_digest(names("one row", "two rows")) != value_digest(names("two rows", "one row"))


def frozen(value: torch.Tensor) -> torch.nn.Module:
    """Return a model with one frozen parameter, or one buffer where it can be none."""
    model = torch.nn.Linear(2, 1)
    if value.is_quantized:
        model.register_buffer("other", value)
    else:
        model.other = torch.nn.Parameter(value, requires_grad=False)
    return model


def quantised(scale: float) -> torch.Tensor:
    return torch.quantize_per_tensor(torch.arange(6.0), scale, 3, torch.qint8)


def quantised_by_channel(zero_point: int) -> torch.Tensor:
    points = torch.tensor([zero_point, 0])
    return torch.quantize_per_channel(
        torch.arange(6.0).view(2, 3), torch.ones(2), points, 0, torch.qint8
    )


COMPLEX = torch.tensor([1 + 2j, 3 - 1j])


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning")
@pytest.mark.parametrize(
    ("value", "other", "stage"),
    [
        (COMPLEX.conj(), COMPLEX, "model"),
        (COMPLEX.conj().imag, COMPLEX.imag.clone(), "model"),
        (torch.empty(3, device="meta"), torch.empty(4, device="meta"), "model"),
        (torch.eye(3).to_sparse(), (2 * torch.eye(3)).to_sparse(), "model"),
        (0.5, 0.25, "buffers"),
        (0.1, 0.1 + 2**-55, "buffers"),
        (1, 2, "buffers"),
    ],
    ids=[
        "conjugate",
        "negative",
        "meta",
        "sparse",
        "quantised",
        "quantised finely",
        "quantised by channel",
    ],
)
def test_a_tensor_of_any_kind_is_digested(
    value: Any, other: Any, stage: str, tmp_path: Path
) -> None:
    def made(given: Any) -> torch.Tensor:
        if isinstance(given, float):
            return quantised(given)
        return quantised_by_channel(given) if isinstance(given, int) else given

    digests = []
    for number, given in enumerate((value, value, other)):
        with witness(tmp_path / str(number)):
            torch.manual_seed(0)
            model = frozen(made(given))
            trained_ones = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(trained_ones, lr=0.1)
            torch.nn.functional.linear(torch.ones(1, 2), model.weight).sum().backward()
            optimizer.step()
        found = [record[stage] for record in records(tmp_path / str(number)) if stage in record]
        digests.append(found)
    assert digests[0]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_models_with_equal_names_hide_nothing_of_each_other(tmp_path: Path) -> None:
    def train(change: float, of: int) -> None:
        torch.manual_seed(0)
        models = [
            torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)) for _ in range(2)
        ]
        for model in models:
            model[0].bias.requires_grad_(False)
        parameters = [p for model in models for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=0.1)
        with torch.no_grad():
            models[of][0].bias.add_(change)
            models[of][1].running_var.add_(change)
        rows = torch.arange(12.0).view(4, 3)
        (models[0](rows) - models[1](rows)).square().mean().backward()
        optimizer.step()

    seen = []
    for number, (change, of) in enumerate([(0.0, 0), (1.0, 0), (1.0, 1)]):
        with witness(tmp_path / str(number)):
            train(change, of)
        first, second = records(tmp_path / str(number))
        seen.append((first["model"], second["buffers"]))
    assert len(set(seen)) == 3
    assert len({model for model, _ in seen}) == 3
    assert len({buffers for _, buffers in seen}) == 3


def test_a_generator_of_another_kind_is_read(tmp_path: Path) -> None:
    kept = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(0))
        with witness(tmp_path / "a"):
            trained(lambda loss: loss.backward())
        np.random.set_bit_generator(np.random.PCG64(0))
        np.random.random()
        with witness(tmp_path / "b"):
            trained(lambda loss: loss.backward())
    finally:
        np.random.set_bit_generator(kept)
    first, second = (records(tmp_path / name)[1] for name in ("a", "b"))
    assert first["rng_numpy"] != second["rng_numpy"]
    assert first["rng"] == second["rng"]


@pytest.mark.filterwarnings("error")
def test_complex_weights_are_watched_without_a_warning(tmp_path: Path) -> None:
    with witness(tmp_path):
        weights = torch.nn.Parameter(torch.nn.init.normal_(torch.empty(4, dtype=torch.complex64)))
        optimizer = torch.optim.SGD([weights], lr=0.1)
        (weights * weights.detach()).abs().sum().backward()
        optimizer.step()
    assert records(tmp_path)[0]["facts"]["drawn_before_seed"] == 1
    assert [record["step"] for record in records(tmp_path)] == [0, 1]
