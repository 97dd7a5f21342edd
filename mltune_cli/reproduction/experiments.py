"""Pairs of runs under conditions that both have, as many as it takes for chance to be no answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mltune_cli.reproduction.report import FirstDifference

# Runs a pair under conditions that both have; returns where they part, up to where others did.
TryPair = Callable[[Sequence[str], FirstDifference], FirstDifference | None]

# That pairs agree by chance, under a condition that has nothing to do with it, is as unlikely as
# this or less; where some pairs have agreed with no condition, each of several conditions could.
_LARGEST_CHANCE = 0.05
_LARGEST_CHANCE_OF_SOME = 0.02
_FEWEST_PAIRS = 3
# Each pair may take minutes; what parts so rarely is left unexplained rather than run for hours.
_MOST_PAIRS = 10


@dataclass
class PartingChance:
    """How often pairs of runs were seen to part, and to agree, with nothing to make them agree.

    With every probability of parting as likely as any other before the first pair, the one that
    the pairs leave is Beta(parted + 1, agreed + 1).
    """

    parted: int
    agreed: int

    def note(self, *, parted: int, agreed: int) -> None:
        """Add pairs that were run."""
        self.parted += parted
        self.agreed += agreed

    def of_agreeing(self, pairs: int) -> float:
        """Return how likely so many further pairs all agree by chance."""
        likely = 1.0
        for before in range(pairs):
            likely *= (self.agreed + 1 + before) / (self.parted + self.agreed + 2 + before)
        return likely

    def pairs_that_tell(self) -> int | None:
        """Return how many pairs must agree under a condition before it is blamed.

        None where more would be needed than are worth their time.
        """
        largest = _LARGEST_CHANCE_OF_SOME if self.agreed else _LARGEST_CHANCE
        for pairs in range(_FEWEST_PAIRS, _MOST_PAIRS + 1):
            if self.of_agreeing(pairs) <= largest:
                return pairs
        return None


@dataclass
class Experiments:
    """Runs pairs, and counts.

    Attributes:
        until: the difference up to whose step runs are compared.
        chance: of parting, where nothing makes the runs agree.
    """

    try_pair: TryPair
    until: FirstDifference
    chance: PartingChance

    def agree(self, *conditions: str) -> bool:
        """Tell whether two runs under the same conditions agree."""
        return self.try_pair(conditions, self.until) is None

    def agree_as_before(self) -> bool:
        """Tell whether two runs under no condition agree."""
        does_agree = self.agree()
        self.chance.note(parted=not does_agree, agreed=does_agree)
        return does_agree

    def agree_without_exception(self) -> tuple[int, bool]:
        """Run pairs under no condition until one parts, or until as many agree as tell.

        Returns:
            How many were run, and whether all agreed.
        """
        needed = self.chance.pairs_that_tell() or _MOST_PAIRS
        for pairs in range(1, needed + 1):
            if not self.agree():
                self.chance.note(parted=1, agreed=pairs - 1)
                return pairs, False
        return needed, True

    def cured_by(self, condition: str) -> tuple[bool, str]:
        """Tell whether runs agree under a condition and not without it, and what was seen.

        Afterwards one pair must part without the condition: what depends on how many runs there
        were before would look as if the condition had helped.
        """
        agreed = without = 0
        has_parted = False
        while (needed := self.chance.pairs_that_tell()) is not None:
            if agreed < needed:
                if not self.agree(condition):
                    self.chance.note(parted=1, agreed=agreed)
                    return False, "they part as before"
                agreed += 1
            elif has_parted:
                return True, f"they agree, in {agreed} of {agreed} pairs"
            elif without == agreed:
                return False, f"{agreed} pairs agree, and {without} without it as well"
            else:
                without += 1
                has_parted = not self.agree_as_before()
        if agreed == 0:
            return False, "nothing was tried: runs part too rarely to tell"
        return False, f"{agreed} pairs agree, which may be chance: runs part too rarely to tell"
