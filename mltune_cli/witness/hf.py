"""The witness as a callback of the Hugging Face Trainer, and of the trainers of TRL."""

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mltune_cli.witness.observer import Observer


class WitnessCallback(TrainerCallback):
    """Watches every optimizer step between the beginning and the end of training.

    Args:
        folder: where the file of JSON lines is made, at the first step.
        per_tensor: also write the digest of every single gradient, parameter and state tensor.
    """

    def __init__(self, folder: str | os.PathLike[str], *, per_tensor: bool = False) -> None:
        self._folder = Path(folder)
        self._per_tensor = per_tensor
        self._observer: Observer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature is given
        """Begin to watch."""
        self._end()
        self._observer = Observer(self._folder, per_tensor=self._per_tensor)
        self._observer.install()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002 - the signature is given
        """Stop watching."""
        self._end()

    def _end(self) -> None:
        if self._observer is not None:
            self._observer.remove()
            self._observer = None
