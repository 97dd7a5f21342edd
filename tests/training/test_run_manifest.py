"""What a manifest claims of a run's bits, and what it refuses to."""

from collections.abc import Callable
from typing import Any

import pytest

from mltune_cli.recipe.schema import Recipe
from mltune_cli.training.checkpoint import Provenance
from mltune_cli.training.run_manifest import claims

SmokeRecipe = Callable[..., Recipe]
ADAPTER: dict[str, Any] = {}
FULL = {"adapter__method": "full"}
DIVIDED_BASE = {"model__sharding": "fsdp"}
DIVIDED_FULL = FULL | DIVIDED_BASE
COMPILED_ON_GPUS = {"model__device": "cuda", "model__compile": True}
FOUR_BITS = {"model__base_precision": "nf4", "model__device": "auto"}


@pytest.mark.parametrize(
    ("recipe", "counts", "is_repeatable", "is_free"),
    [
        (ADAPTER, (1,), True, True),
        (ADAPTER, (1, 2, 3), True, True),
        (DIVIDED_BASE, (2, 3), True, True),
        (FULL, (1, 2), True, True),
        (DIVIDED_FULL, (2,), True, False),
        (DIVIDED_FULL, (1, 2), False, False),
        (DIVIDED_FULL, (2, 4), False, False),
        (COMPILED_ON_GPUS, (2,), True, True),
        (COMPILED_ON_GPUS, (1, 2), True, True),
        (FOUR_BITS, (1,), True, False),
        (FOUR_BITS, (2,), False, False),
        # The steps that several took are not undone by going on with one.
        (FOUR_BITS, (1, 2), False, False),
    ],
)
def test_what_took_the_steps_decides_what_is_claimed(
    smoke_recipe: SmokeRecipe,
    recipe: dict[str, Any],
    counts: tuple[int, ...],
    is_repeatable: bool,
    is_free: bool,
) -> None:
    made = claims(smoke_recipe(**recipe), Provenance(("here",), counts))
    assert {claim.name: claim.holds for claim in made} == {
        "repeatable": is_repeatable,
        "any number of processes": is_free,
    }
    assert all(claim.reason for claim in made)


def test_the_refusal_names_the_numbers(smoke_recipe: SmokeRecipe) -> None:
    repeatable, _ = claims(smoke_recipe(**DIVIDED_FULL), Provenance(("here",), (1, 2, 4)))
    assert repeatable.reason.endswith("its steps were taken by 1, 2 and 4 of them")


def test_steps_in_two_environment_classes_are_not_claimed(smoke_recipe: SmokeRecipe) -> None:
    before = Provenance(("there",), (1,))
    repeatable, free = claims(smoke_recipe(), before.and_of(["here", "here"], 1))
    assert (repeatable.holds, free.holds) == (False, True)
    assert claims(smoke_recipe(), before.and_of(["there"], 2))[0].holds


def test_a_provenance_grows_and_is_sorted() -> None:
    assert Provenance().and_of(["b", "a"], 3).and_of(["a"], 2) == Provenance(("a", "b"), (2, 3))
