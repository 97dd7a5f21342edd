"""Tokenizers, a private cache, and data files made from rows."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mltune_cli.bundled import TINY_MODEL, bundled_model
from mltune_cli.recipe.schema import DataSection
from mltune_cli.training.data.dataset import TokenisedDataset, prepare_dataset
from mltune_cli.training.data.sources import FileSource

# Read when the libraries are imported: nothing here may ask the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

Tokenizers = Callable[[str | None], PreTrainedTokenizerBase]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The bundled tokenizer, whose template marks assistant turns."""
    return AutoTokenizer.from_pretrained(bundled_model(TINY_MODEL), local_files_only=True)


@pytest.fixture(scope="session")
def tokenizer_with(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    """Load the bundled tokenizer with another chat template, or with none."""

    def load(template: str | None) -> PreTrainedTokenizerBase:
        folder = tmp_path_factory.mktemp("tokenizer")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bundled_model(TINY_MODEL) / name, folder)
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)

    return load


@pytest.fixture(scope="session")
def unmarked(tokenizer: Any, tokenizer_with: Tokenizers) -> PreTrainedTokenizerBase:
    """The bundled tokenizer without the marks in its template, the text left as it is."""
    template, count = re.subn(r"\{%-? (end)?generation -?%\}", "", tokenizer.chat_template)
    assert count == 2
    return tokenizer_with(template)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of tokenised data, empty at first."""
    monkeypatch.setenv("MLTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokenised"


@pytest.fixture
def prepared(
    cache: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> Callable[..., TokenisedDataset]:
    """Tokenise rows, given as objects, with any setting of the recipe's `data` section."""

    def prepare(rows: Sequence[Mapping[str, Any]], **settings: Any) -> TokenisedDataset:
        path = tmp_path / "prepared.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = FileSource(str(path), (path,))
        return prepare_dataset(source, DataSection(**settings), tokenizer, "tiny")

    return prepare
