"""The witness's digest from a file's bits: the digits are those of torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mltune_cli.exporting import tensor_digest
from mltune_cli.exporting.tensor_digest import adapter_digest, raw_tensors_digest
from mltune_cli.reproduction.tensor_files import read_tensors
from mltune_cli.witness.digest import tensors_digest

DTYPES = (
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Any bits, NaNs and infinities included."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    width = torch.empty((), dtype=dtype).element_size()
    count = int(torch.tensor(shape).prod()) * width
    raw = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


@pytest.mark.parametrize("piece_words", [1 << 20, 7])
def test_it_is_the_witness_s_for_every_dtype_and_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_words: int
) -> None:
    monkeypatch.setattr(tensor_digest, "_PIECE_WORDS", piece_words)
    shapes = ((3, 5), (1,), (16,), (2, 3, 4))
    tensors = {
        f"layer.{index}.weight": random_tensor(dtype, shape, seed=index)
        for index, (dtype, shape) in enumerate((d, s) for d in DTYPES for s in shapes)
    }
    save_file(tensors, tmp_path / "file.safetensors")
    raw = read_tensors(tmp_path / "file.safetensors")
    assert raw_tensors_digest(raw) == tensors_digest(dict(sorted(tensors.items())))
    for name, tensor in tensors.items():
        save_file({name: tensor}, tmp_path / "one.safetensors")
        one = read_tensors(tmp_path / "one.safetensors")
        assert raw_tensors_digest(one) == tensors_digest({name: tensor}), tensor.dtype


def test_an_adapter_s_names_are_those_in_the_model(tmp_path: Path) -> None:
    in_model = {
        "m.q.lora_A.default.weight": torch.ones(2, 3),
        "m.q.lora_B.default.weight": torch.full((3, 2), 2.0),
        "m.q.lora_magnitude_vector.default.weight": torch.full((3,), 3.0),
    }
    in_file = {
        name.replace(".default.weight", "" if "magnitude" in name else ".weight"): tensor
        for name, tensor in in_model.items()
    }
    save_file(in_file, tmp_path / "file.safetensors")
    raw = read_tensors(tmp_path / "file.safetensors")
    assert adapter_digest(raw) == tensors_digest(in_model)
    assert adapter_digest(raw | {"m.q.lora_C.weight": raw["m.q.lora_A.weight"]}) is None
