"""Chance is no cause: as many pairs are run as it takes to tell the two apart."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltune_cli.reproduction.experiments import Experiments, PartingChance
from mltune_cli.reproduction.report import FirstDifference

CONDITIONS = ("hash-seed=0", "seeds=0", "clock", "threads=1", "deterministic")


class Coin:
    """Pairs part by chance, and never under the condition that is the cure."""

    def __init__(self, parting: float, seed: int, cure: str = "none") -> None:
        self.parting = parting
        self.random = random.Random(seed)
        self.cure = cure
        self.pairs = 0

    def __call__(self, conditions: Sequence[str], last_step: int) -> FirstDifference | None:
        self.pairs += 1
        if self.cure in conditions or self.random.random() >= self.parting:
            return None
        return FirstDifference(
            step=last_step, stage="loss", stages=["loss"], runs=(1, 2), values=("a", "b"),
            process="main",
        )  # fmt: skip


def blamed(coin: Coin) -> str | None:
    """Return what is blamed for a difference that was seen once, and whose runs were traced."""
    parts_again = coin((), 3) is not None
    experiments = Experiments(
        coin, 3, PartingChance(parted=1 + parts_again, agreed=not parts_again)
    )
    if not parts_again and experiments.agree_as_before():
        return None
    return next((one for one in CONDITIONS if experiments.cured_by(one)[0]), None)


@pytest.mark.parametrize(
    ("parting", "most"), [(0.25, 0.1), (0.5, 0.1), (0.75, 0.05), (0.9, 0.01), (1.0, 0.0)]
)
def test_a_coin_is_seldom_blamed_on_anything(parting: float, most: float) -> None:
    coins = 1000
    found = sum(blamed(Coin(parting, seed)) is not None for seed in range(coins))
    assert found <= most * coins


@pytest.mark.parametrize("cure", CONDITIONS)
def test_a_cure_is_found(cure: str) -> None:
    for parting, fewest in ((1.0, 200), (0.9, 190)):
        coins = [Coin(parting, seed, cure) for seed in range(200)]
        assert sum(blamed(coin) == cure for coin in coins) >= fewest
    steady = Coin(1.0, 0, cure)
    blamed(steady)
    # The traced pair, each condition before, three that agree and one that parts without.
    assert steady.pairs == 1 + CONDITIONS.index(cure) + 4


@pytest.mark.parametrize(("parted", "needed"), [(1, 5), (2, 3), (9, 3)])
def test_all_pairs_agree_or_one_is_an_exception(parted: int, needed: int) -> None:
    chance = PartingChance(parted, agreed=0)
    assert Experiments(Coin(0.0, 0), 3, chance).agree_without_exception() == (needed, True)
    assert chance == PartingChance(parted, 0)
    fickle = Coin(0.5, 1)
    pairs, do_agree = Experiments(fickle, 3, chance).agree_without_exception()
    assert not do_agree
    assert pairs == fickle.pairs
    assert chance == PartingChance(parted + 1, pairs - 1)


def test_what_parts_too_rarely_is_left_unexplained() -> None:
    coin = Coin(0.0, 0)
    experiments = Experiments(coin, 3, PartingChance(parted=1, agreed=8))
    is_cure, seen = experiments.cured_by("clock")
    assert not is_cure
    assert "too rarely to tell" in seen
    assert coin.pairs == 0


@given(parted=st.integers(1, 8), agreed=st.integers(0, 8), pairs=st.integers(1, 12))
def test_the_chance_of_agreeing_is_the_betas(parted: int, agreed: int, pairs: int) -> None:
    def log_beta(a: int, b: int) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    chance = PartingChance(parted, agreed)
    exact = math.exp(log_beta(parted + 1, agreed + 1 + pairs) - log_beta(parted + 1, agreed + 1))
    assert chance.of_agreeing(pairs) == pytest.approx(exact)
    needed = chance.pairs_that_tell()
    assert needed is None or chance.of_agreeing(needed) <= 0.05
