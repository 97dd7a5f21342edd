"""Watches the training of a process that knows nothing of it, through torch's own hooks.

Every optimizer of the process is seen, whoever wrote the loop, by torch's global step hooks. Losses
are seen where a backward pass begins, batches where a `DataLoader` hands them out, gradients before
clipping where `torch.nn.utils` clips them. Nothing that is seen is changed, and no random number is
drawn.
"""

import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO
from weakref import WeakKeyDictionary

import torch
from torch.autograd.graph import GradientEdge
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.data import dataloader

from mltune_cli.witness.guard import Guard
from mltune_cli.witness.naming import NamedModel, find_model
from mltune_cli.witness.open_step import OpenStep, Seen, gradients, is_inside_its_step
from mltune_cli.witness.record import WitnessRecord, bytes_digest
from mltune_cli.witness.seeding import SeedWatch
from mltune_cli.witness.stages import (
    enumerate_names,
    held_digest,
    hyperparameters,
    optimizer_parameters,
    pending_held,
    random_states,
    row_digests,
    settings,
    state_tensors,
    value_digest,
)
from mltune_cli.witness.surroundings import surroundings
from mltune_cli.witness.trace import OperationTrace, open_trace
from mltune_cli.witness.trace_record import TraceRequest


class Observer:
    """Writes one record for each step of each optimizer into a file of JSON lines.

    Args:
        folder: where the file is made at the first step, named after the rank: `main.jsonl`, or
            `rank-3.jsonl` in a process that a launcher gave a rank, `child-2.jsonl` in the second
            one that `multiprocessing` started.
        per_tensor: also write the digest of every gradient, parameter and state tensor by name.
        trace: traces one step, into `trace/` below the folder.
        on_fault: told once of what failed here; the training then goes on and is not watched any
            more. None: it is raised by what the training called.
    """

    def __init__(
        self,
        folder: Path,
        *,
        per_tensor: bool = False,
        trace: TraceRequest | None = None,
        on_fault: Callable[[Exception], None] | None = None,
    ) -> None:
        self._folder = folder
        self._guard = Guard(on_fault, self._give_up)
        self._per_tensor = per_tensor
        self._request = trace
        self._trace: OperationTrace | None = None
        self._stream: TextIO | None = None
        self._sources: WeakKeyDictionary[torch.optim.Optimizer, str] = WeakKeyDictionary()
        self._models: WeakKeyDictionary[torch.optim.Optimizer, NamedModel] = WeakKeyDictionary()
        self._optimizers = 0
        self._pid = os.getpid()
        self._steps = 0
        self._seen = Seen()
        self._open_steps: list[OpenStep] = []
        self._seeds = SeedWatch()
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Begin to watch."""
        self._seeds.install()
        self._undo = [
            register_optimizer_step_pre_hook(self._before_step).remove,
            register_optimizer_step_post_hook(self._after_step).remove,
            self._seeds.remove,
            self._replace(torch.autograd, "backward", self._watch_loss),
            self._replace(dataloader._BaseDataLoaderIter, "__next__", self._watch_batch),
        ]
        for home in (torch.nn.utils, torch.nn.utils.clip_grad):
            for name in ("clip_grad_norm_", "clip_grad_value_"):
                self._undo.append(self._replace(home, name, self._watch_clipping))
        if self._request is not None and self._request.step == 0:
            self._begin_trace()
        elif self._request is not None and self._request.step == 1:
            # Not before: the model is loaded by then, and the first batch is not.
            self._undo.append(self._replace(torch.optim.Optimizer, "__init__", self._watch_making))

    def pause(self) -> None:
        """Stop watching until `install` is called again; an unfinished step is forgotten."""
        self._end_trace()
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        self._seen = Seen()

    def remove(self) -> None:
        """Stop watching, and close the file."""
        self.pause()
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _replace(self, home: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
        original = getattr(home, name)

        def undo() -> None:
            setattr(home, name, original)

        setattr(home, name, functools.wraps(original)(wrap(original)))
        return undo

    def _watch_loss(self, backward: Any) -> Any:
        def watched(tensors: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(tensors, torch.Tensor | GradientEdge):
                tensors = (tensors,)
            else:
                tensors = tuple(tensors)  # it may be a generator
            # A gradient edge has no value, only a place in the graph.
            losses = [one for one in tensors if isinstance(one, torch.Tensor)]
            self._guard.do(
                lambda: self._seen.losses.append(pending_held(dict(enumerate_names(losses))))
            )
            return backward(tensors, *args, **kwargs)

        return watched

    def _watch_batch(self, give: Any) -> Any:
        def watched(iterator: Any) -> Any:
            try:
                batch = give(iterator)
            except StopIteration:
                self._seen.forget_evaluation(id(iterator))
                raise
            self._guard.do(
                lambda: self._seen.add_batch(id(iterator), value_digest(batch), row_digests(batch))
            )
            return batch

        return watched

    def _watch_clipping(self, clip: Any) -> Any:
        def watched(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(parameters, torch.Tensor):
                parameters = list(parameters)  # it may be a generator
            tensors = [parameters] if isinstance(parameters, torch.Tensor) else parameters
            self._guard.do(
                lambda: self._seen.unclipped.append(
                    pending_held(gradients(dict(enumerate_names(tensors))))
                )
            )
            return clip(parameters, *args, **kwargs)

        return watched

    def _watch_making(self, initialise: Any) -> Any:
        def watched(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            is_first = self._trace is None and self._steps == 0
            if is_first:
                self._guard.do(self._begin_trace, in_modes=True)
            initialise(optimizer, *args, **kwargs)
            trace = self._trace
            # What a later one trains is digested by nobody before it takes a step.
            if is_first and trace is not None:
                own = optimizer_parameters(optimizer, {})
                self._guard.do(lambda: trace.know(parameter for _, parameter in own))

        return watched

    def _give_up(self) -> None:
        if self._trace is not None:
            self._trace.abandon()
            self._trace = None

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if self._request is not None and self._request.step == 0:
            self._guard.do(self._end_trace, in_modes=True)
        # The first argument is the optimizer itself.
        has_closure = any(map(callable, [*args[1:], *kwargs.values()]))
        if is_inside_its_step(optimizer, sys._getframe(1)):
            if self._open_steps:
                self._open_steps[-1].has_closure |= has_closure
            return
        self._guard.do(lambda: self._note_before(optimizer, has_closure=has_closure))
        if self._trace is not None and not self._guard.is_off:
            self._trace.sites.note_optimizer(begins=True)

    def _note_before(self, optimizer: torch.optim.Optimizer, *, has_closure: bool) -> None:
        if optimizer not in self._sources:
            self._note_start(optimizer)
        settings_now = hyperparameters(optimizer)
        step = OpenStep(
            {**random_states(), "hyperparameters": bytes_digest(settings_now.encode())},
            {"hyperparameters": settings_now},
            has_closure=has_closure,
        )
        if not has_closure:
            self._note_seen(step, optimizer)
        self._open_steps.append(step)

    def _note_seen(self, step: OpenStep, optimizer: torch.optim.Optimizer) -> None:
        seen, self._seen = self._seen, Seen()
        step.add(seen, gradients(_placed(optimizer)))
        if self._per_tensor:
            step.facts["tensors"] = {"gradients": _each(gradients(self._named(optimizer)))}

    def _named(self, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        return dict(optimizer_parameters(optimizer, self._models[optimizer].names))

    def _note_start(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizers += 1
        source = f"{type(optimizer).__name__} {self._optimizers}"
        self._sources[optimizer] = source
        own = [parameter for _, parameter in optimizer_parameters(optimizer, {})]
        model = self._models[optimizer] = find_model(own)
        digests = {"parameters": held_digest(_placed(optimizer))}
        if model.frozen:
            digests["model"] = held_digest(model.frozen)
        facts = {
            **self._seeds.facts(own),
            "trained": len(own),
            "settings": settings(),
            "surroundings": surroundings(),
        }
        if self._per_tensor:
            facts["tensors"] = {
                "model": _each(model.frozen),
                "parameters": _each(self._named(optimizer)),
            }
        self._write(WitnessRecord(0, digests, source, facts, after=self._steps))

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:  # noqa: ARG002 - the signature is given
        if self._guard.is_off or not self._open_steps:
            return  # watching began in the middle of this step
        if is_inside_its_step(optimizer, sys._getframe(1)):
            return
        if self._trace is not None:
            self._trace.sites.note_optimizer(begins=False)
        if self._request is not None and self._steps + 1 == self._request.step:
            self._guard.do(self._end_trace, in_modes=True)
        known: list[torch.Tensor] = []
        self._guard.do(lambda: known.extend(self._note_after(optimizer)))
        if self._request is not None and self._steps + 1 == self._request.step:
            self._guard.do(lambda: self._begin_trace(known), in_modes=True)

    def _note_after(self, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        """Write the step's record; return all tensors that the next step begins with."""
        step = self._open_steps.pop()
        model = self._models[optimizer]
        parameters = _placed(optimizer)
        state = dict(state_tensors(optimizer, {}))
        if step.has_closure:
            self._note_seen(step, optimizer)
        step.pending["optimizer"] = [pending_held(state)]
        step.pending["parameters"] = [pending_held(parameters)]
        # Not before the first step: the forward pass has changed them by then.
        buffers = model.buffers()
        if buffers:
            step.pending["buffers"] = [pending_held(buffers)]
        if self._per_tensor:
            each = {
                "optimizer": _each(dict(state_tensors(optimizer, model.names))),
                "buffers": _each(buffers),
                "parameters": _each(self._named(optimizer)),
            }
            step.facts["tensors"] |= each
        self._steps += 1
        source = self._sources[optimizer]
        self._write(WitnessRecord(self._steps, step.resolve(), source, step.facts))
        return [*model.frozen.values(), *parameters.values(), *state.values()]

    def _begin_trace(self, known: Iterable[torch.Tensor] = ()) -> None:
        if self._request is not None and self._trace is None:
            self._trace = open_trace(self._folder, _stem(), self._request)
            self._trace.begin(known)

    def _end_trace(self) -> None:
        if self._trace is not None:
            self._trace.finish()
            self._trace = None

    def _write(self, record: WitnessRecord) -> None:
        if self._stream is None or os.getpid() != self._pid:
            # A forked process that trains writes a file of its own.
            self._stream, self._pid = _new_file(self._folder), os.getpid()
        # One write for each line, so that a kill leaves whole lines.
        self._stream.write(record.to_json() + "\n")
        self._stream.flush()


def _placed(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return an optimizer's parameters by group and place.

    Their names are no part of a digest: they come from whatever modules are alive.
    """
    return dict(optimizer_parameters(optimizer, {}))


def _each(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    return {name: held_digest({"": tensor}) for name, tensor in tensors.items()}


def _stem() -> str:
    rank = os.environ.get("RANK")
    if rank is not None:
        return f"rank-{rank}"
    # Processes of `multiprocessing` are numbered in the order in which their parent starts them.
    numbers = multiprocessing.current_process()._identity
    return "-".join(["child", *map(str, numbers)]) if numbers else "main"


def _new_file(folder: Path) -> TextIO:
    """Open a file that no other process of the run writes."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = _stem()
    number = 1
    while True:
        name = f"{stem}.jsonl" if number == 1 else f"{stem}.{number}.jsonl"
        try:
            return (folder / name).open("x", encoding="utf-8")
        except FileExistsError:
            number += 1
