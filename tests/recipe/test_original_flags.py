"""The original script's flags: both spellings, the keys they set, and contradictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mltune_cli.errors import UsageError
from mltune_cli.recipe.layers import Entry, known_keys
from mltune_cli.recipe.original_flags import entries_from_flags

FLAGS = {
    "model_name_or_path": ("model.name_or_path", "org/model"),
    "train_file": ("data.train", "/rows/a.jsonl"),
    "validation_file": ("data.validation", "/rows/v.jsonl"),
    "output_dir": ("output_dir", "/out/run"),
    "max_steps": ("train.max_steps", "7"),
    "per_device_train_batch_size": ("train.micro_batch_size", "3"),
    "seed": ("reproducibility.seed", "5"),
    "logging_strategy": ("log.every_steps", "epoch"),
    "logging_steps": ("log.every_steps", "4"),
}


def entries(**flags: Any) -> dict[str, Entry]:
    return entries_from_flags(
        logging_strategy=flags.pop("logging_strategy", None),
        logging_steps=flags.pop("logging_steps", None),
        **flags,
    )


def test_flags_that_are_not_given_set_nothing() -> None:
    assert entries(seed=None, max_steps=None) == {}
    assert entries(seed=0) == {"reproducibility.seed": Entry(0, "--seed")}


@pytest.mark.parametrize("flag", FLAGS)
def test_both_spellings_of_a_flag_set_its_key(flag: str, mltune: Any, tmp_path: Path) -> None:
    """With underscores and with hyphens, apart and with `=`, on the installed command."""
    key, value = FLAGS[flag]
    assert key in known_keys()
    underscored, hyphened = f"--{flag}", f"--{flag.replace('_', '-')}"
    first = mltune("train", "--dry-run", underscored, value, cwd=tmp_path)
    second = mltune("train", "--dry-run", f"{hyphened}={value}", cwd=tmp_path)
    assert (first.code, first.stderr) == (0, "")
    assert second == first
    lines = [line for line in first.stdout.splitlines() if line.endswith(f"# {underscored}")]
    assert any(
        line.split(":")[0].strip() == key.rpartition(".")[2] and value in line for line in lines
    )


@pytest.mark.parametrize(
    ("strategy", "steps", "expected", "origin"),
    [
        (None, 5, 5, "--logging_steps"),
        ("steps", None, 1, "--logging_strategy"),
        ("steps", 5, 5, "--logging_strategy"),
        ("epoch", None, "epoch", "--logging_strategy"),
        ("no", None, 0, "--logging_strategy"),
    ],
)
def test_logging_flags_become_one_cadence(
    strategy: str | None, steps: int | None, expected: int | str, origin: str
) -> None:
    assert entries(logging_strategy=strategy, logging_steps=steps) == {
        "log.every_steps": Entry(expected, origin)
    }


@pytest.mark.parametrize("strategy", ["epoch", "no"])
def test_a_number_of_steps_contradicts_another_strategy(strategy: str) -> None:
    with pytest.raises(UsageError) as caught:
        entries(logging_strategy=strategy, logging_steps=5)
    assert caught.value.message == (
        f"--logging_steps: has no meaning with --logging_strategy {strategy}; drop one"
    )


@pytest.mark.parametrize("strategy", ["step", "", "EPOCH", "0"])
def test_an_unknown_logging_strategy_is_refused(strategy: str) -> None:
    with pytest.raises(UsageError) as caught:
        entries(logging_strategy=strategy)
    assert caught.value.message == (
        f"--logging_strategy: must be steps, epoch or no, not {strategy!r}"
    )
