"""The witness of a training loop that somebody else wrote, inside one process."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from mltune_cli.bundled import bundled_model
from mltune_cli.reproduction.observations import differing_tensors
from mltune_cli.reproduction.report import FirstDifference
from mltune_cli.reproduction.trace_comparison import TraceFiles
from mltune_cli.witness.api import witness
from mltune_cli.witness.hf import WitnessCallback
from mltune_cli.witness.naming import find_model
from mltune_cli.witness.observer import Observer
from mltune_cli.witness.record import WitnessRecord
from mltune_cli.witness.seeding import SeedWatch
from mltune_cli.witness.stages import held_digest, hyperparameters, value_digest
from mltune_cli.witness.trace_record import TraceRequest


def train(steps: int = 3, **changes: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=changes.get("lr", 1e-2))
    rows = torch.arange(12.0).view(4, 3) + changes.get("offset", 0)
    for _ in range(steps):
        for (batch,) in DataLoader(TensorDataset(rows), batch_size=2):
            model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def records(folder: Path, name: str = "main.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_equal_trainings_have_equal_records(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with witness(tmp_path / name):
            train()
    first, second = records(tmp_path / "a"), records(tmp_path / "b")
    assert first == second
    assert [record["step"] for record in first] == [0, 1, 2, 3]
    assert {record["source"] for record in first} == {"Adam 1"}


@pytest.mark.parametrize(
    ("change", "stage"),
    [({"lr": 1e-2 + 1e-14}, "hyperparameters"), ({"offset": 1e-6}, "batch")],
)
def test_a_difference_shows_in_its_stage(
    tmp_path: Path, change: dict[str, float], stage: str
) -> None:
    for name, given in (("a", {}), ("b", change)):
        with witness(tmp_path / name):
            train(**given)
    first, second = records(tmp_path / "a")[1], records(tmp_path / "b")[1]
    assert next(key for key in first if first[key] != second[key]) == stage


def train_by_closures(optimizer_class: type[torch.optim.Optimizer], rows: torch.Tensor) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = optimizer_class(model.parameters(), lr=1e-2)  # type: ignore[call-arg]
    for (batch,) in DataLoader(TensorDataset(rows), batch_size=2):

        def closure(batch: torch.Tensor = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = model(batch).square().mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            return loss

        optimizer.step(closure)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.LBFGS])
def test_losses_and_gradients_of_a_closure_belong_to_its_step(
    tmp_path: Path, optimizer: type[torch.optim.Optimizer]
) -> None:
    rows = torch.arange(24.0).view(8, 3) / 24
    with witness(tmp_path / "a"):
        train_by_closures(optimizer, rows)
    changed = rows.clone()
    changed[4] *= 1.0001  # in the third step
    with witness(tmp_path / "b"):
        train_by_closures(optimizer, changed)
    first, second = records(tmp_path / "a"), records(tmp_path / "b")
    assert len(first) == 5
    assert first[:3] == second[:3]
    for stage in ("batch", "loss", "gradients", "clipped_gradients", "parameters"):
        assert first[3][stage] != second[3][stage], stage


class Twice(torch.optim.SGD):
    """Calls its parent's step, which torch's hooks see as well."""

    fails = False

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if self.fails:
            raise RuntimeError("out of memory")
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.mul_(0.5)
        return loss


class Hidden(Twice):
    """Has a closure of its own."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        own, self.closure = getattr(self, "closure", None), None
        return super().step(own or closure)


def test_a_step_that_calls_its_parents_step_is_one_step(tmp_path: Path) -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)  # torch hooks both classes
    rows = torch.arange(24.0).view(8, 3) / 24
    with witness(tmp_path):
        train_by_closures(Twice, rows)
        model = torch.nn.Linear(3, 2)
        optimizer = Hidden(model.parameters(), lr=0.1)
        for _ in range(3):
            model(rows).mean().backward()
            optimizer.fails = not optimizer.fails
            with contextlib.suppress(RuntimeError):
                optimizer.step()
    found = records(tmp_path)
    assert [record["step"] for record in found] == [0, 1, 2, 3, 4, 0, 5]
    assert [record["source"] for record in found] == ["Twice 1"] * 5 + ["Hidden 2"] * 2
    assert all("loss" in record and "gradients" in record for record in found if record["step"])
    # It is the state at the end of the whole step.
    held = {f"0.{n}": p for n, p in enumerate(model.parameters())}
    assert found[-1]["parameters"] == held_digest(held)


def test_what_a_step_computes_in_its_parents_step_is_its_own(tmp_path: Path) -> None:
    torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    model = torch.nn.Linear(3, 2)
    optimizer = Hidden(model.parameters(), lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).mean()
        loss.backward()
        return loss

    with witness(tmp_path):
        for _ in range(2):
            optimizer.closure = closure
            optimizer.step()
    assert ["loss" in record for record in records(tmp_path)] == [False, True, True]


