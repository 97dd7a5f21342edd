"""The operation trace: every call that reaches torch's dispatcher, with digests of what it moved.

Only the thread that begins it is traced, with the backward passes that it starts. The digests are
taken inside the call, where no mode is entered, so they are not traced themselves, draw no random
number and leave autograd alone.
"""

import ctypes
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from mltune_cli.witness.call_sites import CallSite, CallSites
from mltune_cli.witness.digest import tensors_digest
from mltune_cli.witness.memory import Memory
from mltune_cli.witness.random_calls import RandomCalls
from mltune_cli.witness.record import bytes_digest
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
# They write every element of their first argument, and do not read it.
_OVERWRITING = ("copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_",
                "exponential_", "log_normal_", "geometric_", "cauchy_", "set_")  # fmt: skip
# The results of these may still be under way when the call returns.
_COLLECTIVES = ("c10d", "_c10d_functional", "c10d_functional")
# Not worth a second execution, or not possible.
_EXECUTED_ONCE = ("_local_scalar_dense", "lift_fresh", "set_", "resize_", "item")
_LONGEST_SPELLING = 400
_FEW_TENSORS = 3


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
        self._kept_bytes = 0
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
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._random_calls.remove()
        self.sites.remove()
        self._stream.write(json.dumps({END: self._count}) + "\n")
        self._stream.close()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Record one call; see `TorchDispatchMode`."""
        kwargs = kwargs or {}
        if _names(func)[0] in _SKIPPED_NAMESPACES or os.getpid() != self._pid:
            return func(*args, **kwargs)
        # First of all: what digests compute counts as well in autograd's numbering.
        site = self.sites.here()
        if isinstance(func, OpOverload) and func.is_view:
            result = func(*args, **kwargs)
            self._write(func, args, kwargs, site)
            return result
        return self._traced(func, args, kwargs, site)

    def _traced(self, func: Any, args: tuple[Any, ...], kwargs: Any, site: CallSite) -> Any:
        namespace, name = _names(func)
        given, written = _tensors(func, args, kwargs)
        overwritten = written if name in _OVERWRITING else _out_arguments(func, kwargs)
        is_allocating = name in _ALLOCATING
        taken = [
            self._seen(tensor, produced=False)
            for tensor in given
            if not _is_among(tensor, overwritten)
        ]
        inputs = () if is_allocating else tuple(taken)
        random_state = _random_state(func, args, kwargs)
        is_repeated = (
            self._request.executions > 1
            and namespace not in _COLLECTIVES
            and not is_allocating
            and name not in _EXECUTED_ONCE
        )
        again = _Again(func, args, kwargs, random_state is not None) if is_repeated else None
        result = func(*args, **kwargs)
        results = [r for r in tree_flatten(result)[0] if isinstance(r, torch.Tensor)]
        produced = results + [t for t in written if not _is_among(t, results)]
        for tensor in produced:
            if is_allocating:
                self._memory.allocated(tensor, self._count)
            else:
                self._memory.wrote(tensor, self._count)
        hidden = is_allocating or namespace in _COLLECTIVES
        outputs = () if hidden else tuple(self._seen(t, produced=True) for t in produced)
        unequal: tuple[tuple[int, str], ...] = ()
        if again is not None:
            unequal = self._compare_again(again, outputs)
        self._write(func, args, kwargs, site, inputs, outputs, random_state, unequal)
        return result

    def _note_random_call(self, name: str, state: str) -> None:
        if os.getpid() != self._pid:
            return
        site = self.sites.here()
        self._append(
            TraceRecord(
                name, site.phase, "", random_state=state, module=site.module, frame=site.frame,
                library_frame=site.library_frame,
            )
        )  # fmt: skip

    def _compare_again(
        self, again: "_Again", outputs: tuple[TracedTensor, ...]
    ) -> tuple[tuple[int, str], ...]:
        for _ in range(self._request.executions - 1):
            unequal = []
            for place, tensor in enumerate(again.execute()):
                if place >= len(outputs) or UNINITIALISED in (outputs[place].digest,):
                    continue
                digest = _digest(tensor)
                if digest != outputs[place].digest:
                    self._keep(tensor, digest)
                    unequal.append((place, digest))
            if unequal:
                return tuple(unequal)
        return ()

    def _seen(self, tensor: torch.Tensor, *, produced: bool) -> TracedTensor:
        made_by = None if produced else self._memory.made_by(tensor)
        dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
        if self._memory.is_uninitialised(tensor):
            return TracedTensor(UNINITIALISED, dtype, shape, made_by)
        digest = _digest(tensor)
        self._keep(tensor, digest)
        return TracedTensor(digest, dtype, shape, made_by)

    def _keep(self, tensor: torch.Tensor, digest: str) -> None:
        """Write a tensor's bytes into a file, unless it is there or too much was kept."""
        size = tensor.numel() * tensor.element_size()
        is_asked_for = self._count >= self._request.keep_from
        if not digest or not is_asked_for or self._kept_bytes + size > self._request.keep_bytes:
            return
        path = self._values / digest
        if path.exists():
            return
        self._kept_bytes += size
        # Through memory of the host, without NumPy, which the script may not have.
        held = _dense(tensor).cpu().contiguous()
        path.write_bytes(ctypes.string_at(held.data_ptr(), size) if size else b"")

    def _write(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        site: CallSite,
        inputs: tuple[TracedTensor, ...] = (),
        outputs: tuple[TracedTensor, ...] = (),
        random_state: str | None = None,
        unequal: tuple[tuple[int, str], ...] = (),
    ) -> None:
        record = TraceRecord(
            str(func), site.phase, _spelled((args, dict(kwargs))), inputs, outputs, random_state,
            site.module, site.node, site.frame, site.library_frame, unequal,
        )  # fmt: skip
        self._append(record)

    def _append(self, record: TraceRecord) -> None:
        self._stream.write(record.to_json() + "\n")
        self._count += 1


