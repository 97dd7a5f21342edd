"""Calls that draw from Python's or NumPy's global generator, which no dispatcher sees."""

import functools
import random
import sys
from collections.abc import Callable
from typing import Any

from mltune_cli.witness.stages import random_states

_PYTHON = (
    "random", "uniform", "randint", "randrange", "choice", "choices", "sample", "shuffle", "gauss",
    "normalvariate", "getrandbits", "expovariate", "betavariate", "triangular",
)  # fmt: skip
_NUMPY = (
    "rand", "randn", "randint", "random", "random_sample", "uniform", "normal", "standard_normal",
    "choice", "shuffle", "permutation", "exponential", "binomial", "poisson", "beta", "gamma",
)  # fmt: skip

# Told the name of the call, and the digest of the generator's state before it.
OnCall = Callable[[str, str], None]


class RandomCalls:
    """Reports calls by their module's name, such as `random.shuffle()`, while it is installed.

    Functions that a script took out of their module before are not seen.
    """

    def __init__(self, on_call: OnCall) -> None:
        self._on_call = on_call
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Begin to watch."""
        self._watch_all(random, _PYTHON, "python.random", "rng_python")
        numpy: Any = sys.modules.get("numpy")
        if numpy is not None:
            self._watch_all(numpy.random, _NUMPY, "numpy.random", "rng_numpy")

    def remove(self) -> None:
        """Stop watching."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _watch_all(self, home: Any, names: tuple[str, ...], shown: str, stage: str) -> None:
        for name in names:
            original = getattr(home, name)
            watched = self._watched(original, f"{shown}.{name}", stage)
            setattr(home, name, watched)
            self._undo.append(functools.partial(setattr, home, name, original))

    def _watched(self, original: Any, shown: str, stage: str) -> Any:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            self._on_call(shown, random_states()[stage])
            return original(*args, **kwargs)

        return call
