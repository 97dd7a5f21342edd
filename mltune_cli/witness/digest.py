"""Digests of tensors by integer arithmetic, computed where the tensors are.

Each 32-bit word is mixed with its position into 64 bits and the results are summed with
wrap-around. Integer addition is associative, so no order of summation, no thread count and no
atomic addition can change the digest: it cannot itself be nondeterministic. Mixing is not linear,
so permutations, pairs of sign flips and one-ulp changes do not cancel. Bits are compared, not
values: 0 differs from -0, and a NaN equals the same NaN.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch

from mltune_cli.witness.record import bytes_digest

# The constants of splitmix64, as signed 64-bit integers. Source: G. L. Steele et al., "Fast
# splittable pseudorandom number generators", OOPSLA 2014.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_BUCKET_WORDS = 1 << 22


def tensors_digest(
    tensors: Mapping[str, torch.Tensor], compute_on: torch.device | None = None
) -> str:
    """Return 16 hexadecimal digits for named tensors: names, dtypes, shapes and every bit.

    Args:
        tensors: dense tensors of any dtype, on any device; names are taken in their given order.
        compute_on: where to, piece by piece, the bits are brought; None computes where they are.
    """
    header = ";".join(f"{name}:{t.dtype}:{tuple(t.shape)}" for name, t in tensors.items())
    sums: dict[torch.device, torch.Tensor] = {}
    position = 0
    for words in _buckets(tensors.values()):
        bucket = words if compute_on is None else words.to(compute_on)
        mixed = mixed_sum(bucket, position)
        position += bucket.numel()
        total = sums.get(bucket.device)
        sums[bucket.device] = mixed if total is None else total + mixed
    total_sum = sum(int(value.item()) for value in sums.values()) % (1 << 64)
    return bytes_digest(f"{header}|{total_sum:016x}".encode())


def mixed_sum(words: torch.Tensor, first_position: int) -> torch.Tensor:
    """Return the sum, modulo 2**64, of every word mixed with its position.

    Args:
        words: int32, shape (words,).
        first_position: position of the first word in the whole.

    Returns:
        int64, no dimensions, on the device of `words`.
    """
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
    """Join small tensors and cut large ones, so that neither calls nor memory grow."""
    waiting: list[torch.Tensor] = []
    held = 0
    for tensor in tensors:
        for words in torch.split(as_words(tensor), _BUCKET_WORDS):
            if waiting and (
                held + words.numel() > _BUCKET_WORDS or words.device != waiting[0].device
            ):
                yield torch.cat(waiting)
                waiting, held = [], 0
            waiting.append(words)
            held += words.numel()
    if waiting:
        yield torch.cat(waiting)


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
