"""The witness itself fails, or is interrupted: the training goes on, or ends with a reason."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils.data import DataLoader

import mltune_cli.witness
from mltune_cli.witness.api import witness
from mltune_cli.witness.observer import Observer
from mltune_cli.witness.trace_record import END, TraceRequest

INJECTED = Path(mltune_cli.witness.__file__).parent / "injected"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "main.jsonl").read_text().splitlines()]


class Unspeakable(torch.utils.data.Dataset[Any]):
    """Rows that cannot be asked what they hold."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> "Unspeakable | None":
        return self if index else None

    def keys(self) -> list[str]:
        raise RuntimeError("it has no words")


def train_on(rows: torch.utils.data.Dataset[Any] | None) -> float:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3) if rows is None else DataLoader(rows, collate_fn=lambda several: several[0]):
        loss = model(torch.ones(4, 3)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def test_a_fault_of_the_witness_leaves_the_training_alone_where_somebody_is_told(
    tmp_path: Path,
) -> None:
    plain = train_on(None)
    with pytest.raises(RuntimeError, match="no words"), witness(tmp_path / "raised"):
        train_on(Unspeakable())
    told: list[Exception] = []
    observer = Observer(tmp_path / "told", on_fault=told.append)
    observer.install()
    try:
        assert train_on(Unspeakable()) == plain
    finally:
        observer.remove()
    assert list(map(str, told)) == ["it has no words"]
    assert [record["step"] for record in records(tmp_path / "told")] == [0, 1]


def test_an_error_of_the_scripts_signal_handler_stays_the_scripts(tmp_path: Path) -> None:
    class Interrupting(Unspeakable):
        def keys(self) -> list[str]:
            signal.raise_signal(signal.SIGUSR1)
            return []

    def give_up(number: int, _: object) -> None:
        raise TimeoutError(f"signal {number}")

    before = signal.signal(signal.SIGUSR1, functools.partial(give_up))
    told: list[Exception] = []
    observer = Observer(tmp_path, on_fault=told.append)
    observer.install()
    try:
        with pytest.raises(TimeoutError, match=f"signal {int(signal.SIGUSR1)}"):
            train_on(Interrupting())
    finally:
        observer.remove()
        signal.signal(signal.SIGUSR1, before)
    # A step is missing from now on: there is no verdict.
    assert [type(error) for error in told] == [TimeoutError]


def test_a_capture_into_a_graph_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train_on(None)
    told: list[Exception] = []
    observer = Observer(tmp_path, on_fault=told.append)
    observer.install()
    # What a GPU answers that captures; the witness must not ask it for anything else.
    for answer in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, answer, lambda: True)
    try:
        assert train_on(None) == plain
    finally:
        observer.remove()
    assert "CUDA graph" in str(told)
    assert not list(tmp_path.iterdir())


class Passing(TorchDispatchMode):
    """A mode of a script's own, which changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [contextlib.nullcontext(), Passing()], ids=["alone", "below"])
def test_a_trace_ends_with_the_witness(
    mode: contextlib.AbstractContextManager[Any], tmp_path: Path
) -> None:
    told: list[Exception] = []
    observer = Observer(tmp_path, trace=TraceRequest(step=2), on_fault=told.append)
    watched = observer._note_before

    def fail_in_step_2(*args: Any, **kwargs: Any) -> None:
        watched(*args, **kwargs)
        if observer._steps == 1:
            mode.__enter__()  # after the trace has begun, as a script's own mode may be
            raise RuntimeError("planted")

    observer._note_before = fail_in_step_2  # type: ignore[method-assign]
    observer.install()
    try:
        train_on(None)
        assert list(map(str, told)) == ["planted"]
        file = tmp_path / "trace" / "main.jsonl"
        size = file.stat().st_size
        for _ in range(600):  # more than wait to be written at once
            torch.ones(2).exp()
        assert file.stat().st_size == size
        assert END not in file.read_text()
        assert _get_current_dispatch_mode() is (mode if isinstance(mode, Passing) else None)
    finally:
        observer.remove()
        while (left := _get_current_dispatch_mode()) is not None:
            left.__exit__(None, None, None)


def test_a_process_that_cannot_say_that_it_is_unwatched_ends(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\n"
        "model = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "model(torch.ones(1, 2)).sum().backward()\n"
        "optimizer.step()\n"
        "print('trained')\n"
    )
    (tmp_path / "file").write_text("no folder can be made in this")
    for folder, code, said in (
        (tmp_path / "folder", 0, ""),
        (tmp_path / "file" / "folder", 1, "this process is not watched any more"),
    ):
        ended = subprocess.run(
            [sys.executable, script],
            env={**os.environ, "PYTHONPATH": str(INJECTED), "MLTUNE_WITNESS_FOLDER": str(folder)},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == code
        assert said in ended.stderr
        assert ("trained" in ended.stdout) == (code == 0)
