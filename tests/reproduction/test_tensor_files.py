"""Tensor files are compared by their bits, and distances are what they say."""

import contextlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mltune_cli.errors import NoVerdictError
from mltune_cli.reproduction.tensor_files import RawTensor, read_tensors, tensor_distance

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool)


def written(path: Path, **tensors: torch.Tensor) -> dict[str, RawTensor]:
    save_file(tensors, path)
    return read_tensors(path)


@pytest.mark.parametrize("dtype", DTYPES)
def test_reads_what_safetensors_wrote(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype)
    a = written(
        tmp_path / "a.safetensors", t=tensor, empty=torch.zeros(0), scalar=tensor[1, 1].clone()
    )
    b = written(
        tmp_path / "b.safetensors", t=tensor, empty=torch.zeros(0), scalar=tensor[1, 1].clone()
    )
    assert sorted(a) == ["empty", "scalar", "t"]
    assert a["t"].shape == (2, 3)
    assert all(tensor_distance(a[name], b[name]) is None for name in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_ulp_is_one_ulp(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.linspace(-3, 3, 24, dtype=dtype).reshape(4, 6)
    other = tensor.clone()
    other[2, 3] = torch.nextafter(other[2, 3], torch.tensor(9, dtype=dtype))
    distance = tensor_distance(
        written(tmp_path / "a", t=tensor)["t"], written(tmp_path / "b", t=other)["t"]
    )
    assert distance is not None
    assert (distance.differing, distance.elements) == (1, 24)
    assert distance.largest_ulp == 1
    assert distance.first_index == (2, 3)
    assert distance.largest_absolute == abs(float(other[2, 3]) - float(tensor[2, 3]))


def test_zeros_nans_and_infinities(tmp_path: Path) -> None:
    a = written(tmp_path / "a", t=torch.tensor([0.0, float("nan"), float("inf"), 1.0]))["t"]
    b = written(tmp_path / "b", t=torch.tensor([-0.0, float("nan"), 1.0, 1.0]))["t"]
    distance = tensor_distance(a, b)
    assert distance is not None
    assert distance.differing == 2
    assert distance.first_values == ("0.0", "-0.0")
    assert distance.largest_absolute == 0.0


def test_a_nan_is_no_number_of_ulps_away(tmp_path: Path) -> None:
    a, b = (
        written(tmp_path / name, t=torch.tensor([1.0, value]))["t"]
        for name, value in (("a", float("nan")), ("b", 2.0))
    )
    for pair in ((a, b), (b, a)):
        distance = tensor_distance(*pair)
        assert distance is not None
        assert (distance.differing, distance.largest_ulp) == (1, None)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-1000, 1000),
)
def test_ulps_count_the_representable_numbers_between(start: float, steps: int) -> None:
    value = np.float32(start)
    moved = value
    with np.errstate(over="ignore", under="ignore"):
        for _ in range(abs(steps)):
            moved = np.nextafter(moved, np.float32(math.copysign(math.inf, steps)))
    if not np.isfinite(moved):
        return
    crosses_zero = value.view(np.int32) != moved.view(np.int32) and (
        np.signbit(value) != np.signbit(moved)
    )

    def raw(x: np.float32) -> RawTensor:
        return RawTensor("F32", (1,), np.array([x], dtype=np.float32).view(np.int32))

    distance = tensor_distance(raw(value), raw(moved))
    ulps = 0 if distance is None else distance.largest_ulp
    # numpy steps from the smallest negative number to one zero, not to both.
    assert ulps in ({abs(steps), abs(steps) + 1} if crosses_zero else {abs(steps)})


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_a_cut_file_is_damage_not_a_difference(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"t": torch.ones(64)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(NoVerdictError, match=r"a\.safetensors"):
        read_tensors(path)


@given(st.binary(max_size=200))
def test_garbage_is_damage(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("garbage") / "a.safetensors"
    path.write_bytes(data)
    with contextlib.suppress(NoVerdictError):
        read_tensors(path)
