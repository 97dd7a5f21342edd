"""The operation trace: every call that reaches torch's dispatcher, with digests of what it moved.

Only the thread that begins it is traced, with the backward passes that it starts. The digests are
taken inside the call, where no mode is entered, so they are not traced themselves, draw no random
number and leave autograd alone.
"""

import contextlib
import ctypes
import json
import os
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten

from mltune_cli.witness.call_sites import CallSite, CallSites
from mltune_cli.witness.calls import (
    CallAgain,
    call_tensors,
    is_among,
    operation_names,
    out_tensors,
    random_state,
    spelled_arguments,
)
from mltune_cli.witness.digest import PendingDigest, pending_digest, readable, resolved
from mltune_cli.witness.memory import Memory
from mltune_cli.witness.random_calls import RandomCalls
from mltune_cli.witness.trace_record import (
    END,
    UNINITIALISED,
    TracedTensor,
    TraceRecord,
    TraceRequest,
)

# Arguments of the profiler's operations are addresses; the others read nothing and compute nothing.
_SKIPPED_NAMESPACES = ("profiler", "prim")
# They reserve memory, and what it holds means nothing.
_ALLOCATING = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided",
               "empty_permuted", "empty_quantized")  # fmt: skip
# What they keep for their own backward pass, by its place among their results: reserved, and filled
# in part. What random numbers would make of it, the generator's state shows.
_SCRATCH = {
    "mkldnn_rnn_layer": (3,),
    "_cudnn_rnn": (3,),
    "_ctc_loss": (1,),
    "cudnn_batch_norm": (3,),
    "_batch_norm_with_update": (3,),
    "_flash_attention_forward": (2, 3, 4),
    "_efficient_attention_forward": (2, 3),
    "_cudnn_attention_forward": (6, 7, 8),
    "_scaled_dot_product_flash_attention": (6, 7, 8),
    "_scaled_dot_product_efficient_attention": (2, 3),
    "_scaled_dot_product_cudnn_attention": (6, 7, 8),
}
# They write every element of their first argument, and do not read it.
_OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_",
                "exponential_", "log_normal_", "geometric_", "cauchy_", "set_")  # fmt: skip
# The results of these may still be under way when the call returns.
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")
_WRITTEN_AT_ONCE = 256
# Not worth a second execution, or not possible.
_EXECUTED_ONCE = ("_local_scalar_dense", "lift_fresh", "set_", "resize_", "item")


@dataclass(frozen=True)
class _Seen:
    """A tensor of a call, and its digest while that is still on the device."""

    tensor: TracedTensor
    pending: PendingDigest | None = None


@dataclass(frozen=True)
class _Moved:
    """What a call took and gave."""

    inputs: list[_Seen] = field(default_factory=list)
    outputs: list[_Seen] = field(default_factory=list)
    random_state: str | None = None
    unequal: tuple[tuple[int, str], ...] = ()


