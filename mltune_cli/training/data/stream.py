"""Which rows stand in micro-batch i of step t: a pure function, with no iterator to lose."""

import functools
import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from mltune_cli.randomness import derived_seed

_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class BatchStream:
    """An endless stream of epochs, each a permutation of all units, cut into micro-batches.

    A step's micro-batches may reach over the end of an epoch: every step is full, and every unit
    is used exactly once in each epoch.

    Attributes:
        unit_count: units of the data set (rows, or packs of rows).
        micro_batch_size: units in one micro-batch.
        micro_batches_per_step: micro-batches in one step.
        seed: the recipe's seed.
        dataset_digest: content digest of the rows; another data set gets another order.
    """

    unit_count: int
    micro_batch_size: int
    micro_batches_per_step: int
    seed: int
    dataset_digest: str

    @property
    def units_per_step(self) -> int:
        """Units that one step sees."""
        return self.micro_batch_size * self.micro_batches_per_step

    def micro_batch(self, step: int, index: int) -> list[int]:
        """Return the units of micro-batch `index` (from 0) of `step` (from 1)."""
        first = (step - 1) * self.units_per_step + index * self.micro_batch_size
        return [self._unit_at(first + offset) for offset in range(self.micro_batch_size)]

    def epoch_of(self, step: int) -> float:
        """Return how many epochs have been seen when `step` is done."""
        return step * self.units_per_step / self.unit_count

    def ends_epoch(self, step: int) -> bool:
        """Tell whether the last unit of an epoch stands in `step`."""
        units = step * self.units_per_step
        return units // self.unit_count > (units - self.units_per_step) // self.unit_count

    def steps_for(self, epochs: float) -> int:
        """Return the least number of steps that sees `epochs` epochs."""
        # As it was written: 0.07 epochs of 100 units are 7, though the floats' product is more.
        units = Fraction(str(epochs)) * self.unit_count
        return max(1, math.ceil(units / self.units_per_step))

    def _unit_at(self, position: int) -> int:
        epoch, offset = divmod(position, self.unit_count)
        return int(
            _permutation(
                self.unit_count, derived_seed(self.seed, "order", self.dataset_digest, epoch)
            )[offset]
        )


@functools.lru_cache(maxsize=2)
def _permutation(count: int, key: int) -> npt.NDArray[np.int64]:
    """Return a permutation of `range(count)` that depends on `count` and `key` alone.

    Sorted by a 64-bit hash of the index (splitmix64), so neither a NumPy release nor a machine can
    change it. Source: G. L. Steele et al., "Fast splittable pseudorandom number generators", 2014.
    """
    with np.errstate(over="ignore"):
        hashed = np.arange(1, count + 1, dtype=np.uint64) * _INCREMENT + np.uint64(key)
        hashed = (hashed ^ (hashed >> np.uint64(30))) * _MULTIPLIER_1
        hashed = (hashed ^ (hashed >> np.uint64(27))) * _MULTIPLIER_2
        hashed ^= hashed >> np.uint64(31)
    return np.argsort(hashed, kind="stable")