@pytest.mark.filterwarnings("ignore")
def test_modules_of_torchscript_are_watched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inner = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model = torch.jit.trace(inner, torch.ones(4, 3))  # type: ignore[no-untyped-call]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with witness(tmp_path):
        model(torch.rand(4, 3)).square().mean().backward()
        optimizer.step()
    assert [record["step"] for record in records(tmp_path)] == [0, 1]


class Batch:
    """Rows, and when they were put together."""

    def __init__(self, rows: torch.Tensor, when: float) -> None:
        self.rows, self.when = rows, when


def test_what_a_batch_carries_beside_its_tensors_is_not_compared() -> None:
    rows = torch.arange(6.0).view(2, 3)
    assert value_digest(Batch(rows, 1.0)) == value_digest(Batch(rows, 2.0))
    assert value_digest(Batch(rows, 1.0)) != value_digest(Batch(rows + 1, 1.0))
    assert value_digest(Batch([rows], 1.0)) != value_digest(Batch([rows + 1], 1.0))  # type: ignore[arg-type]


def test_watching_changes_nothing_and_ends(tmp_path: Path) -> None:
    backward, give = torch.autograd.backward, torch.utils.data.dataloader._BaseDataLoaderIter
    original = give.__next__
    plain = train()
    with witness(tmp_path):
        watched = train()
    assert torch.equal(plain.weight, watched.weight)
    assert torch.autograd.backward is backward
    assert give.__next__ is original
    before = (tmp_path / "main.jsonl").read_bytes()
    train()
    assert (tmp_path / "main.jsonl").read_bytes() == before


def test_a_block_that_fails_leaves_no_hook(tmp_path: Path) -> None:
    def fail() -> None:
        with witness(tmp_path):
            train(1)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    train()
    assert len(records(tmp_path)) == 2


def test_a_second_file_stands_beside_the_first(tmp_path: Path) -> None:
    for _ in range(2):
        with witness(tmp_path):
            train(1)
    assert records(tmp_path) == records(tmp_path, "main.2.jsonl")


def test_a_rank_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    with witness(tmp_path):
        train(1)
    assert len(records(tmp_path, "rank-3.jsonl")) == 2


def test_sparse_and_missing_gradients_are_digested(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = torch.nn.Embedding(5, 2, sparse=True)
    unused = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([table.weight, unused], lr=0.1)
    with witness(tmp_path):
        table(torch.tensor([1, 1, 3])).sum().backward()
        optimizer.step()
    assert len(records(tmp_path)) == 2


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"x": 1}, {"x": 2}),
        ({"x": 1}, {"y": 1}),
        ([torch.ones(2), "text"], [torch.ones(2), "texts"]),
        (torch.zeros(2), -torch.zeros(2)),
        ((1, 2), (2, 1)),
    ],
)
def test_batches_of_any_nesting_differ_where_their_content_does(a: Any, b: Any) -> None:
    assert value_digest(a) == value_digest(a)
    assert value_digest(a) != value_digest(b)


def test_settings_that_are_objects_are_spelled_without_their_address() -> None:
    def optimizer() -> torch.optim.Optimizer:
        made = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.1))
        made.param_groups[0]["extra"] = object()
        return made

    assert hyperparameters(optimizer()) == hyperparameters(optimizer())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_trainer_of_transformers_with_the_callback(tmp_path: Path) -> None:
    rows = [{"input_ids": list(range(4, 12)), "labels": list(range(4, 12))} for _ in range(8)]
    for name in ("a", "b"):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_pretrained(bundled_model("mltune/tiny"))
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=2,
            report_to=[], save_strategy="no", use_cpu=True, gradient_accumulation_steps=2,
        )  # fmt: skip
        callback = WitnessCallback(tmp_path / name)
        Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
    first = records(tmp_path / "a")
    assert first == records(tmp_path / "b")
    assert [record["step"] for record in first] == [0, 1, 2]
    assert all(stage in first[1] for stage in ("batch", "loss", "gradients"))


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_the_step_that_was_asked_for_is_traced(tmp_path: Path, step: int) -> None:
    observer = Observer(tmp_path, trace=TraceRequest(step))
    observer.install()
    try:
        train(steps=3)
    finally:
        observer.remove()
    lines = (tmp_path / "trace" / "main.jsonl").read_text().splitlines()
    names = [json.loads(line).get("operation", "") for line in lines]
    assert json.loads(lines[-1]) == {"end": len(lines) - 1}
    # Weights are drawn before step 1, which also makes the state; every step multiplies.
    assert ("aten.uniform_.default" in names) == (step == 0)
    phases = {json.loads(line).get("phase") for line in lines[:-1]}
    assert ("optimizer" in phases) == (step > 0)
    assert names.count("aten.mean.default") == 2