class _Again:
    """A call that can be made again as if for the first time.

    Args:
        draws: whether it may draw random numbers; it draws the same ones again.
    """

    def __init__(self, func: Any, args: Any, kwargs: Any, draws: bool) -> None:
        self._func = func
        self._args, self._kwargs = tree_map(_copied, (args, kwargs))
        self._generators = _generators(args, kwargs) if draws else []
        self._before = [generator.get_state() for generator in self._generators]

    def execute(self) -> list[torch.Tensor]:
        """Return what the call gives, with what it writes in place at the end."""
        args, kwargs = tree_map(_copied, (self._args, self._kwargs))
        after = [generator.get_state() for generator in self._generators]
        for generator, state in zip(self._generators, self._before, strict=True):
            generator.set_state(state)
        try:
            result = self._func(*args, **kwargs)
        finally:
            for generator, state in zip(self._generators, after, strict=True):
                generator.set_state(state)
        results = [r for r in tree_flatten(result)[0] if isinstance(r, torch.Tensor)]
        written = _tensors(self._func, args, kwargs)[1]
        return results + [tensor for tensor in written if not _is_among(tensor, results)]


def _copied(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return value
    strides = zip(value.shape, value.stride(), strict=True)
    if any(stride == 0 and size > 1 for size, stride in strides):
        return value.clone()  # an expanded tensor: its elements share their memory
    # Strides and all: kernels choose by them.
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return copy.copy_(value)


def _names(func: Any) -> tuple[str, str]:
    """Return namespace and base name of an operation, `aten` and `add_` say."""
    if isinstance(func, OpOverload):
        return func.namespace, func._schema.name.rpartition("::")[2]
    return "higher_order", str(func)


def _tensors(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return all tensors among the arguments, and those that the operation writes."""
    given = [t for t in tree_flatten((args, dict(kwargs)))[0] if isinstance(t, torch.Tensor)]
    written = []
    for argument, value in _arguments(func, args, kwargs):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += [t for t in tree_flatten(value)[0] if isinstance(t, torch.Tensor)]
    return given, written


def _out_arguments(func: Any, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    found = []
    for argument, value in _arguments(func, (), kwargs):
        if argument.is_out:
            found += [t for t in tree_flatten(value)[0] if isinstance(t, torch.Tensor)]
    return found


def _arguments(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[Any, Any]]:
    """Return the declared arguments that were given, each with its value."""
    if not isinstance(func, OpOverload):
        return []
    pairs = []
    for place, argument in enumerate(func._schema.arguments):
        if place < len(args):
            pairs.append((argument, args[place]))
        elif argument.name in kwargs:
            pairs.append((argument, kwargs[argument.name]))
    return pairs


def _is_among(tensor: torch.Tensor, others: list[torch.Tensor]) -> bool:
    return any(tensor is other for other in others)


def _random_state(func: Any, args: Any, kwargs: Any) -> str | None:
    """Return the digest of the generators that an operation may draw from; None where it may not.

    The tag is a superset: fused attention carries it even without dropout.
    """
    if not isinstance(func, OpOverload) or torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    states = [generator.get_state() for generator in _generators(args, kwargs)]
    return bytes_digest(b"".join(bytes(state.tolist()) for state in states))


def _generators(args: Any, kwargs: Any) -> list[torch.Generator]:
    flat = tree_flatten((args, dict(kwargs)))[0]
    own = [value for value in flat if isinstance(value, torch.Generator)]
    if own:
        return own
    devices = {t.device for t in flat if isinstance(t, torch.Tensor)}
    devices |= {value for value in flat if isinstance(value, torch.device)}
    generators: list[torch.Generator] = []
    for device in sorted(devices, key=str) or [torch.device("cpu")]:
        if device.type == "cpu":
            generators.append(torch.default_generator)
        elif device.type == "cuda":
            index = torch.cuda.current_device() if str(device) == "cuda" else device.index
            generators.append(torch.cuda.default_generators[index])
    return generators


def _digest(tensor: torch.Tensor) -> str:
    """Return a tensor's digest; empty where it has no bits to read."""
    if tensor.device.type == "meta":
        return ""
    try:
        with torch.no_grad():
            return tensors_digest({"": _dense(tensor)})
    except (RuntimeError, NotImplementedError):  # an opaque kind, a fake tensor
        return ""


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    local: Any = tensor.detach()
    if hasattr(local, "to_local"):  # a tensor that is divided over processes
        local = local.to_local()
    if local.layout is not torch.strided:
        local = local.coalesce() if local.layout is torch.sparse_coo else local
        local = local.to_dense()
    held: torch.Tensor = local.resolve_conj().resolve_neg()
    return held


def _spelled(value: Any) -> str:
    """Return arguments without their tensors, in a spelling that holds no address."""
    text = _spelling(value)
    if len(text) <= _LONGEST_SPELLING:
        return text
    return f"{text[:_LONGEST_SPELLING]}... {bytes_digest(text.encode())}"


def _spelling(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "T"
    if isinstance(value, tuple | list):
        are_tensors = all(isinstance(item, torch.Tensor) for item in value)
        if len(value) > _FEW_TENSORS and are_tensors:
            return f"{len(value)} T"
        return "[" + ", ".join(map(_spelling, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}={_spelling(item)}" for key, item in value.items()) + "}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, torch.dtype | torch.device | torch.layout | torch.memory_format):
        return str(value)
    return type(value).__name__


def open_trace(folder: Path, stem: str, request: TraceRequest) -> OperationTrace:
    """Return a trace that writes `trace/STEM.jsonl` below a folder, and `trace/values/`.

    Raises:
        OSError: the folder cannot be written.
    """
    target = folder / "trace"
    target.mkdir(parents=True, exist_ok=True)
    stream = (target / f"{stem}.jsonl").open("x", encoding="utf-8")
    return OperationTrace(stream, request, target / "values")
