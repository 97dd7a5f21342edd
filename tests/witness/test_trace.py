"""The operation trace: planted faults are found at their call, clean steps are equal."""

import random
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
import torch.utils.data
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.report import Localisation
from mltune_cli.reproduction.trace_comparison import (
    TraceFiles,
    compare_traces,
    convicted,
    uninitialised_read,
)
from mltune_cli.witness import memory
from mltune_cli.witness.memory import Memory
from mltune_cli.witness.trace import OperationTrace, open_trace
from mltune_cli.witness.trace_record import TraceRecord, TraceRequest


class Net(torch.nn.Module):
    """Two layers, dropout, and a place for a fault between them."""

    def __init__(self, fault: Callable[[torch.Tensor], torch.Tensor] | None = None) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.drop = torch.nn.Dropout(0.1)
        self.second = torch.nn.Linear(16, 4)
        self.fault = fault or (lambda hidden: hidden)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.second(self.fault(self.drop(torch.relu(self.first(rows)))))


def take_step(net: torch.nn.Module, rows: torch.Tensor, **optimizer: Any) -> None:
    chosen = torch.optim.AdamW(net.parameters(), **{"lr": 1e-2, **optimizer})
    net(rows).square().mean().backward()
    chosen.register_step_pre_hook(lambda *_: note_optimizer(begins=True))
    chosen.step()


def note_optimizer(*, begins: bool) -> None:
    """Tell the trace that is entered now, if one is."""
    if traces:
        traces[-1].sites.note_optimizer(begins=begins)


traces: list[OperationTrace] = []


def traced(folder: Path, call: Callable[[], object], **request: int) -> TraceFiles:
    torch.manual_seed(1)
    trace = open_trace(folder, "main", TraceRequest(1, **request))
    trace.begin()
    traces.append(trace)
    try:
        call()
    finally:
        traces.pop()
        trace.finish()
    return TraceFiles(folder, "main")


def net_and_rows(fault: Any = None) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    return Net(fault), torch.randn(8, 8)


def compared(
    tmp_path: Path, first: Callable[[], object], second: Callable[[], object]
) -> Localisation | None:
    traces = [traced(tmp_path / name, call) for name, call in (("a", first), ("b", second))]
    return compare_traces(traces[0], traces[1], 1)


def step_with(fault: Any = None, change: Any = None, **optimizer: Any) -> Callable[[], None]:
    net, rows = net_and_rows(fault)
    if change is not None:
        change(net, rows)

    def call() -> None:
        take_step(net, rows, **optimizer)

    return call


def checkpointed() -> Callable[[], None]:
    net, rows = net_and_rows()

    def call() -> None:
        torch.utils.checkpoint.checkpoint(net, rows, use_reentrant=False).sum().backward()

    return call


def with_autocast() -> Callable[[], None]:
    net, rows = net_and_rows()

    def call() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = net(rows).float().square().mean()
        loss.backward()

    return call


@pytest.mark.parametrize(
    "make",
    [
        step_with,
        checkpointed,
        with_autocast,
        lambda: step_with(foreach=True),
        lambda: step_with(fused=True),
    ],
    ids=["plain", "checkpointing", "autocast", "foreach", "fused"],
)
def test_clean_steps_are_equal(tmp_path: Path, make: Callable[[], Callable[[], None]]) -> None:
    assert compared(tmp_path, make(), make()) is None


def test_tracing_changes_no_bit(tmp_path: Path) -> None:
    net, rows = net_and_rows()
    torch.manual_seed(1)
    take_step(net, rows)
    state = torch.get_rng_state()
    other, same_rows = net_and_rows()
    traced(tmp_path, lambda: take_step(other, same_rows), executions=2)
    pairs = zip(net.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs)
    assert torch.equal(torch.get_rng_state(), state)


def one_ulp(net: Net, rows: torch.Tensor) -> None:
    with torch.no_grad():
        weight = net.second.weight
        weight[2, 3] = torch.nextafter(weight[2, 3], torch.tensor(9.0))


def test_one_ulp_in_a_weight_is_found_where_it_is_read(tmp_path: Path) -> None:
    found = compared(tmp_path, step_with(), step_with(change=one_ulp))
    assert found is not None
    assert (found.operation, found.phase, found.module) == (
        "aten.addmm.default", "forward", "Net.second",
    )  # fmt: skip
    assert (found.differs, found.made_by, found.was_written_outside) == ("input", None, False)
    (tensor,) = found.tensors
    assert (tensor.differing, tensor.largest_ulps) == (1, 1)
    assert found.frame is not None
    assert "test_trace.py" in found.frame
    assert found.frame.endswith("in forward")


