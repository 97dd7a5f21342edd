"""What is trained in a measurement: model, rows, tokens of a step, recipe; shared by benchmarks."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from documents import write_documents
from processes import settings

from mltune_cli.launching.environment import worker_environment
from mltune_cli.recipe.layers import load_recipe
from mltune_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Case:
    """One setting, and how many steps of it are counted.

    Attributes:
        folder: as `benchmarks/shapes.py` wrote it; the rows are written beside the model.
        steps: counted, of each variant.
        warm_up: steps before, of each variant.
        per_turn: steps that are timed together: the device is waited for between turns alone.
        tokens: that a row, or a pack, may have.
        micro_batch_size: rows, or packs, of a micro-batch.
        micro_batches: of a step.
        documents: how many there are to train on.
        median_words: half of the documents are shorter.
        spread: standard deviation of the natural logarithm of their lengths.
        values: further recipe values, as KEY=VALUE.
    """

    folder: Path
    steps: int
    warm_up: int
    per_turn: int
    tokens: int
    micro_batch_size: int
    micro_batches: int
    documents: int
    median_words: int
    spread: float = 0.8
    values: tuple[str, ...] = ()

    @property
    def turns(self) -> int:
        """How many turns the counted steps make."""
        return -(-self.steps // self.per_turn)

    def steps_of_turn(self, number: int) -> int:
        """Return the steps of a turn, counted from 0; the last may be shorter."""
        return min(self.per_turn, self.steps - number * self.per_turn)

    @property
    def rows(self) -> Path:
        """The documents."""
        name = f"documents-{self.documents}-{self.median_words}-{self.spread:g}.jsonl"
        return self.folder / name

    def write_rows(self) -> None:
        """Write the documents, where they are not there yet."""
        write_documents(self.rows, self.documents, self.median_words, self.spread)

    def with_value(self, value: str) -> "Case":
        """Return the case with one more recipe value."""
        return replace(self, values=(*self.values, value))

    def pairs(self, variants: int = 1) -> dict[str, str]:
        """Return the recipe as `--set` pairs, long enough for so many variants."""
        steps = (self.warm_up + self.steps) * max(1, variants)
        pairs = settings(self.folder, steps, self.tokens) | {
            "data.train": str(self.rows),
            "adapter.alpha": "32",
            "adapter.dropout": "0",
            "train.warmup_steps": "0",
            "train.micro_batch_size": str(self.micro_batch_size),
            "train.micro_batches_per_step": str(self.micro_batches),
        }
        return pairs | {key: value for key, _, value in (v.partition("=") for v in self.values)}

    def environment(self) -> dict[str, str]:
        """Return the environment that a worker of this recipe gets, with a cache of its own."""
        recipe = recipe_of(self.pairs())
        return worker_environment(recipe, os.environ) | {"MLTUNE_CACHE": str(self.cache)}

    @property
    def cache(self) -> Path:
        """Where tokenised rows are kept."""
        return self.folder / "cache"

    def arguments(self) -> list[str]:
        """Return the command line that `case_of` reads the same case from."""
        words = [str(self.folder)]
        for name in _NUMBERS:
            words += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        return words + [word for value in self.values for word in ("--set", value)]

    def facts(self) -> dict[str, Any]:
        """Return the case for a report, without the folder, which says nothing."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def recipe_of(pairs: Mapping[str, str]) -> Recipe:
    """Return the recipe that `mltune train` makes of the same `--set` pairs."""
    return load_recipe(None, {}, [f"{key}={value}" for key, value in pairs.items()]).recipe


_NUMBERS = ("steps", "warm_up", "per_turn", "tokens", "micro_batch_size", "micro_batches",
           "documents", "median_words", "spread")  # fmt: skip


def add_case_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a case."""
    add = parser.add_argument
    add("folder", type=Path, help="as benchmarks/shapes.py wrote it")
    add("--steps", type=_positive, default=30, help="that count, of each variant")
    add("--warm-up", type=int, default=10, help="steps before, of each variant")
    add("--per-turn", type=_positive, default=10, help="steps that are timed together")
    add("--tokens", type=_positive, default=2048, help="data.max_length")
    add("--micro-batch-size", type=_positive, default=8)
    add("--micro-batches", type=_positive, default=1, help="of a step")
    add("--documents", type=_positive, default=4000, help="rows to train on")
    # The tokenizer of the bundled model makes 2.8 tokens of a word, that of a model of these shapes
    # 1.3. So 125 words are the 350 tokens that a text of 270 words has there.
    add("--median-words", type=_positive, default=125, help="of a document")
    add("--spread", type=float, default=0.8, help="of the logarithm of their lengths")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a recipe value")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def case_of(arguments: argparse.Namespace) -> Case:
    """Return the case that a command line describes."""
    values: Sequence[str] = arguments.set
    for value in values:
        if "=" not in value:
            raise SystemExit(f"{value}: must be KEY=VALUE")
    numbers = {name: getattr(arguments, name) for name in _NUMBERS}
    return Case(folder=arguments.folder.absolute(), values=tuple(values), **numbers)