class OperationTrace(TorchDispatchMode):
    """Writes one record for each operation, while it is entered, into a file of JSON lines.

    Args:
        stream: where the lines go; closed by `finish`.
        request: how often operations are executed, and which tensors are kept.
        values: folder for the kept tensors' bytes, each in a file that is named by its digest.
    """

    # Higher-order operators are recorded by name, as one call.
    supports_higher_order_operators = True

    def __init__(self, stream: TextIO, request: TraceRequest, values: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._stream = stream
        self._request = request
        self._values = values
        self._memory = Memory()
        self._count = 0
        # A forked process, such as a loader's worker, inherits the mode, and is no part of it.
        self._pid = os.getpid()
        self._thread = threading.get_ident()
        self._is_over = False
        self._kept_bytes = 0
        self._waiting: list[tuple[TraceRecord, _Moved]] = []
        self.sites = CallSites()
        self._random_calls = RandomCalls(self._note_random_call)

    def begin(self, known: Iterable[torch.Tensor] = ()) -> None:
        """Trace what this thread, and the backward passes that it starts, call from now on.

        Args:
            known: tensors that are digested elsewhere: a difference in them came in silently.
        """
        self.know(known)
        self._values.mkdir(parents=True, exist_ok=True)
        self.sites.install()
        self._random_calls.install()
        self.__enter__()  # type: ignore[no-untyped-call]

    def know(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note tensors whose contents are digested elsewhere."""
        for tensor in tensors:
            self._memory.is_there(tensor)

    def finish(self) -> None:
        """End the trace, and say in the file that it is whole."""
        self._leave()
        if os.getpid() != self._pid:  # a fork, which shares the file
            return
        self._write_waiting()
        self._stream.write(json.dumps({END: self._count}) + "\n")
        self._stream.close()

    def abandon(self) -> None:
        """End the trace where it is; its file does not say that it is whole."""
        self._leave()
        self._waiting = []
        with contextlib.suppress(OSError):  # a full disk, perhaps
            self._stream.close()

    def _leave(self) -> None:
        self._is_over = True
        # A mode that the script entered meanwhile stands before this one, and is not ours to end.
        if _get_current_dispatch_mode() is self:
            self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._random_calls.remove()
        self.sites.remove()
        self._memory = Memory()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record one call; see `TorchDispatchMode`."""
        kwargs = kwargs or {}
        is_foreign = self._is_over or os.getpid() != self._pid
        if is_foreign or operation_names(func)[0] in _SKIPPED_NAMESPACES:
            return func(*args, **kwargs)
        # First of all: what digests compute counts as well in autograd's numbering.
        site = self.sites.here()
        if isinstance(func, OpOverload) and func.is_view:
            result = func(*args, **kwargs)
            self._write(func, args, kwargs, site, _Moved())
            return result
        return self._traced(func, args, kwargs, site)

    def _traced(self, func: Any, args: tuple[Any, ...], kwargs: Any, site: CallSite) -> Any:
        namespace, name = operation_names(func)
        given, written = call_tensors(func, args, kwargs)
        overwritten = written if name in _OVERWRITING else out_tensors(func, kwargs)
        is_allocating = name in _ALLOCATING
        read = [] if is_allocating else [t for t in given if not is_among(t, overwritten)]
        inputs = [self._seen(tensor, produced=False) for tensor in read]
        state = random_state(func, args, kwargs)
        is_repeated = (
            self._request.executions > 1
            and namespace not in _COLLECTIVES
            and not is_allocating
            and name not in _EXECUTED_ONCE
        )
        again = CallAgain(func, args, kwargs, state is not None) if is_repeated else None
        result = func(*args, **kwargs)
        given_back = tree_flatten(result)[0]
        results = [r for r in given_back if isinstance(r, torch.Tensor)]
        produced = results + [t for t in written if not is_among(t, results)]
        for tensor in produced:
            if is_allocating:
                self._memory.allocated(tensor, self._count)
            else:
                self._memory.wrote(tensor, self._count)
        for place in _SCRATCH.get(name, ()):
            if place < len(given_back) and isinstance(given_back[place], torch.Tensor):
                self._memory.noted(given_back[place])
        hidden = is_allocating or namespace in _COLLECTIVES
        outputs = [] if hidden else [self._seen(tensor, produced=True) for tensor in produced]
        unequal: tuple[tuple[int, str], ...] = ()
        if again is not None:
            unequal = self._compare_again(again, [seen.tensor for seen in outputs])
        self._write(func, args, kwargs, site, _Moved(inputs, outputs, state, unequal))
        return result

    def _note_random_call(self, name: str, state: str) -> None:
        # Another thread, which prefetches rows perhaps, draws at another time in each run; a
        # backward pass of ours has the mode in its thread.
        is_ours = threading.get_ident() == self._thread or _get_current_dispatch_mode() is self
        if os.getpid() != self._pid or not is_ours:
            return
        site = self.sites.here()
        self._append(
            TraceRecord(
                name, site.phase, "", random_state=state, module=site.module, frame=site.frame,
                library_frame=site.library_frame,
            ),
            _Moved(),
        )  # fmt: skip

    def _compare_again(
        self, again: CallAgain, outputs: list[TracedTensor]
    ) -> tuple[tuple[int, str], ...]:
        for _ in range(self._request.executions - 1):
            unequal = []
            for place, tensor in enumerate(again.execute()):
                if place >= len(outputs) or outputs[place].digest in ("", UNINITIALISED):
                    continue
                digest = _digest(tensor)
                if digest != outputs[place].digest:
                    self._keep(tensor, digest)
                    unequal.append((place, digest))
            if unequal:
                return tuple(unequal)
        return ()

    def _seen(self, tensor: torch.Tensor, *, produced: bool) -> "_Seen":
        is_raw = self._memory.is_uninitialised(tensor)
        made_by = None if produced else self._memory.made_by(tensor)
        undigested = TracedTensor(
            UNINITIALISED if is_raw else "", str(tensor.dtype).removeprefix("torch."),
            _shape(tensor), made_by, self._memory.number(tensor),
        )  # fmt: skip
        if is_raw or self._memory.is_scratch(tensor):
            return _Seen(undigested)
        if self._request.executions == 1 and not self._has_room(tensor):
            # Nobody asks for its digest now: the device is not waited for.
            return _Seen(undigested, _pending(tensor))
        digest = _digest(tensor)
        self._keep(tensor, digest)
        return _Seen(replace(undigested, digest=digest))

    def _has_room(self, tensor: torch.Tensor) -> bool:
        size = tensor.numel() * tensor.element_size()
        is_asked_for = self._count >= self._request.keep_from
        return is_asked_for and self._kept_bytes + size <= self._request.keep_bytes

    def _keep(self, tensor: torch.Tensor, digest: str) -> None:
        """Write a tensor's bytes into a file, unless it is there or too much was kept."""
        if not digest or tensor.is_nested or not self._has_room(tensor):
            return
        size = tensor.numel() * tensor.element_size()
        path = self._values / digest
        if path.exists():
            return
        self._kept_bytes += size
        # Through memory of the host, without NumPy, which the script may not have.
        held = readable(tensor).cpu().contiguous()
        path.write_bytes(ctypes.string_at(held.data_ptr(), held.nbytes) if size else b"")

    def _write(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        site: CallSite,
        moved: "_Moved",
    ) -> None:
        record = TraceRecord(
            str(func), site.phase, spelled_arguments((args, dict(kwargs))),
            random_state=moved.random_state, module=site.module, node=site.node, frame=site.frame,
            library_frame=site.library_frame, unequal=moved.unequal,
        )  # fmt: skip
        self._append(record, moved)

    def _append(self, record: TraceRecord, moved: "_Moved") -> None:
        self._waiting.append((record, moved))
        self._count += 1
        if len(self._waiting) >= _WRITTEN_AT_ONCE:
            self._write_waiting()

    def _write_waiting(self) -> None:
        """Read the digests that are still on the device, all at once, and write the records."""
        seen = [one for _, moved in self._waiting for one in (*moved.inputs, *moved.outputs)]
        digests = iter(resolved([one.pending for one in seen if one.pending is not None]))
        for record, moved in self._waiting:
            inputs, outputs = (
                tuple(
                    replace(one.tensor, digest=next(digests)) if one.pending else one.tensor
                    for one in several
                )
                for several in (moved.inputs, moved.outputs)
            )
            whole = replace(record, inputs=inputs, outputs=outputs)
            self._stream.write(whole.to_json() + "\n")
        self._waiting = []


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's shape; of a nested one, which has several, the number of its elements."""
    return (tensor.numel(),) if tensor.is_nested else tuple(tensor.shape)


def _pending(tensor: torch.Tensor) -> PendingDigest | None:
    """Begin to compute a tensor's digest; None where it has no bits to read."""
    if tensor.device.type == "meta":
        return None
    try:
        return pending_digest({"": readable(tensor)})
    except (RuntimeError, NotImplementedError):  # an opaque kind, a fake tensor
        return None


def _digest(tensor: torch.Tensor) -> str:
    """Return a tensor's digest; empty where it has no bits to read."""
    pending = _pending(tensor)
    return resolved([pending])[0] if pending is not None else ""


def open_trace(folder: Path, stem: str, request: TraceRequest) -> OperationTrace:
    """Return a trace that writes `trace/STEM.jsonl` below a folder, and `trace/values/`.

    Raises:
        OSError: the folder cannot be written.
    """
    target = folder / "trace"
    target.mkdir(parents=True, exist_ok=True)
    stream = (target / f"{stem}.jsonl").open("x", encoding="utf-8")
    return OperationTrace(stream, request, target / "values")
