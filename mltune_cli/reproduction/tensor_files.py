"""Tensors of two safetensors files compared by their bits, without torch.

The format is a length, a JSON header, and raw little-endian bytes. Source: the safetensors
specification, https://github.com/huggingface/safetensors.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mltune_cli.errors import NoVerdictError

_HEADER_LIMIT_BYTES = 100_000_000
_INTEGERS: dict[int, type[np.signedinteger[Any]]] = {
    1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64,
}  # fmt: skip
_FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_CODES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "uint16": "U16", "int16": "I16", "float16": "F16",
    "bfloat16": "BF16", "uint32": "U32", "int32": "I32", "float32": "F32", "uint64": "U64",
    "int64": "I64", "float64": "F64",
}  # fmt: skip


@dataclass(frozen=True)
class RawTensor:
    """A tensor's bits as they lie in a file."""

    dtype: str
    shape: tuple[int, ...]
    bits: npt.NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class TensorDistance:
    """How far two tensors of one dtype and shape are apart.

    Attributes:
        differing: elements whose bits are not the same.
        elements: elements in all.
        largest_absolute: the largest difference of two finite elements; None for integers, or
            where no differing pair is finite.
        largest_ulp: the most representable numbers that lie between two elements, plus one.
        first_index: of the first differing element.
        first_values: the two elements there, as text.
    """

    differing: int
    elements: int
    largest_absolute: float | None
    largest_ulp: int | None
    first_index: tuple[int, ...]
    first_values: tuple[str, str]


def read_tensors(path: Path) -> dict[str, RawTensor]:
    """Map a safetensors file; the bytes of a tensor are read when they are compared.

    Raises:
        NoVerdictError: the file is damaged or cut short.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        header_bytes = int(data[:8].view("<u8")[0])
        _require(header_bytes <= min(len(data) - 8, _HEADER_LIMIT_BYTES), "its header is cut short")
        header = json.loads(data[8 : 8 + header_bytes].tobytes())
        header.pop("__metadata__", None)
        body = data[8 + header_bytes :]
        tensors = {name: _raw_tensor(body, **entry) for name, entry in sorted(header.items())}
        used_bytes = sum(tensor.bits.nbytes for tensor in tensors.values())
        _require(used_bytes == len(body), "it holds bytes that belong to no tensor")
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise NoVerdictError(f"{path}: is not a whole safetensors file: {error}") from None
    return tensors


def raw_tensor(data: bytes, dtype: str, shape: list[int]) -> RawTensor | None:
    """Return a tensor of which the bytes are given; None for kinds that have no code here.

    Args:
        data: the elements, little-endian, in order.
        dtype: as torch spells it, without `torch.`.
        shape: sizes.
    """
    code = _CODES.get(dtype)
    if code is None or len(data) != _WIDTHS[code] * math.prod(shape):
        return None
    bits = np.frombuffer(data, _INTEGERS[_WIDTHS[code]])
    return RawTensor(code, tuple(shape), bits)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)


def _raw_tensor(
    body: npt.NDArray[np.uint8], dtype: str, shape: list[int], data_offsets: list[int]
) -> RawTensor:
    start, end = data_offsets
    width = _WIDTHS[dtype]
    fits = 0 <= start <= end <= len(body) and end - start == width * math.prod(shape)
    _require(fits, "its tensors are cut short")
    return RawTensor(dtype, tuple(shape), body[start:end].view(_INTEGERS[width]))


def tensor_distance(a: RawTensor, b: RawTensor) -> TensorDistance | None:
    """Compare two tensors of the same dtype and shape; None where every bit is equal.

    0 differs from -0, and a NaN equals the same NaN: bits are compared, not values.

    Raises:
        ValueError: dtypes or shapes differ.
    """
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        raise ValueError("tensors of different dtype or shape have no distance")
    where = np.flatnonzero(a.bits != b.bits)
    if not len(where):
        return None
    bits_a, bits_b = a.bits[where], b.bits[where]
    values_a, values_b = _values(a.dtype, bits_a), _values(b.dtype, bits_b)
    is_float = a.dtype in _FLOATS or a.dtype == "BF16"
    is_ordered = is_float and not (np.isnan(values_a).any() or np.isnan(values_b).any())
    first = np.unravel_index(int(where[0]), a.shape) if a.shape else ()
    return TensorDistance(
        differing=len(where),
        elements=a.bits.size,
        largest_absolute=_largest_absolute(values_a, values_b) if is_float else None,
        largest_ulp=_largest_ulp(bits_a, bits_b) if is_ordered else None,
        first_index=tuple(int(part) for part in first),
        first_values=(repr(values_a[0].item()), repr(values_b[0].item())),
    )


def _values(dtype: str, bits: npt.NDArray[np.signedinteger[Any]]) -> npt.NDArray[Any]:
    if dtype == "BF16":
        return (bits.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype in _FLOATS:
        return bits.view(_FLOATS[dtype])
    return bits


def _largest_absolute(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float | None:
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.abs(a.astype(np.float64) - b.astype(np.float64))
    finite = distances[np.isfinite(distances)]
    return float(finite.max()) if len(finite) else None


def _largest_ulp(
    a: npt.NDArray[np.signedinteger[Any]], b: npt.NDArray[np.signedinteger[Any]]
) -> int:
    """Return the largest distance on the line of representable numbers.

    Floats of one sign are ordered as their bits; negative ones run backwards. Both zeros are
    neighbours here, one step apart, since their bits differ.
    """
    if a.dtype.itemsize == 8:
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        return max(abs(_ordered(x, 63) - _ordered(y, 63)) for x, y in pairs)
    sign_bit = 8 * a.dtype.itemsize - 1
    wide_a, wide_b = a.astype(np.int64), b.astype(np.int64)
    ordered_a = np.where(wide_a < 0, -(wide_a + (1 << sign_bit)) - 1, wide_a)
    ordered_b = np.where(wide_b < 0, -(wide_b + (1 << sign_bit)) - 1, wide_b)
    return int(np.abs(ordered_a - ordered_b).max())


def _ordered(bits: int, sign_bit: int) -> int:
    return -(bits + (1 << sign_bit)) - 1 if bits < 0 else bits
