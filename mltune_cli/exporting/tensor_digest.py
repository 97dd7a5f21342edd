"""The witness's digest of trained parameters, computed from their file, without torch.

The same integer arithmetic as in `witness.digest`, and the same digits: a file whose digest is
that of the manifest holds, bit for bit, what the run trained.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from mltune_cli.reproduction.tensor_files import RawTensor
from mltune_cli.witness.record import bytes_digest

Words = npt.NDArray[np.uint64]

# The constants of splitmix64. Source: G. L. Steele et al., "Fast splittable pseudorandom number
# generators", OOPSLA 2014.
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_PIECE_WORDS = 1 << 20
_TORCH_NAMES = {
    "BF16": "bfloat16", "BOOL": "bool", "F16": "float16", "F32": "float32", "F64": "float64",
    "I16": "int16", "I32": "int32", "I64": "int64", "I8": "int8", "U8": "uint8",
}  # fmt: skip
# peft leaves the adapter's name out of a file: what it is called there, and in the model.
_ADAPTER_NAMES = (
    (re.compile(r"\.lora_([AB])\.weight$"), r".lora_\1.default.weight"),
    (re.compile(r"\.lora_magnitude_vector$"), ".lora_magnitude_vector.default.weight"),
)


def adapter_digest(tensors: Mapping[str, RawTensor]) -> str | None:
    """Return the digest that an adapter's parameters had in the model.

    Args:
        tensors: of an adapter in peft's format, by name.

    Returns:
        16 hexadecimal digits; None where a tensor is of a kind whose name in the model is unknown.
    """
    named = {}
    for name, tensor in tensors.items():
        spellings = [
            pattern.sub(with_adapter, name)
            for pattern, with_adapter in _ADAPTER_NAMES
            if pattern.search(name)
        ]
        if not spellings:
            return None
        named[spellings[0]] = tensor
    return raw_tensors_digest(named)


def raw_tensors_digest(tensors: Mapping[str, RawTensor]) -> str | None:
    """Return what `witness.digest.tensors_digest` says of the same tensors, sorted by name.

    Returns:
        16 hexadecimal digits; None where a tensor has a dtype that parameters do not have.
    """
    if not all(tensor.dtype in _TORCH_NAMES for tensor in tensors.values()):
        return None
    by_name = dict(sorted(tensors.items()))
    header = ";".join(
        f"{name}:torch.{_TORCH_NAMES[t.dtype]}:{tuple(t.shape)}" for name, t in by_name.items()
    )
    total = position = 0
    for tensor in by_name.values():
        for words in _pieces(tensor):
            total += _mixed_sum(words, position)
            position += len(words)
    return bytes_digest(f"{header}|{total % (1 << 64):016x}".encode())


def _pieces(tensor: RawTensor) -> Iterator[Words]:
    """Yield a tensor's bits as 32-bit words, each widened to 64 as torch widens it."""
    bits: npt.NDArray[np.signedinteger] = tensor.bits
    if bits.dtype.itemsize == 8:
        bits = bits.view(np.int32)
    for first in range(0, len(bits), _PIECE_WORDS):
        piece = bits[first : first + _PIECE_WORDS]
        # A byte is unsigned there, and every other width carries its sign along.
        yield (piece.view(np.uint8) if piece.dtype == np.int8 else piece).astype(np.uint64)


def _mixed_sum(words: Words, first_position: int) -> int:
    mixed = np.arange(first_position + 1, first_position + 1 + len(words), dtype=np.uint64)
    mixed *= _INCREMENT
    mixed ^= words
    mixed ^= mixed >> np.uint64(30)
    mixed *= _MULTIPLIER_1
    mixed ^= mixed >> np.uint64(27)
    mixed *= _MULTIPLIER_2
    mixed ^= mixed >> np.uint64(31)
    return int(mixed.sum(dtype=np.uint64))
