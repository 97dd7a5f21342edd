"""Digests of tensors by integer arithmetic, computed where the tensors are.

Each 32-bit word is mixed with its position into 64 bits and the results are summed with
wrap-around. Integer addition is associative, so no order of summation, no thread count and no
atomic addition can change the digest: it cannot itself be nondeterministic. Mixing is not linear,
so permutations, pairs of sign flips and one-ulp changes do not cancel. Bits are compared, not
values: 0 differs from -0, and a NaN equals the same NaN.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mltune_cli.witness.record import bytes_digest

# The constants of splitmix64, as signed 64-bit integers. Source: G. L. Steele et al., "Fast
# splittable pseudorandom number generators", OOPSLA 2014.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
# A dozen passes go over a bucket: on a CPU it had better stay in the cache (8.3 against 2.6 ns for
# an element), elsewhere one that is large saves calls.
_BUCKET_ELEMENTS = 1 << 22
_CPU_BUCKET_ELEMENTS = 1 << 18


MixedSum = Callable[[torch.Tensor, int], torch.Tensor]
# What computes `mixed_sum` on a GPU; None where torch does, operation by operation.
_gpu_sum: MixedSum | None = None


def sum_on_gpu_by(kernel: MixedSum | None) -> None:
    """Compute digests on a GPU by a kernel of the caller's; no digest may change by that.

    Args:
        kernel: returns what `mixed_sum` returns; None for torch's own operations.
    """
    global _gpu_sum
    _gpu_sum = kernel


@dataclass(frozen=True)
class PendingDigest:
    """A digest that is being computed; the device need not be waited for yet.

    Attributes:
        header: names, dtypes and shapes.
        sums: one for each device; int64, no dimensions.
    """

    header: str
    sums: tuple[torch.Tensor, ...]

    def finished(self, total: int) -> str:
        """Return the digest of 16 hexadecimal digits, given what the sums add up to."""
        return bytes_digest(f"{self.header}|{total % (1 << 64):016x}".encode())


def pending_digest(
    tensors: Mapping[str, torch.Tensor], compute_on: torch.device | None = None
) -> PendingDigest:
    """Begin to compute the digest of named tensors, as they are now.

    Args:
        tensors: dense tensors of any dtype, on any device; names are taken in their given order.
        compute_on: where to, piece by piece, the bits are brought; None computes where they are.
    """
    header = ";".join(f"{name}:{t.dtype}:{tuple(t.shape)}" for name, t in tensors.items())
    sums: dict[torch.device, torch.Tensor] = {}
    position = 0
    with torch.no_grad():
        for words in _buckets(tensors.values()):
            bucket = words if compute_on is None else words.to(compute_on)
            mixed = mixed_sum(bucket, position)
            position += bucket.numel()
            total = sums.get(bucket.device)
            sums[bucket.device] = mixed if total is None else total + mixed
    return PendingDigest(header, tuple(sums.values()))


def resolved(pending: Sequence[PendingDigest]) -> list[str]:
    """Return digests of 16 hexadecimal digits, reading each device once."""
    by_device: dict[torch.device, list[torch.Tensor]] = {}
    for one in pending:
        for value in one.sums:
            by_device.setdefault(value.device, []).append(value)
    values = {device: iter(torch.stack(sums).tolist()) for device, sums in by_device.items()}
    return [one.finished(sum(next(values[value.device]) for value in one.sums)) for one in pending]


def tensors_digest(
    tensors: Mapping[str, torch.Tensor], compute_on: torch.device | None = None
) -> str:
    """Return 16 hexadecimal digits for named tensors: names, dtypes, shapes and every bit.

    Args:
        tensors: dense tensors of any dtype, on any device; names are taken in their given order.
        compute_on: where to, piece by piece, the bits are brought; None computes where they are.
    """
    return resolved([pending_digest(tensors, compute_on)])[0]


def readable(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor, of any kind, as plain numbers in memory.

    Of a quantised tensor these are its codes, then its scales and zero points; of a nested one the
    dtype and the shapes of its parts, then their words.
    """
    if tensor.is_nested:
        return tensor.values() if tensor.is_meta else _nested_parts(tensor)
    if type(tensor) in _PLAIN_TENSORS and tensor.layout is torch.strided:
        if tensor.is_quantized:
            return _quantised_parts(tensor)
        return tensor.resolve_conj().resolve_neg()
    local: Any = tensor.detach()
    if hasattr(local, "to_local"):  # a tensor that is divided over processes
        local = local.to_local()
    if local.layout is not torch.strided:
        local = local.coalesce() if local.layout is torch.sparse_coo else local
        local = local.to_dense()
    held: torch.Tensor = local.resolve_conj().resolve_neg()
    return held


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


