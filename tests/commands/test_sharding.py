"""A model that is divided over processes: the same bits, or no claim."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Mltune = Callable[..., Any]
SETTINGS = (
    "train.max_steps=6", "train.warmup_steps=0", "adapter.method=dora", "adapter.dropout=0.1",
    "evaluate.every_steps=3", "checkpoint.every_steps=2",
)  # fmt: skip
RECIPE = tuple(part for pair in SETTINGS for part in ("--set", pair))
REPEATED = (
    "witness.jsonl", "training_log.jsonl", "evaluation_log.jsonl", "last_loss.txt",
    "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/metadata.json",
    "best/adapter_model.safetensors", "best/metadata.json",
)  # fmt: skip


@pytest.fixture(scope="session")
def alone(mltune: Mltune, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that one undisturbed process computed."""
    folder = tmp_path_factory.mktemp("alone")
    result = mltune("train", *RECIPE, "--output-dir", "run", cwd=folder)
    assert result.code == 0, result.stderr
    return folder / "run"


def different(a: Path, b: Path) -> list[str]:
    """The repeated files whose bytes differ."""
    return [name for name in REPEATED if (a / name).read_bytes() != (b / name).read_bytes()]


def manifest(run: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return fields


@pytest.mark.parametrize("count", [2, 3])
def test_a_divided_base_gives_the_same_bytes(
    mltune: Mltune, alone: Path, tmp_path: Path, count: int
) -> None:
    arguments = ("--nproc-per-node", str(count), "--set", "model.sharding=fsdp")
    result = mltune("train", *RECIPE, *arguments, "--output-dir", "run", cwd=tmp_path)
    assert result.code == 0, result.stderr
    assert different(alone, tmp_path / "run") == []


def test_sharded_full_fine_tuning_refuses_the_claim(mltune: Mltune, tmp_path: Path) -> None:
    arguments = (
        *RECIPE, "--set", "adapter.method=full", "--set", "train.learning_rate=1e-4",
        "--set", "train.max_steps=2", "--set", "adapter.dropout=0.0",
    )  # fmt: skip
    results = {}
    for name, extra in (
        ("one", ()),
        ("two", ("--nproc-per-node", "2")),
        ("sharded", ("--nproc-per-node", "2", "--set", "model.sharding=fsdp")),
    ):
        result = mltune("train", *arguments, *extra, "--output-dir", name, cwd=tmp_path)
        assert result.code == 0, result.stderr
        results[name] = (tmp_path / name / "model" / "model.safetensors").read_bytes()
    assert results["one"] == results["two"]
    assert len(results["sharded"]) == len(results["one"])
    claims = {claim["name"]: claim["holds"] for claim in manifest(tmp_path / "sharded")["claims"]}
    assert claims == {"repeatable": True, "any number of processes": False}
    claims = {claim["name"]: claim["holds"] for claim in manifest(tmp_path / "two")["claims"]}
    assert claims == {"repeatable": True, "any number of processes": True}
