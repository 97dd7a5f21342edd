"""Changes of a recipe that must change no bit of mltune's own training, each with its control.

Rows 27 and 29 of the catalogue name their tests in `tests/training/`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Train = Callable[..., dict[str, bytes]]
FILES = ("adapter/adapter_model.safetensors", "witness.jsonl")


@pytest.fixture
def trained(mltune: Any, short: tuple[str, ...], tmp_path: Path) -> Train:
    """Train the smoke recipe with values replaced, and return what must repeat."""

    def train(name: str, *values: str) -> dict[str, bytes]:
        settings = [part for value in values for part in ("--set", value)]
        result = mltune("train", *short, *settings, "--output-dir", name, cwd=tmp_path)
        assert result.code == 0, result.stderr
        return {file: (tmp_path / name / file).read_bytes() for file in FILES}

    return train


def test_activation_checkpointing_draws_the_same_dropout_masks(trained: Train) -> None:
    """Row 26: backward computes the forward pass again, and must see the masks that it saw."""
    plain = trained("plain", "adapter.dropout=0.4")
    assert trained("again", "adapter.dropout=0.4", "train.activation_checkpointing=true") == plain
    # The control: another dropout is another training, so the masks count.
    assert trained("other", "adapter.dropout=0.3") != plain


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
def test_loader_workers_decide_nothing(trained: Train, workers: int) -> None:
    """Rows 2 and 3: what a row becomes depends on the row, and not on who loads it."""
    assert trained("many", f"data.loader_workers={workers}") == trained("none")
