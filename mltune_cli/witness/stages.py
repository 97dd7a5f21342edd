"""What a witness digests of a training loop that it does not know."""

import functools
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
        return held_digest({"": value})
    # The spelling of an object may hold its address.
    return repr(value) if isinstance(value, _PLAIN) else type(value).__name__


_MOST_ROWS = 64
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
        # Whatever generator is set; the legacy form knows one kind alone.
        digests["rng_numpy"] = value_digest(numpy.random.get_state(legacy=False))
    return digests


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


def value_digest(value: Any, _inside: tuple[int, ...] = ()) -> str:
    """Return the digest of a batch: tensors, arrays, numbers and text in any nesting."""
    if isinstance(value, torch.Tensor):
        return held_digest({"": value})
    if id(value) in _inside:  # it holds itself
        return bytes_digest(f"the one {len(_inside) - _inside.index(id(value))} above".encode())
    inner = functools.partial(value_digest, _inside=(*_inside, id(value)))
    if isinstance(value, Mapping) or hasattr(value, "keys"):
        return chained_digest(
            part for key in sorted(value.keys(), key=str)
            for part in (str(key), inner(value[key]))
        )  # fmt: skip
    if isinstance(value, list | tuple):
        return chained_digest(map(inner, value))
    if hasattr(value, "tobytes") and hasattr(value, "dtype"):
        kind = f"{value.dtype}{value.shape}"
        if getattr(value.dtype, "hasobject", False):  # whose bytes are addresses
            return chained_digest([kind, inner(value.tolist())])
        return bytes_digest(kind.encode() + value.tobytes())
    if hasattr(value, "__dict__") and not callable(value):
        # Of what else an object carries (when it was made, say) nothing may be trained on.
        held = {name: one for name, one in vars(value).items() if _may_hold_tensors(one)}
        return inner(held)
    return bytes_digest(_plain(value).encode())


def _may_hold_tensors(value: Any) -> bool:
    kinds = (torch.Tensor, Mapping, list, tuple)
    return isinstance(value, kinds) or hasattr(value, "__dict__") or hasattr(value, "tobytes")


def row_digests(batch: Any) -> list[str]:
    """Return one digest for each row of a batch, whatever its fellows; none where it has no rows.

    Rows are what tensors of one length hold at one place. Of whole numbers, what repeats at either
    end is left out: padding depends on the longest row of the batch.
    """
    tensors = list(_tensors_in(batch))
    lengths = {tensor.shape[0] for tensor in tensors if tensor.dim()}
    if len(lengths) != 1 or not all(tensor.dim() for tensor in tensors):
        return []
    count = min(next(iter(lengths)), _MOST_ROWS)
    return [chained_digest(_trimmed(tensor[row]) for tensor in tensors) for row in range(count)]


def _tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch.detach().cpu()
    elif isinstance(batch, Mapping) or hasattr(batch, "keys"):
        for key in sorted(batch.keys(), key=str):
            yield from _tensors_in(batch[key])
    elif isinstance(batch, list | tuple):
        for item in batch:
            yield from _tensors_in(item)


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
