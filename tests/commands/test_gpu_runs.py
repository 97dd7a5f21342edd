"""`mltune train` on GPUs: the same bytes again, on several of them, and after a resumption."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
several = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
REPEATED = ("witness.jsonl", "training_log.jsonl", "adapter/adapter_model.safetensors")
FAST = (
    "model.device=cuda", "model.dtype=bfloat16", "train.micro_batches_per_step=4",
    "train.max_steps=6", "train.warmup_steps=0", "evaluate.every_steps=3", "data.max_length=512",
    "checkpoint.every_steps=3",
)  # fmt: skip
KINDS = (
    ("adapter.dropout=0.0",), ("adapter.dropout=0.1",), ("data.packing=false",),
    ("model.base_precision=fp8",), ("train.activation_checkpointing=true",),
)  # fmt: skip


def trained(
    folder: Path, values: tuple[str, ...], *flags: str, cache: Path | None = None
) -> dict[str, bytes]:
    """Train, with compilers that know nothing yet unless there is a cache; return what repeats."""
    kept = cache or folder.with_name(f"{folder.name}-compiled")
    folders = {
        "TORCHINDUCTOR_CACHE_DIR": str(kept / "inductor"),
        "TRITON_CACHE_DIR": str(kept / "triton"),
    }
    command = [sys.executable, "-m", "mltune_cli", "train", "--output-dir", str(folder), *flags]
    for value in (*FAST, *values):
        command += ["--set", value]
    environment = os.environ | folders
    subprocess.run(command, check=True, capture_output=True, timeout=300, env=environment)
    return {name: (folder / name).read_bytes() for name in REPEATED}


@pytest.mark.parametrize("values", KINDS)
def test_again_and_from_a_checkpoint(tmp_path: Path, values: tuple[str, ...]) -> None:
    whole = trained(tmp_path / "whole", values)
    assert trained(tmp_path / "again", values) == whole
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step-000003")
    kept = tmp_path / "whole-compiled"
    rest = trained(tmp_path / "rest", values, "--resume-from", checkpoint, cache=kept)
    assert rest["adapter/adapter_model.safetensors"] == whole["adapter/adapter_model.safetensors"]


def test_what_another_training_left_in_the_compilers_caches(tmp_path: Path) -> None:
    """Its rows have other sizes, which decide how code is written that both could use."""
    values = ("data.packing=false", "data.max_length=256")
    alone = trained(tmp_path / "alone", values)
    other = ("data.packing=false", "data.max_length=32", "train.micro_batch_size=1")
    trained(tmp_path / "other", other, cache=tmp_path / "shared")
    assert trained(tmp_path / "after", values, cache=tmp_path / "shared") == alone


@several
@pytest.mark.parametrize("values", KINDS)
def test_on_two(tmp_path: Path, values: tuple[str, ...]) -> None:
    one = trained(tmp_path / "one", values)
    assert trained(tmp_path / "two", values, "--nproc-per-node", "2") == one
