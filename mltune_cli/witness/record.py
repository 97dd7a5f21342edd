"""What a witness writes down at every optimizer step. Standard library only."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Of the digests of a script's training: another number where an equal training gives others.
DIGESTS = 2

# In the order in which a step computes them: the first stage that differs is where runs parted.
STAGES = (
    "model",
    "batch",
    "rng",
    "rng_python",
    "rng_numpy",
    "loss",
    "buffers",
    "gradients",
    "clipped_gradients",
    "hyperparameters",
    "optimizer",
    "parameters",
)


@dataclass(frozen=True)
class WitnessRecord:
    """The digests of one step; step 0 is the state before the first.

    Attributes:
        step: optimizer step, counted from 1; 0 for the initial state.
        digests: stage name to 16 hexadecimal digits. `loss` holds the bits of the float itself.
        source: the optimizer, where a script may have several; empty in mltune's own runs.
        facts: what explains a difference and is none itself: the digests of rows, seeds that were
            set, digests of single tensors.
        after: of an initial state, how many steps other optimizers had taken by then.
    """

    step: int
    digests: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    after: int = 0

    @property
    def steps_taken(self) -> int:
        """How many steps the process had taken when this was its state."""
        return self.step or self.after

    @property
    def step_within(self) -> int:
        """The step in which it was written: the state before all steps belongs to none, 0."""
        return self.after + 1 if self.after else self.step

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        stages = {stage: self.digests[stage] for stage in STAGES if stage in self.digests}
        source = {"source": self.source} if self.source else {}
        after = {"after": self.after} if self.after else {}
        facts = {"facts": dict(self.facts)} if self.facts else {}
        return json.dumps(
            {"step": self.step, **after, **source, **stages, **facts}, separators=(",", ":")
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, object]) -> "WitnessRecord":
        """Read a record from parsed JSON.

        Raises:
            ValueError: a field is missing or of the wrong type.
        """
        step, after = (_count(name, fields.get(name, missing)) for name, missing in _COUNTS)
        source = fields.get("source", "")
        if not isinstance(source, str):
            raise ValueError(f"source is {source!r}")  # noqa: TRY004 - the same for every field
        facts = fields.get("facts", {})
        if not isinstance(facts, dict):
            raise ValueError(f"facts is {facts!r}")  # noqa: TRY004 - the same for every field
        digests = {}
        for name, value in fields.items():
            if name in ("step", "source", "facts", "after"):
                continue
            if name not in STAGES or not isinstance(value, str):
                raise ValueError(f"{name} is {value!r}")
            digests[name] = value
        return cls(step, digests, source, facts, after)


# With what stands for one that is not there: nothing can stand for the step.
_COUNTS = (("step", None), ("after", 0))


def _count(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is {value!r}")
    return value


def bytes_digest(data: bytes) -> str:
    """Return 16 hexadecimal digits for some bytes on the host."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def chained_digest(digests: Iterable[str]) -> str:
    """Return one digest for several in order."""
    return bytes_digest("\n".join(digests).encode())
