"""What a witness digests of a training loop that it does not know."""

import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from mltune_cli.witness.digest import PendingDigest, pending_digest, readable, resolved
from mltune_cli.witness.record import bytes_digest, chained_digest


def enumerate_names(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors with their numbers for names."""
    return ((str(number), tensor) for number, tensor in enumerate(tensors))


def optimizer_parameters(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an optimizer's parameters by group, place and name.

    Args:
        optimizer: whose.
        names: by the parameters' ids, where they are known.
    """
    for group_number, group in enumerate(optimizer.param_groups):
        for number, parameter in enumerate(group["params"]):
            name = names.get(id(parameter))
            yield f"{group_number}.{number}" + (f" {name}" if name else ""), parameter


def state_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[int, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an optimizer's state, plain numbers included, by slot and parameter.

    Slot by slot, since those of one parameter may be on several devices, and what is digested
    together had better lie on one.
    """
    states = [
        (name, optimizer.state.get(parameter, {}))
        for name, parameter in optimizer_parameters(optimizer, names)
    ]
    for slot in sorted({slot for _, state in states for slot in state}, key=str):
        for name, state in states:
            value = state.get(slot)
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
        # A larger one may be scratch memory of the optimizer, which means nothing.
        is_setting = value.numel() == 1
        return held_digest({"": value}) if is_setting else f"{value.dtype} x {value.numel()}"
    if _is_plain(value):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_plain, value))})"
    # The spelling of an object may hold its address.
    return type(value).__name__


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


_MOST_ROWS = 64
_MOST_ROUNDS = 64
_MOST_HOLDERS = 10_000
_DEEPEST = 100_000
_PLAIN = (bool, int, float, str, bytes, type(None))


def random_states() -> dict[str, str]:
    """Return the digests of torch's generators, on all devices, of Python's and of NumPy's.

    They are apart, since the last two start from noise where a script does not seed them, which is
    no fault where it does not use them.
    """
    states = [state_bytes(torch.get_rng_state())]
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states += [state_bytes(state) for state in torch.cuda.get_rng_state_all()]
    digests = {
        "rng": bytes_digest(b"".join(states)),
        "rng_python": bytes_digest(repr(random.getstate()).encode()),
    }
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        # Whatever generator is set; the legacy form knows one kind alone.
        digests["rng_numpy"] = value_digest(numpy.random.get_state(legacy=False))
    return digests


def state_bytes(state: torch.Tensor) -> bytes:
    """Return the bytes of a generator's state, also where the script has no NumPy."""
    try:
        return state.numpy().tobytes()
    except RuntimeError:
        return bytes(state.tolist())


def settings() -> dict[str, Any]:
    """Return what decides bits besides the script, as it is now."""
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "default dtype": str(torch.get_default_dtype()),
        "matmul precision": _readable(torch.get_float32_matmul_precision),
        "tf32": _readable(lambda: torch.backends.cuda.matmul.allow_tf32),
        "cudnn benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _readable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except RuntimeError:  # set by torch's newer switches, which the older ones refuse to read
        return "set by fp32_precision"


def value_digest(value: Any) -> str:
    """Return the digest of a batch: tensors, arrays, numbers and text in any nesting.

    Equal values have equal digests, whether they hold one object twice or two that are equal. Each
    object is digested once, however many ways lead to it.

    Raises:
        RecursionError: it goes on and on, as what makes its parts when it is asked for them may.
    """
    root = _part(value)
    if isinstance(root, str):
        return root
    nodes = _nodes_of(root)
    holders: dict[int, list[int]] = {}
    waiting = {
        node: {part for part in parts if isinstance(part, int)} for node, parts in nodes.items()
    }
    for node, inner in waiting.items():
        for part in inner:
            holders.setdefault(part, []).append(node)
    # Parts come before what holds them; what holds itself at some remove is never ready.
    digests: dict[int, str] = {}
    ready = [node for node, inner in waiting.items() if not inner]
    while ready:
        node = ready.pop()
        digests[node] = _digest_of(nodes[node], digests)
        for holder in holders.get(node, ()):
            waiting[holder].discard(node)
            if not waiting[holder]:
                ready.append(holder)
    return digests.get(id(root)) or _digest_of_circles(id(root), nodes, digests)


# The parts of an object: digests and names as they are, other objects by their ids.
_Parts = list[str | int]


def _digest_of(parts: _Parts, digests: Mapping[int, str]) -> str:
    return chained_digest(digests[part] if isinstance(part, int) else part for part in parts)


def _digest_of_circles(root: int, nodes: Mapping[int, _Parts], known: Mapping[int, str]) -> str:
    """Return the digest of an object that leads to itself, or to another one that does.

    Round by round, each such object gets the digest of what its parts had in the round before,
    until no more of them can be told apart.
    """
    left = [node for node in nodes if node not in known]
    digests = dict.fromkeys(left, "")
    for _ in range(_MOST_ROUNDS):
        before = {**known, **digests}
        kinds = len(set(digests.values()))
        digests = {node: _digest_of(nodes[node], before) for node in left}
        if len(set(digests.values())) == kinds:
            break
    # All of them: what is far from the root may not have come to it by then.
    return chained_digest([digests[root], *sorted(set(digests.values()))])


def _nodes_of(root: Any) -> dict[int, _Parts]:
    nodes: dict[int, _Parts] = {}
    alive = []  # so that no id is given twice
    stack = [(root, 0)]
    while stack:
        value, depth = stack.pop()
        if id(value) in nodes:
            continue
        if depth > _DEEPEST:
            raise RecursionError(f"a batch is nested more than {_DEEPEST} deep")
        parts = list(_parts(value))
        alive.append((value, parts))
        nodes[id(value)] = [part if isinstance(part, str) else id(part) for part in parts]
        stack += [(part, depth + 1) for part in parts if not isinstance(part, str)]
    return nodes


def _part(value: Any) -> Any:
    """Return the digest of what has no parts, anything else as it is."""
    if isinstance(value, torch.Tensor):
        return held_digest({"": value})
    if isinstance(value, list | tuple) or _is_mapping(value):
        return value
    if _is_array(value):
        if getattr(value.dtype, "hasobject", False):  # whose bytes are addresses
            return value
        return bytes_digest(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    if _has_bytes(value):
        return bytes_digest(_plain(value).encode() + _bytes_at_hand(value))
    if not callable(value) and (hasattr(value, "__dict__") or _has_slots(value)):
        return value
    return bytes_digest(_plain(value).encode())


def _parts(value: Any) -> Iterator[Any]:
    """Yield what an object is digested by, in order."""
    if _is_mapping(value):
        for key in sorted(value.keys(), key=str):
            yield from (str(key), _part(value[key]))
    elif isinstance(value, list | tuple):
        yield from map(_part, value)
    elif _is_array(value):
        yield from (f"{value.dtype}{value.shape}", _part(value.tolist()))
    else:
        # Of what else an object carries (when it was made, say) nothing may be trained on.
        held = {name: one for name, one in _attributes(value) if _may_hold_tensors(one)}
        yield from _parts(held)


# What images and plain arrays say of their bytes.
_OF_BYTES = ("typecode", "shape", "size", "mode")


def _has_bytes(value: Any) -> bool:
    return callable(getattr(value, "tobytes", None)) and not isinstance(value, type)


def _bytes_at_hand(value: Any) -> bytes:
    """Return what an image or the like says and holds; nothing that would have to be made first.

    An image of PIL that is still in its file (which has `tile` then) would be decoded, and can be
    opened another way no more: the training would be another one.
    """
    try:
        said = "".join(_plain(getattr(value, name, None)) for name in _OF_BYTES).encode()
        return said if getattr(value, "tile", None) else said + memoryview(value.tobytes())
    except Exception:  # noqa: BLE001 - whatever its class does there; nobody may train on it
        return b""


def _is_array(value: Any) -> bool:
    return _has_bytes(value) and hasattr(value, "dtype") and hasattr(value, "shape")


def _has_slots(value: Any) -> bool:
    # A path has some, which it fills when it is asked for something.
    return not isinstance(value, os.PathLike) and any(_slots(value))


def _slots(value: Any) -> Iterator[str]:
    """Yield the names under which an object without `__dict__` keeps what it has."""
    for owner in type(value).__mro__:
        names = vars(owner).get("__slots__", ())
        for name in [names] if isinstance(names, str) else names:
            is_private = name.startswith("__") and not name.endswith("__")
            yield f"_{owner.__name__.lstrip('_')}{name}" if is_private else name


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(value, "__dict__", {}).items()
    for name in _slots(value):
        if name not in ("__dict__", "__weakref__") and hasattr(value, name):
            yield name, getattr(value, name)


def _may_hold_tensors(value: Any) -> bool:
    kinds = (torch.Tensor, Mapping, list, tuple)
    return (
        isinstance(value, kinds)
        or hasattr(value, "__dict__")
        or _has_bytes(value)
        or _has_slots(value)
    )


def row_digests(batch: Any) -> list[str]:
    """Return one digest for each row of a batch, whatever its fellows; none where it has no rows.

    Rows are what tensors of one length hold at one place. Of whole numbers, what repeats at either
    end is left out: padding depends on the longest row of the batch.
    """
    found = _tensors_in(batch)
    if any(tensor.layout != torch.strided or tensor.is_nested for tensor in found):
        return []
    tensors = [tensor.detach().cpu() for tensor in found]
    lengths = {tensor.shape[0] for tensor in tensors if tensor.dim()}
    if len(lengths) != 1 or not all(tensor.dim() for tensor in tensors):
        return []
    count = min(next(iter(lengths)), _MOST_ROWS)
    return [chained_digest(_trimmed(tensor[row]) for tensor in tensors) for row in range(count)]


def _is_mapping(value: Any) -> bool:
    """Tell whether a value has keys; a named tuple may have a field of that name."""
    if isinstance(value, Mapping):
        return True
    return not isinstance(value, tuple) and callable(getattr(value, "keys", None))


def _tensors_in(batch: Any) -> list[torch.Tensor]:
    """Return the tensors of a batch in order; none where too many ways lead through it."""
    found = []
    stack = [batch]
    for _ in range(_MOST_HOLDERS):
        while stack and isinstance(stack[-1], torch.Tensor):
            found.append(stack.pop())
        if not stack:
            return found
        value = stack.pop()
        if _is_mapping(value):
            keys = sorted(value.keys(), key=str)
            stack += [value[key] for key in reversed(keys)]
        elif isinstance(value, list | tuple):
            stack += [one for one in reversed(value) if _may_hold_tensors(one)]
    return []


def _trimmed(row: torch.Tensor) -> str:
    flat = row.reshape(-1)
    if not flat.is_floating_point() and not flat.is_complex() and len(flat) > 1:
        for end in (-1, 0):
            inside = (flat != flat[end]).nonzero()
            if len(inside) == 0:
                flat = flat[:1]
                break
            flat = flat[: int(inside[-1]) + 1] if end else flat[int(inside[0]) :]
    return held_digest({str(flat.dtype): flat})


def held_digest(tensors: Mapping[Any, torch.Tensor]) -> str:
    """Return the digest of what this process holds of some tensors."""
    return resolved([pending_held(tensors)])[0]


def pending_held(tensors: Mapping[Any, torch.Tensor]) -> PendingDigest:
    """Begin to compute the digest of what this process holds of some tensors, as it is now."""
    with torch.no_grad():
        return pending_digest({str(name): readable(tensor) for name, tensor in tensors.items()})
