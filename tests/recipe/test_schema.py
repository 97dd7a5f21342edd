"""The recipe as a value: frozen, strict, and digested by what decides bits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from mltune_cli.recipe.layers import flatten, known_keys
from mltune_cli.recipe.schema import Recipe

# Another valid value for every key whose change changes the bits of a run.
BIT_DECIDING: dict[str, Any] = {
    "model.dtype": "bfloat16",
    "model.base_precision": "nf4",
    "model.device": "cpu",
    "model.attention": "eager",
    "data.format": "text",
    "data.max_length": 100,
    "data.packing": True,
    "data.loss_on": "all",
    "data.chat_template_date": "2027-01-01",
    "adapter.method": "dora",
    "adapter.rank": 3,
    "adapter.alpha": 3,
    "adapter.dropout": 0.5,
    "adapter.target_modules": ["q_proj"],
    "adapter.compute_dtype": "model",
    "model.compile": True,
    "evaluate.early_stopping_patience": 3,
    "train.max_steps": 3,
    "train.epochs": 3.0,
    "train.micro_batch_size": 3,
    "train.micro_batches_per_step": 3,
    "train.learning_rate": 3e-3,
    "train.schedule": "cosine",
    "train.warmup_steps": 3,
    "train.weight_decay": 0.3,
    "train.max_grad_norm": 3.0,
    "train.adam_beta1": 0.3,
    "train.adam_beta2": 0.3,
    "train.adam_epsilon": 3e-3,
    "train.activation_checkpointing": True,
    "train.loss_kernel": "chunked",
    "reproducibility.seed": 3,
    "reproducibility.threads": 3,
}
# Names are replaced by content digests; cadences decide nothing.
OTHERS: dict[str, Any] = {
    "model.name_or_path": "other",
    "model.revision": "v2",
    "model.trust_remote_code": True,
    "model.sharding": "fsdp",
    "data.train": "other.jsonl",
    "data.validation": "other.jsonl",
    "data.revision": "v2",
    "data.subset": "main",
    "data.loader_workers": 2,
    "evaluate.every_steps": 3,
    "evaluate.keep_best": False,
    "evaluate.early_stopping_threshold": 0.5,
    "checkpoint.every_steps": 3,
    "checkpoint.keep": 3,
    "log.every_steps": "epoch",
    "log.trackers": ["tensorboard"],
    "output_dir": "elsewhere",
}


def test_every_key_is_either_bit_deciding_or_not() -> None:
    """A new key has to be put on one of the two sides here, with its reason in mind."""
    undecided = set(known_keys()) - set(BIT_DECIDING) - set(OTHERS)
    assert not undecided, f"decide whether these decide bits: {sorted(undecided)}"


@pytest.mark.parametrize("key", BIT_DECIDING)
def test_the_digest_changes_with_a_value_that_decides_bits(key: str) -> None:
    recipe = Recipe()
    other = recipe.with_values({key: BIT_DECIDING[key]})
    assert flatten(other.model_dump())[key] != flatten(recipe.model_dump())[key]
    assert other.bits_digest() != recipe.bits_digest()


@pytest.mark.parametrize("key", OTHERS)
def test_the_digest_does_not_change_with_names_and_cadences(key: str) -> None:
    recipe = Recipe()
    other = recipe.with_values({key: OTHERS[key]})
    assert other != recipe
    assert other.bits_digest() == recipe.bits_digest()


@pytest.mark.parametrize("key", ["evaluate.every_steps", "evaluate.early_stopping_threshold"])
def test_what_decides_when_training_ends_decides_bits(key: str) -> None:
    """With early stopping the cadence of evaluations is no longer free."""
    recipe = Recipe().with_values({"evaluate.early_stopping_patience": 2})
    assert recipe.with_values({key: 7}).bits_digest() != recipe.bits_digest()
    assert recipe.with_values({"evaluate.keep_best": False}).bits_digest() == recipe.bits_digest()


def test_the_digest_carries_its_algorithm() -> None:
    assert Recipe().bits_digest().startswith("sha256:")
    assert len(Recipe().bits_digest()) == len("sha256:") + 64


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe()
    with pytest.raises(ValidationError):
        recipe.train.max_steps = 5  # type: ignore[misc]
    with pytest.raises(ValidationError):
        recipe.output_dir = "x"  # type: ignore[misc]


def test_with_values_returns_a_checked_copy() -> None:
    recipe = Recipe()
    assert recipe.with_values({"train.max_steps": 5, "output_dir": "x"}).train.max_steps == 5
    assert recipe.train.max_steps is None
    with pytest.raises(ValidationError):
        recipe.with_values({"train.max_steps": 0})
    with pytest.raises(ValidationError):
        recipe.with_values({"train.no_such_key": 0})


def test_every_number_is_bounded_and_every_key_typed() -> None:
    """No number without a bound: a slip of ten digits is refused rather than trained on."""
    schema = Recipe.model_json_schema()
    seen = 0
    for section in schema["$defs"].values():
        for field in section["properties"].values():
            for choice in field.get("anyOf", [field]):
                if choice.get("type") in ("integer", "number"):
                    seen += 1
                    assert {"minimum", "exclusiveMinimum"} & set(choice), field
    assert seen >= 18
