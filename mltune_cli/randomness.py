"""Seeds derived from the recipe's seed and the place where random numbers are needed."""

import hashlib


def derived_seed(seed: int, *place: str | int) -> int:
    """Return a 63-bit seed for one place, e.g. `derived_seed(0, "micro-batch", step, index)`.

    Places are independent of each other and of what was drawn before, so nothing has to be saved
    or restored.
    """
    text = "\0".join([str(seed), *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