def test_what_a_later_optimizer_trains_was_digested_by_nobody(tmp_path: Path) -> None:
    observer = Observer(tmp_path, trace=TraceRequest(1))
    observer.install()
    try:
        made = [torch.nn.Linear(4, 1), torch.nn.Linear(2, 4)]
        optimizers = [torch.optim.SGD(one.parameters(), lr=0.1) for one in made]
        made[0](made[1](torch.ones(3, 2)).detach()).sum().backward()
        optimizers[0].step()
    finally:
        observer.remove()
    reads = [one for one in TraceFiles(tmp_path, "main").records() if "addmm" in one.operation]
    makers = [{read.made_by for read in one.inputs if read.shape != (3, 2)} for one in reads]
    assert makers[0] == {None}
    assert -1 in makers[1]
    assert None not in makers[1]


def test_a_paused_observer_goes_on_in_the_same_file(tmp_path: Path) -> None:
    observer = Observer(tmp_path)
    for _ in range(2):
        observer.install()
        train(steps=1)
        observer.pause()
        train(steps=1)
    observer.remove()
    found = [(record["step"], record["source"]) for record in records(tmp_path)]
    assert found == [(0, "Adam 1"), (1, "Adam 1"), (0, "Adam 2"), (2, "Adam 2")]


def test_batches_that_nothing_was_trained_on_are_no_batches(tmp_path: Path) -> None:
    """An evaluation between steps reads a loader to its end, and takes no loss backward."""

    def loop(evaluations: int) -> None:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = TensorDataset(torch.arange(12.0).view(4, 3))
        for (batch,) in DataLoader(rows, batch_size=2):
            for _ in range(evaluations):
                with torch.no_grad():
                    sum(model(held_out).sum() for (held_out,) in DataLoader(rows))
            model(batch).square().mean().backward()
            optimizer.step()

    for name, evaluations in (("a", 0), ("b", 2)):
        with witness(tmp_path / name):
            loop(evaluations)
    first, second = records(tmp_path / "a"), records(tmp_path / "b")
    assert [one["batch"] for one in first[1:]] == [one["batch"] for one in second[1:]]
    assert [len(one["facts"]["rows"]) for one in second[1:]] == [2, 2]


