"""Who builds a micro-batch, and how far ahead, leaves no trace; and no loader process stays."""

import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mltune_cli.run_folder import RunLock
from mltune_cli.training.data.collating import Collator, MicroBatch
from mltune_cli.training.data.dataset import TokenisedDataset
from mltune_cli.training.data.loading import micro_batches
from mltune_cli.training.data.stream import BatchStream
from mltune_cli.training.determinism import random_state_bytes
from mltune_cli.training.step import batch_digest

# Forking a process that has threads is what a loader does; newer Pythons warn of it.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

Prepared = Callable[..., TokenisedDataset]
ROWS: list[dict[str, Any]] = [
    {"question": f"How far is it to mile {number}?", "answer": "far " * (number % 5) + "enough"}
    for number in range(13)
]


class Written(Collator):
    """Builds nothing: says which units were asked for, so that many cases are quick."""

    def __init__(self) -> None:
        pass

    def collate(self, units: list[int]) -> MicroBatch:
        tensor = torch.tensor([units])
        return MicroBatch(tensor, tensor, tensor, torch.ones_like(tensor), 1)


@pytest.fixture
def stream() -> BatchStream:
    return BatchStream(len(ROWS), 2, 4, 20, "digest")


@pytest.fixture
def collator(prepared: Prepared) -> Collator:
    return Collator(prepared(ROWS, max_length=64), 0)


@pytest.fixture(autouse=True)
def _no_process_stays() -> Iterator[None]:
    yield
    deadline = time.monotonic() + 10
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children() == []


def children() -> list[int]:
    """Return this process's children that are running."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        listed = ""
        with contextlib.suppress(FileNotFoundError):  # the thread may have ended
            listed = (task / "children").read_text()
        for pid in listed.split():
            with contextlib.suppress(FileNotFoundError):
                if ") Z " not in Path(f"/proc/{pid}/stat").read_text():
                    found.append(int(pid))
    return found


@settings(max_examples=60, deadline=None)
@given(
    first=st.integers(1, 30),
    steps=st.integers(0, 6),
    indices=st.lists(st.integers(0, 3), max_size=5),
)
def test_they_come_step_by_step_in_the_order_of_the_turns(
    first: int, steps: int, indices: list[int]
) -> None:
    """Also where a turn is taken twice, as with a sharded model, or where there is none."""
    stream = BatchStream(13, 2, 4, 20, "digest")
    loaded = micro_batches(stream, Written(), range(first, first + steps), indices, 0)
    assert [batch.input_ids.tolist() for batch in loaded] == [
        [stream.micro_batch(step, index)]
        for step in range(first, first + steps)
        for index in indices
    ]


@pytest.mark.parametrize("loader_workers", [1, 2])
def test_built_ahead_they_are_the_same_tensors(
    stream: BatchStream, collator: Collator, loader_workers: int
) -> None:
    """Kept until the processes that built them are gone: their memory is not taken away."""
    turns = (range(3, 8), [1, 2, 2])
    here = list(micro_batches(stream, collator, *turns, 0))
    ahead = list(micro_batches(stream, collator, *turns, loader_workers))
    assert children() == []
    assert len(here) == 15
    assert list(map(batch_digest, ahead)) == list(map(batch_digest, here))
    assert [b.target_count for b in ahead] == [b.target_count for b in here]


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_no_generator_of_the_training_process_is_drawn_from(
    stream: BatchStream, collator: Collator, loader_workers: int
) -> None:
    """Those that a user's own code draws from stay as they were, too."""
    torch.manual_seed(5)
    before = random_state_bytes(torch.device("cpu"))
    others = (random.getstate(), str(np.random.get_state()))
    assert len(list(micro_batches(stream, collator, range(1, 4), [0, 1], loader_workers))) == 6
    assert random_state_bytes(torch.device("cpu")) == before
    assert (random.getstate(), str(np.random.get_state())) == others


def test_closing_it_halfway_ends_its_processes(stream: BatchStream, collator: Collator) -> None:
    """As a run does that stops early, or is asked to stop, with batches built ahead."""
    batches = micro_batches(stream, collator, range(1, 10_000), [0, 1], 2)
    next(batches)
    assert len(children()) == 2
    batches.close()
    assert children() == []


def test_nothing_is_started_before_the_first_is_asked_for(
    stream: BatchStream, collator: Collator
) -> None:
    batches = micro_batches(stream, collator, range(1, 5), [0], 2)
    assert children() == []
    batches.close()


def test_the_lock_of_a_run_folder_is_free_when_the_training_process_is_gone(
    stream: BatchStream, collator: Collator, tmp_path: Path
) -> None:
    """The processes that take a dead one's place would be told that another run writes there."""
    started, said = os.pipe()
    training = os.fork()
    if training == 0:
        lock = RunLock(tmp_path)
        batches = micro_batches(stream, collator, range(1, 10_000), [0], 1)
        next(batches)
        os.write(said, b"1")
        time.sleep(60)
        lock.close()
        os._exit(0)
    assert os.read(started, 1) == b"1"
    os.kill(training, signal.SIGKILL)
    os.waitpid(training, 0)
    RunLock(tmp_path).close()


@pytest.mark.long
@pytest.mark.xfail(
    reason="tensors come through a socket below TMPDIR; where that fails, nobody is told, and "
    "training waits for ever",
    strict=True,
)
def test_a_temporary_folder_with_a_long_name_is_no_reason_to_hang(
    stream: BatchStream, collator: Collator, tmp_path: Path
) -> None:
    """A socket's name has 107 letters at most; a cluster's folders for jobs may have more."""
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    training = os.fork()
    if training == 0:
        tempfile.tempdir = str(deep)
        multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
        count = len(list(micro_batches(stream, collator, range(1, 4), [0], 1)))
        os._exit(0 if count == 3 else 1)
    deadline = time.monotonic() + 10
    ended, status = os.waitpid(training, os.WNOHANG)
    while not ended and time.monotonic() < deadline:
        time.sleep(0.05)
        ended, status = os.waitpid(training, os.WNOHANG)
    if not ended:
        os.kill(training, signal.SIGKILL)
        os.waitpid(training, 0)
        pytest.fail("it hangs")
    assert os.waitstatus_to_exitcode(status) == 0
