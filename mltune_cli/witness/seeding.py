"""Whether trained weights were drawn before anybody set a seed."""

import functools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

_DRAWING = (
    "uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_",
    "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "sparse_",
)  # fmt: skip
_FINGERPRINT_ELEMENTS = 16
_MOST_SEEDS = 8


class SeedWatch:
    """Notes the calls of `torch.manual_seed`, and what `torch.nn.init` draws before the first."""

    def __init__(self) -> None:
        self._seeds: deque[int] = deque(maxlen=_MOST_SEEDS)
        # By their values: what wraps a model may put other tensors in their place.
        self._drawn_unseeded: set[bytes] = set()
        self._first_seed = 0
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Begin to watch."""
        self._first_seed = torch.initial_seed()
        self._replace(torch, "manual_seed", self._watch_seed)
        self._replace(torch.random, "manual_seed", self._watch_seed)
        for home in (torch, torch.random):
            self._replace(home, "seed", self._watch_random_seed)
        for name in _DRAWING:
            self._replace(torch.nn.init, name, self._watch_draw)

    def remove(self) -> None:
        """Stop watching."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def facts(self, parameters: Iterable[torch.Tensor]) -> dict[str, Any]:
        """Return what was seen: the last seeds in order, and how many parameters none reaches."""
        unreached = sum(_fingerprint(p) in self._drawn_unseeded for p in parameters)
        return {"seeds": list(self._seeds), "drawn_before_seed": unreached}

    def _is_seeded(self) -> bool:
        """Tell whether a seed was set, by a call that was seen or by another way."""
        return bool(self._seeds) or torch.initial_seed() != self._first_seed

    def _replace(self, home: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        original = getattr(home, name)

        def undo() -> None:
            setattr(home, name, original)

        setattr(home, name, wrap(original))
        self._undo.append(undo)

    def _watch_seed(self, original: Any) -> Any:
        @functools.wraps(original)
        def manual_seed(seed: Any) -> Any:
            self._seeds.append(int(seed))
            return original(seed)

        return manual_seed

    def _watch_random_seed(self, original: Any) -> Any:
        @functools.wraps(original)
        def seed() -> Any:
            result = original()
            self._first_seed = torch.initial_seed()  # another one in each run: as good as none
            return result

        return seed

    def _watch_draw(self, original: Any) -> Any:
        @functools.wraps(original)
        def draw(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            result = original(tensor, *args, **kwargs)
            if kwargs.get("generator") is None and not self._is_seeded():
                known_by = _fingerprint(tensor)
                if known_by is not None:
                    self._drawn_unseeded.add(known_by)
            return result

        return draw


def _fingerprint(tensor: torch.Tensor) -> bytes | None:
    """Return what a drawn tensor is known by, also in another dtype and on another device.

    None where its values cannot be read: on the device `meta`, in parts on several machines, under
    `FakeTensorMode`, inside a `vmap`.
    """
    if tensor.device.type == "meta" or hasattr(tensor, "to_local"):
        return None
    try:
        with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
            few = tensor.detach().reshape(-1)[:_FINGERPRINT_ELEMENTS]
            if few.is_complex():
                few = torch.view_as_real(few.resolve_conj()).reshape(-1)
            values = few.to(torch.bfloat16).cpu().view(torch.int16).tolist()
    except Exception:  # noqa: BLE001 - see below
        # torch has an error of its own for each kind of tensor that shows no values, and this
        # stands in the middle of the script's own call.
        return None
    return f"{tensor.numel()} {values}".encode()