def test_another_learning_rate_is_an_argument_of_the_optimizer(tmp_path: Path) -> None:
    found = compared(tmp_path, step_with(), step_with(lr=1e-2 + 1e-9))
    assert found is not None
    assert (found.differs, found.phase) == ("argument", "optimizer")


def test_an_additional_call_is_another_operation(tmp_path: Path) -> None:
    found = compared(tmp_path, step_with(), step_with(lambda hidden: hidden * torch.rand(())))
    assert found is not None
    assert found.differs == "operation"
    assert found.values is not None
    assert found.values[1].startswith("aten.rand.default")


class Noisy(torch.autograd.Function):
    """An operation whose backward is not repeatable, and draws from no generator of torch."""

    @staticmethod
    def forward(context: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return torch.ops.mltune_test.racing(gradient)


@torch.library.custom_op("mltune_test::racing", mutates_args=())
def racing(values: torch.Tensor) -> torch.Tensor:
    """Add what comes from the system's noise, as a race would."""
    noise = int.from_bytes(np.random.default_rng().bytes(2), "little") + 1
    return values * (1 + noise * 1e-6)


def racing_step() -> Callable[[], None]:
    return step_with(Noisy.apply)


def test_a_race_is_found_in_backward_and_convicted(tmp_path: Path) -> None:
    found = compared(tmp_path, racing_step(), racing_step())
    assert found is not None
    assert (found.operation, found.phase, found.differs) == (
        "mltune_test.racing.default", "backward", "output",
    )  # fmt: skip
    assert found.node == "NoisyBackward"
    assert found.module == "Net"
    assert found.tensors[0].differing
    guilty = convicted(traced(tmp_path / "c", racing_step(), executions=4), 1)
    assert guilty is not None
    assert guilty.is_convicted
    assert guilty.operation == "mltune_test.racing.default"
    assert guilty.tensors[0].differing


def test_executing_twice_convicts_nothing_that_is_clean(tmp_path: Path) -> None:
    assert convicted(traced(tmp_path, step_with(), executions=3), 1) is None
    assert convicted(traced(tmp_path / "f", step_with(fused=True), executions=3), 1) is None


def partly_written(hidden: torch.Tensor) -> torch.Tensor:
    offset = torch.empty(16)
    offset[:15] = 0.0
    return hidden + offset


def wholly_written(hidden: torch.Tensor) -> torch.Tensor:
    offset = torch.empty(16)
    offset[:15] = 0.0
    offset[15] = 1.0
    other = torch.empty_like(offset).copy_(offset)
    return hidden + other + torch.empty(16).uniform_()


def uninitialised_reads(folder: Path) -> list[TraceRecord]:
    return [
        record
        for record in TraceFiles(folder, "main").records()
        if any(tensor.digest == "uninitialised" for tensor in record.inputs)
    ]


def test_a_read_of_memory_that_nothing_wrote_is_told(tmp_path: Path) -> None:
    traced(tmp_path / "a", step_with(partly_written))
    (read,) = uninitialised_reads(tmp_path / "a")
    assert read.operation == "aten.add.Tensor"
    assert read.frame is not None
    assert read.frame.endswith("in partly_written")
    traced(tmp_path / "b", step_with(wholly_written))
    assert uninitialised_reads(tmp_path / "b") == []


@torch.library.custom_op("mltune_tests::empty", mutates_args=())
def garbage(size: int) -> torch.Tensor:
    """Reserve memory, as `torch.empty` does, in which something stands that nobody wrote."""
    return torch.full((size,), _GARBAGE.pop())


_GARBAGE: list[float] = []


def test_what_was_never_written_is_blamed_before_the_operation(tmp_path: Path) -> None:
    _GARBAGE[:] = range(64)
    found = compared(
        tmp_path,
        step_with(lambda hidden: hidden + garbage(16)),
        step_with(lambda hidden: hidden + garbage(16)),
    )
    assert found is not None
    assert (found.reads_uninitialised, found.differs) == (True, "output")


@pytest.mark.parametrize("is_begun", [False, True], ids=["all of it", "the rest"])
def test_what_numpy_filled_is_no_garbage(tmp_path: Path, is_begun: bool) -> None:
    def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
        def fault(hidden: torch.Tensor) -> torch.Tensor:
            offset = torch.empty(16)
            if is_begun:
                offset[:8] = 0.5
            offset.numpy()[8 if is_begun else 0 :] = value
            return hidden + offset

        return fault

    found = compared(tmp_path, step_with(filled(1.0)), step_with(filled(2.0)))
    assert found is not None
    assert (found.reads_uninitialised, found.differs) == (False, "input")
    assert not found.was_written_outside


def test_a_write_that_torch_does_not_see_is_told(tmp_path: Path) -> None:
    def fault(by: float) -> Callable[[torch.Tensor], torch.Tensor]:
        def write(hidden: torch.Tensor) -> torch.Tensor:
            hidden.detach().numpy()[0, 0] += by
            return hidden

        return write

    found = compared(tmp_path, step_with(fault(1e-3)), step_with(fault(2e-3)))
    assert found is not None
    assert (found.differs, found.was_written_outside) == ("input", True)
    assert found.made_by == "aten.mul.Tensor"


def test_data_from_outside_has_no_maker(tmp_path: Path) -> None:
    def fault(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda hidden: hidden + torch.from_numpy(np.full(16, value, dtype=np.float32))

    found = compared(tmp_path, step_with(fault(1.0)), step_with(fault(2.0)))
    assert found is not None
    assert (found.differs, found.made_by, found.was_written_outside) == ("input", None, False)


def test_a_generator_in_another_state_is_told(tmp_path: Path) -> None:
    first, second = step_with(), step_with()

    def shifted() -> None:
        torch.manual_seed(2)
        second()

    found = compared(tmp_path, first, shifted)
    assert found is not None
    assert found.differs == "random state"
    assert found.module == "Net.drop"


def test_python_and_numpy_draws_are_calls_too(tmp_path: Path) -> None:
    def drawing(with_python: bool) -> Callable[[torch.Tensor], torch.Tensor]:
        def fault(hidden: torch.Tensor) -> torch.Tensor:
            if with_python:
                random.shuffle([1, 2])
            return hidden + float(np.random.rand())

        return fault

    before = random.shuffle, np.random.rand
    found = compared(tmp_path, step_with(drawing(False)), step_with(drawing(True)))
    assert (random.shuffle, np.random.rand) == before
    assert found is not None
    assert found.values is not None
    assert found.values[0].startswith("numpy.random.rand at ")
    assert found.values[1].startswith("python.random.shuffle at ")
    assert found.values[1].endswith("in fault")


def test_what_another_thread_draws_is_no_call_of_the_step(tmp_path: Path) -> None:
    """A thread that prefetches rows draws at another time in each run."""

    def drawing() -> None:
        for target in (random.random, np.random.rand):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
        random.random()

    names = [record.operation for record in traced(tmp_path, drawing).records()]
    assert [name for name in names if ".random." in name] == ["python.random.random"]


def recurrent() -> Callable[[], object]:
    net = torch.nn.LSTM(4, 8, batch_first=True)
    rows = torch.randn(3, 5, 4)
    return lambda: net(rows)[0].sum().backward()


def connectionist() -> Callable[[], object]:
    scores = torch.randn(12, 3, 5).log_softmax(-1).requires_grad_()
    labels = torch.randint(1, 5, (3, 4))
    lengths = torch.tensor([12, 7, 4]), torch.tensor([4, 2, 1])
    return lambda: torch.nn.functional.ctc_loss(scores, labels, *lengths).backward()


@pytest.mark.parametrize("make", [recurrent, connectionist])
def test_what_operations_note_for_their_own_backward_is_no_result(
    tmp_path: Path, make: Callable[[], Callable[[], object]]
) -> None:
    """It is reserved, and only parts of it are written: never twice the same."""
    alive = []
    files = []
    for name in "ab":
        torch.manual_seed(0)
        call = make()
        # What is reserved next holds something else each time.
        alive.extend(torch.rand(size) for size in (7168, 1024, 225, 81) for _ in range(6))
        del alive[::2]
        files.append(traced(tmp_path / name, call, executions=3))
    assert any(record.phase == "backward" for record in files[0].records())
    assert convicted(files[0], 1) is None
    assert uninitialised_read(files[0], 1) is None
    assert compare_traces(*files, 1) is None


def test_more_than_is_kept_is_told_by_digests_alone(tmp_path: Path) -> None:
    traces = [
        traced(tmp_path / name, step_with(change=change), keep_bytes=0)
        for name, change in (("a", None), ("b", one_ulp))
    ]
    found = compare_traces(traces[0], traces[1], 1)
    assert found is not None
    assert found.tensors[0].differing is None
    kept = [
        traced(tmp_path / name, step_with(change=change), keep_from=found.record)
        for name, change in (("c", None), ("d", one_ulp))
    ]
    again = compare_traces(kept[0], kept[1], 1)
    assert again is not None
    assert again.tensors[0].differing == 1


def test_a_cut_trace_is_not_whole(tmp_path: Path) -> None:
    files = traced(tmp_path, step_with())
    assert files.is_whole()
    path = tmp_path / "trace" / "main.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert not files.is_whole()


class Slow(torch.utils.data.Dataset[torch.Tensor]):
    """Rows that are computed by torch in the loader's processes."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((3,), float(index)) * 2 + random.random()


def test_forked_processes_are_no_part_of_the_trace(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(Slow(), batch_size=2, num_workers=2)
    files = traced(tmp_path, lambda: [batch.sum() for batch in loader])
    operations = [record.operation for record in files.records()]
    assert operations.count("aten.sum.default") == 4
    assert "aten.full.default" not in operations
    assert "python.random.random" not in operations
    lines = (tmp_path / "trace" / "main.jsonl").read_text().splitlines()
    assert lines[-1] == f'{{"end": {len(lines) - 1}}}'


def test_compiled_code_does_not_end_the_trace(tmp_path: Path) -> None:
    pytest.importorskip("torch._dynamo")
    net, rows = net_and_rows()
    net.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = traced(tmp_path, lambda: take_step(net, rows))
    assert any(record.operation == "aten.addmm.default" for record in files.records())


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    writes=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=6),
)
def test_memory_is_uninitialised_until_each_element_was_written(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], writes: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("trace")
    written = torch.zeros(sizes, dtype=torch.bool)

    def call() -> None:
        memory = torch.empty(sizes)
        for start, length in writes:
            memory[start : start + length] = 1.0
            written[start : start + length] = True
        memory.clone()

    traced(folder, call)
    clones = [r for r in uninitialised_reads(folder) if r.operation == "aten.clone.default"]
    assert bool(clones) == (not bool(written.all()))


def test_copies_of_reserved_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LARGEST_COPIES", 10 * 4096)
    seen = Memory()
    alive = []
    for number in range(30):
        tensor = torch.empty(1024)
        seen.allocated(tensor, number)
        if number % 3 == 0:
            alive.append(tensor)
    kept = [piece for piece in seen._pieces.values() if piece.reserved is not None]
    assert 5 <= len(kept) <= 10
    # What is alive and has no copy is still known to be raw.
    assert all(seen.is_uninitialised(tensor) for tensor in alive)
    torch.full((1024,), 3.0, out=alive[0])
    seen.wrote(alive[0], 30)
    assert not seen.is_uninitialised(alive[0])


def test_pieces_of_memory_are_told_apart() -> None:
    seen = Memory()
    weight, other = torch.zeros(2, 3), torch.zeros(3)
    seen.is_there(weight)
    seen.wrote(other, 5)
    assert (seen.made_by(weight), seen.made_by(other)) == (-1, 5)
    assert seen.number(weight) == seen.number(weight.t()) is not None
    assert seen.number(other) == seen.number(other[1:]) != seen.number(weight)
    assert seen.number(torch.zeros(3)) is None


@pytest.mark.parametrize("line", ["3", "[]", "null", "{", "{}"])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    files = traced(tmp_path, step_with())
    path = tmp_path / "trace" / "main.jsonl"
    path.write_text(f"{line}\n{path.read_text()}")
    with pytest.raises(NoVerdictError, match=r"main\.jsonl: cannot be read as a trace"):
        list(files.records())


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("executions", [1, 2])
def test_nested_tensors_are_traced(tmp_path: Path, layout: torch.layout, executions: int) -> None:
    def step(last: float = 3.0) -> None:
        parts = [torch.ones(1, 2), torch.full((2, 2), last)]
        rows = torch.nested.nested_tensor(parts, layout=layout)
        linear = torch.nn.Linear(2, 1)
        torch.nested.to_padded_tensor(linear(rows), 0.0).sum().backward()

    step()  # torch makes what all nested tensors share once in a process
    files = []
    for name, last in (("a", 3.0), ("b", 3.0), ("c", 4.0)):
        torch.manual_seed(0)
        files.append(traced(tmp_path / name, lambda last=last: step(last), executions=executions))
    assert compare_traces(files[0], files[1], 1) is None
    assert compare_traces(files[0], files[2], 1) is not None
    assert convicted(files[0], 1) is None