class Wrapped(torch.nn.Module):
    """Puts new parameters in the place of those that were drawn, as wrappers of models do."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(inner.weight.detach().double().clone())
        self.bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("calls", "count"),
    [
        (["seed", "model"], 0),
        (["model", "seed"], 2),
        (["model", "seed", "wrap"], 1),
        (["model", "seed", "draw again"], 1),
        (["seed", "model", "seed"], 0),
        (["another way", "model", "seed"], 0),
        (["state", "model", "seed"], 0),
        (["a seed at random", "model", "seed"], 2),
        (["another way", "a seed at random", "model", "seed"], 2),
        (["own generator", "seed"], 0),
    ],
)
def test_what_was_drawn_before_the_seed_is_counted(calls: list[str], count: int) -> None:
    watch = SeedWatch()
    watch.install()
    model: torch.nn.Module = torch.nn.Identity()
    try:
        for call in calls:
            if call == "seed":
                torch.manual_seed(5)
            elif call == "model":
                model = torch.nn.Linear(3, 2)
            elif call == "wrap":
                assert isinstance(model, torch.nn.Linear)
                model = Wrapped(model)
            elif call == "another way":
                torch.default_generator.manual_seed(torch.initial_seed() + 1)
            elif call == "state":
                other = torch.Generator().manual_seed(torch.initial_seed() + 1)
                torch.set_rng_state(other.get_state())
            elif call == "a seed at random":
                torch.seed()
            elif call == "own generator":
                model = torch.nn.utils.skip_init(torch.nn.Linear, 3, 2)
                own = torch.Generator().manual_seed(7)
                for parameter in model.parameters():
                    torch.nn.init.normal_(parameter, generator=own)
            else:
                torch.nn.init.normal_(model.get_parameter("weight"))
    finally:
        watch.remove()
    facts = watch.facts(model.parameters())
    assert facts["drawn_before_seed"] == count
    assert facts["seeds"] == [5] * calls.count("seed")


@pytest.mark.parametrize("kind", ["fake", "vmap", "meta"])
def test_weights_without_values_are_drawn_as_without_the_watch(kind: str) -> None:
    def draw(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.init.normal_(torch.empty_like(rows)) + rows

    watch = SeedWatch()
    watch.install()
    try:
        if kind == "fake":
            with FakeTensorMode():
                drawn: list[torch.Tensor] = [*torch.nn.Linear(3, 2).parameters()]
        elif kind == "vmap":
            drawn = [torch.vmap(draw, randomness="different")(torch.zeros(2, 3))]
        else:
            drawn = [*torch.nn.Linear(3, 2, device="meta").parameters()]
    finally:
        watch.remove()
    assert watch.facts(drawn)["drawn_before_seed"] == 0


def difference(stage: str, **fields: Any) -> FirstDifference:
    return FirstDifference(step=1, stage=stage, stages=[stage], runs=(1, 2), values=None, **fields)


def test_single_tensors_are_named_on_request(tmp_path: Path) -> None:
    for name, change in (("a", {}), ("b", {"lr": 2e-2})):
        with witness(tmp_path / name, per_tensor=True):
            train(steps=1, **change)
    pair = [[WitnessRecord.from_fields(r) for r in records(tmp_path / name)] for name in "ab"]
    named = differing_tensors((pair[0], pair[1]), difference("parameters"))
    assert named == ["0.0 weight", "0.1 bias"]
    assert differing_tensors((pair[0], pair[1]), difference("gradients")) == []
    assert differing_tensors((pair[0], pair[1]), difference("parameters", is_start=True)) == []
    optimizer = pair[0][1].facts["tensors"]["optimizer"]
    assert {"0.0 weight.exp_avg", "0.1 bias.exp_avg_sq", "0.0 weight.step"} <= optimizer.keys()


def normalised(feed: torch.Tensor | None = None) -> None:
    """Train a model with running statistics; what it is fed besides reaches nothing else."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    model.register_buffer("scratch", torch.empty(4).fill_(torch.rand(()).item()), persistent=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        if feed is not None:
            with torch.no_grad():
                model(feed)
        model(torch.arange(12.0).view(4, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


class Mute(torch.nn.Linear):
    """What `torch.compile` returns has a length, and raises where the module has none."""

    def __len__(self) -> int:
        raise TypeError


def test_a_module_that_refuses_its_length_is_watched(tmp_path: Path) -> None:
    model = Mute(2, 2)
    with witness(tmp_path):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    assert [record["step"] for record in records(tmp_path)] == [0, 1]


def test_running_statistics_are_a_stage_of_their_own(tmp_path: Path) -> None:
    for name, feed in (("a", None), ("b", torch.ones(2, 3))):
        with witness(tmp_path / name, per_tensor=True):
            normalised(feed)
    first, second = records(tmp_path / "a"), records(tmp_path / "b")
    assert first[0] == second[0]
    differing = {
        stage for stage in first[1] if stage != "facts" and first[1][stage] != second[1][stage]
    }
    assert differing == {"buffers"}
    assert set(first[1]["facts"]["tensors"]["buffers"]) == {
        "1.num_batches_tracked", "1.running_mean", "1.running_var",
    }  # fmt: skip
    assert "buffers" not in _witness_of_a_linear_layer(tmp_path)[1]


def _witness_of_a_linear_layer(folder: Path) -> list[dict[str, Any]]:
    with witness(folder / "c"):
        train()
    return records(folder / "c")


class Holder(torch.nn.Module):
    def __init__(self, **held: torch.nn.Module) -> None:
        super().__init__()
        for name, module in held.items():
            setattr(self, name, module)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


def test_what_else_holds_a_parameter_does_not_show(tmp_path: Path) -> None:
    """A resumed process may have no more use for the model of an earlier phase."""
    for name in ("a", "b"):
        with witness(tmp_path / name):
            torch.manual_seed(0)
            shared = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
            decoder = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8))
            first = Holder(encoder=shared, decoder=decoder) if name == "a" else None
            model = Holder(backbone=shared)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(2):
                optimizer.zero_grad()
                shared(torch.rand(3, 2)).sum().backward()
                optimizer.step()
            del first
    stages = ("gradients", "optimizer", "parameters", "buffers")
    digests = [
        [[one.get(stage) for stage in stages] for one in records(tmp_path / name)] for name in "ab"
    ]
    assert digests[0] == digests[1]
    assert None not in digests[0][-1]


@pytest.mark.parametrize("kind", [torch.nn.ParameterList, torch.nn.ModuleList])
def test_what_lists_the_trained_parameters_is_not_the_model(kind: Any) -> None:
    backbone = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    backbone.requires_grad_(requires_grad=False)
    head = torch.nn.Linear(2, 2)
    model = Holder(backbone=backbone, head=head)
    listed = kind(head.parameters() if kind is torch.nn.ParameterList else [head])
    found = find_model(listed.parameters())
    assert set(found.names.values()) == {"head.weight", "head.bias"}
    assert len(found.frozen) == len(list(backbone.parameters()))
    assert len(found.buffers()) == len(dict(model.named_buffers()))
