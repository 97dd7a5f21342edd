"""Watches the training of a process that knows nothing of it, through torch's own hooks.

Every optimizer of the process is seen, whoever wrote the loop, by torch's global step hooks. Losses
are seen where a backward pass begins, batches where a `DataLoader` hands them out. Nothing that is
seen is changed, and no random number is drawn.
"""

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakKeyDictionary

import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import dataloader

from mltune_cli.witness.digest import tensors_digest
from mltune_cli.witness.record import WitnessRecord, bytes_digest, chained_digest


class Observer:
    """Writes one record for each step of each optimizer into a file of JSON lines.

    Args:
        folder: where the file is made at the first step, named after the rank: `main.jsonl`, or
            `rank-3.jsonl` in a process that a launcher gave a rank.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stream: TextIO | None = None
        self._sources: WeakKeyDictionary[torch.optim.Optimizer, str] = WeakKeyDictionary()
        self._steps = 0
        self._batches: list[str] = []
        self._losses: list[str] = []
        self._open_steps: list[dict[str, str]] = []
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Begin to watch."""
        self._undo = [
            register_optimizer_step_pre_hook(self._before_step).remove,
            register_optimizer_step_post_hook(self._after_step).remove,
            self._watch_losses(),
            self._watch_batches(),
        ]

    def remove(self) -> None:
        """Stop watching, and close the file."""
        for undo in self._undo:
            undo()
        self._undo = []
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _watch_losses(self) -> Callable[[], None]:
        backward = torch.autograd.backward

        def watched(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            roots = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
            self._losses.append(_digest(dict(enumerate_names(roots))))
            return backward(tensors, *args, **kwargs)

        torch.autograd.backward = watched

        def undo() -> None:
            torch.autograd.backward = backward

        return undo

    def _watch_batches(self) -> Callable[[], None]:
        kind: Any = dataloader._BaseDataLoaderIter
        give = kind.__next__

        def watched(iterator: Any) -> Any:
            batch = give(iterator)
            self._batches.append(value_digest(batch))
            return batch

        kind.__next__ = watched

        def undo() -> None:
            kind.__next__ = give

        return undo

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - the signature is given
        parameters = dict(optimizer_parameters(optimizer))
        if optimizer not in self._sources:
            source = f"{type(optimizer).__name__} {len(self._sources) + 1}"
            self._sources[optimizer] = source
            self._write(WitnessRecord(0, {"parameters": _digest(parameters)}, source))
        digests = {
            **random_states(),
            "gradients": _digest(
                {name: p.grad for name, p in parameters.items() if p.grad is not None}
            ),
            "hyperparameters": bytes_digest(hyperparameters(optimizer).encode()),
        }
        if self._batches:
            digests["batch"] = chained_digest(self._batches)
        if self._losses:
            digests["loss"] = chained_digest(self._losses)
        self._batches, self._losses = [], []
        self._open_steps.append(digests)

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - the signature is given
        if not self._open_steps:
            return  # watching began in the middle of this step
        digests = self._open_steps.pop()
        digests["optimizer"] = _digest(dict(state_tensors(optimizer)))
        digests["parameters"] = _digest(dict(optimizer_parameters(optimizer)))
        self._steps += 1
        self._write(WitnessRecord(self._steps, digests, self._sources[optimizer]))

    def _write(self, record: WitnessRecord) -> None:
        if self._stream is None:
            self._stream = _new_file(self._folder)
        # One write for each line, so that a kill leaves whole lines.
        self._stream.write(record.to_json() + "\n")
        self._stream.flush()


def _new_file(folder: Path) -> TextIO:
    """Open a file that no other process of the run writes."""
    folder.mkdir(parents=True, exist_ok=True)
    rank = os.environ.get("RANK")
    stem = "main" if rank is None else f"rank-{rank}"
    number = 1
    while True:
        name = f"{stem}.jsonl" if number == 1 else f"{stem}.{number}.jsonl"
        try:
            return (folder / name).open("x", encoding="utf-8")
        except FileExistsError:
            number += 1


def enumerate_names(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors with their numbers for names."""
    return ((str(number), tensor) for number, tensor in enumerate(tensors))


def optimizer_parameters(
    optimizer: torch.optim.Optimizer,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an optimizer's parameters by group and place, as it knows no names."""
    for group_number, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            yield f"{group_number}.{number}", parameter


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an optimizer's state, plain numbers included, by parameter and slot."""
    for name, parameter in optimizer_parameters(optimizer):
        state = optimizer.state.get(parameter, {})
        for slot in sorted(state, key=str):
            value = state[slot]
            if isinstance(value, torch.Tensor):
                yield f"{name}.{slot}", value
            elif isinstance(value, int | float):
                yield f"{name}.{slot}", torch.tensor(value, dtype=torch.float64)


def hyperparameters(optimizer: torch.optim.Optimizer) -> str:
    """Return what the groups say besides their parameters, in a fixed spelling."""
    return repr(
        [
            sorted((name, _plain(value)) for name, value in group.items() if name != "params")
            for group in optimizer.param_groups
        ]
    )


def _plain(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _digest({"": value})
    # The spelling of an object may hold its address.
    return repr(value) if isinstance(value, _PLAIN) else type(value).__name__


_PLAIN = (bool, int, float, str, bytes, tuple, list, type(None))


def random_states() -> dict[str, str]:
    """Return the digests of torch's generators, on all devices, of Python's and of NumPy's.

    They are apart, since the last two start from noise where a script does not seed them, which is
    no fault where it does not use them.
    """
    states = [torch.get_rng_state().numpy().tobytes()]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]
    digests = {
        "rng": bytes_digest(b"".join(states)),
        "rng_python": bytes_digest(repr(random.getstate()).encode()),
    }
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        digests["rng_numpy"] = bytes_digest(f"{name}{rest}".encode() + keys.tobytes())
    return digests


def value_digest(value: Any) -> str:
    """Return the digest of a batch: tensors, arrays, numbers and text in any nesting."""
    if isinstance(value, torch.Tensor):
        return _digest({"": value})
    if isinstance(value, Mapping) or hasattr(value, "keys"):
        return chained_digest(
            part for key in sorted(value.keys(), key=str)
            for part in (str(key), value_digest(value[key]))
        )  # fmt: skip
    if isinstance(value, list | tuple):
        return chained_digest(map(value_digest, value))
    if hasattr(value, "__dict__") and not callable(value):
        return value_digest(vars(value))
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        return bytes_digest(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    return bytes_digest(_plain(value).encode())


def _digest(tensors: Mapping[Any, torch.Tensor]) -> str:
    """Return the digest of what this process holds of some tensors."""
    with torch.no_grad():
        parts = {str(name): part for name, t in tensors.items() for part in [_dense(t)]}
        return tensors_digest(parts)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    local: Any = tensor.detach()
    if hasattr(local, "to_local"):  # a tensor that is divided over processes
        local = local.to_local()
    if local.layout is not torch.strided:
        local = local.coalesce() if local.layout is torch.sparse_coo else local
        local = local.to_dense()
    held: torch.Tensor = local
    return held
