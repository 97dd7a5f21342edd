"""The witness in your own code: digests of every optimizer step that a block of it takes.

    from mltune_cli.witness.api import witness

    with witness("witness-a"):
        train()

writes `witness-a/main.jsonl` (`rank-3.jsonl` in a process with a rank), one object for each step of
each optimizer. Two such files of equal trainings have the same bytes, but for generators that were
not seeded. For the HF Trainer there is `mltune_cli.witness.hf.WitnessCallback`.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mltune_cli.witness.observer import Observer


@contextlib.contextmanager
def witness(folder: str | os.PathLike[str], *, per_tensor: bool = False) -> Iterator[Observer]:
    """Watch every optimizer of this process while the block runs.

    Args:
        folder: where the file of JSON lines is made, at the first step; earlier ones stay, the new
            one gets a number.
        per_tensor: also write the digest of every single gradient, parameter and state tensor.

    Raises:
        OSError: the folder cannot be written; raised by the optimizer's step.
    """
    observer = Observer(Path(folder), per_tensor=per_tensor)
    observer.install()
    try:
        yield observer
    finally:
        observer.remove()