def _quantised_parts(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        one = (tensor.q_scale(), tensor.q_zero_point())
        scale = torch.tensor(one, dtype=torch.float64, device=tensor.device)
    else:
        each = (tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points())
        scale = torch.cat([part.to(tensor.device, torch.float64) for part in each])
    # Every code is a whole number that a float64 holds.
    return torch.cat([tensor.int_repr().reshape(-1).double(), scale])


def _nested_parts(tensor: torch.Tensor) -> torch.Tensor:
    parts = [readable(part) for part in tensor.detach().unbind()]
    said = f"{tensor.dtype}{[tuple(part.shape) for part in parts]}".encode()
    header = torch.tensor(list(said), dtype=torch.int32, device=tensor.device)
    return torch.cat([header, *map(as_words, parts)])


def mixed_sum(words: torch.Tensor, first_position: int) -> torch.Tensor:
    """Return the sum, modulo 2**64, of every word mixed with its position.

    Args:
        words: int32, shape (words,).
        first_position: position of the first word in the whole.

    Returns:
        int64, no dimensions, on the device of `words`.
    """
    if _gpu_sum is not None and words.device.type == "cuda":
        return _gpu_sum(words, first_position)
    count = words.numel()
    mixed = torch.arange(
        first_position + 1, first_position + 1 + count, dtype=torch.int64, device=words.device
    )
    mixed.mul_(_INCREMENT).bitwise_xor_(words.to(torch.int64))
    # A right shift of a signed number drags the sign in; the mask makes it a logical shift.
    mixed.bitwise_xor_((mixed >> 30).bitwise_and_((1 << 34) - 1)).mul_(_MULTIPLIER_1)
    mixed.bitwise_xor_((mixed >> 27).bitwise_and_((1 << 37) - 1)).mul_(_MULTIPLIER_2)
    mixed.bitwise_xor_((mixed >> 31).bitwise_and_((1 << 33) - 1))
    return mixed.sum()


def _buckets(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Join small tensors of one kind and cut large ones, so that neither calls nor memory grow."""
    waiting: list[torch.Tensor] = []
    held = 0
    for tensor in tensors:
        count = 0 if tensor.is_meta else tensor.numel()  # which has a shape and no numbers
        most = _CPU_BUCKET_ELEMENTS if tensor.device.type == "cpu" else _BUCKET_ELEMENTS
        is_same = bool(waiting) and (
            tensor.dtype is waiting[0].dtype and tensor.device == waiting[0].device
        )
        if waiting and (not is_same or held + count > most):
            yield _joined(waiting)
            waiting, held = [], 0
        if count > most:
            for piece in torch.split(tensor.detach().reshape(-1), most):
                yield as_words(piece)
        elif count:
            waiting.append(tensor)
            held += count
    if waiting:
        yield _joined(waiting)


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the words of tensors of one dtype on one device, in order."""
    if len(tensors) == 1 or tensors[0].dtype not in _JOINABLE:
        return torch.cat([as_words(tensor) for tensor in tensors])
    # One call for hundreds of tensors: views of each would take longer than the arithmetic.
    return as_words(torch._C._nn.flatten_dense_tensors(tensors))


# Everything that trained parameters, their gradients and optimizer states usually are.
_JOINABLE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bits as int32 words, shape (words,); narrower elements are widened.

    Eight-byte elements become two words each: a sum modulo 2**64 of whole elements would not see
    two flipped top bits.
    """
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    width = flat.element_size()
    if width == 1:
        return flat.view(torch.uint8).to(torch.int32)
    if width == 2:
        return flat.view(torch.int16).to(torch.int32)
    return flat.view(torch.int32)
