"""What a call of torch's dispatcher takes, writes and draws from, and how to make it again."""

from collections.abc import Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_flatten, tree_map

from mltune_cli.witness.record import bytes_digest
from mltune_cli.witness.stages import state_bytes

_LONGEST_SPELLING = 400
_FEW_TENSORS = 3


def operation_names(func: Any) -> tuple[str, str]:
    """Return namespace and base name of an operation, `aten` and `add_` say."""
    if isinstance(func, OpOverload):
        return func.namespace, func._schema.name.rpartition("::")[2]
    return "higher_order", str(func)


def call_tensors(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return all tensors among the arguments, and those that the operation writes."""
    given = [t for t in tree_flatten((args, dict(kwargs)))[0] if isinstance(t, torch.Tensor)]
    written = []
    for argument, value in _arguments(func, args, kwargs):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written += [t for t in tree_flatten(value)[0] if isinstance(t, torch.Tensor)]
    return given, written


def out_tensors(func: Any, kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the tensors that an operation was given to write its results into."""
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


def is_among(tensor: torch.Tensor, others: list[torch.Tensor]) -> bool:
    """Tell whether a tensor is one of some others, not whether it equals one."""
    return any(tensor is other for other in others)


def random_state(func: Any, args: Any, kwargs: Any) -> str | None:
    """Return the digest of the generators that an operation may draw from; None where it may not.

    The tag is a superset: fused attention carries it even without dropout.
    """
    if not isinstance(func, OpOverload) or torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    states = [generator.get_state() for generator in _generators(args, kwargs)]
    return bytes_digest(b"".join(map(state_bytes, states)))


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


def spelled_arguments(value: Any) -> str:
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


class CallAgain:
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
        written = call_tensors(self._func, args, kwargs)[1]
        return results + [tensor for tensor in written if not is_among(tensor, results)]


def _copied(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_nested:
        return value
    strides = zip(value.shape, value.stride(), strict=True)
    if any(stride == 0 and size > 1 for size, stride in strides):
        return value.clone()  # an expanded tensor: its elements share their memory
    # Strides and all: kernels choose by them.
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
    return copy.copy_(value)
