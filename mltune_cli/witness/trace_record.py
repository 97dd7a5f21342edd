"""What the operation trace writes down about each call. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# Stands for the digest of memory that nothing had written: its bits mean nothing.
UNINITIALISED = "uninitialised"
# The last line of a trace that came to its end.
END = "end"


@dataclass(frozen=True)
class TraceRequest:
    """Which step is traced, and how.

    Attributes:
        step: optimizer step of the process, over all its optimizers; 0 is all that comes before
            the first step, from the import of torch on.
        executions: how often each operation is executed on the same inputs.
        keep_from: place of the first operation whose tensors are kept whole.
        keep_bytes: how much of them is kept.
    """

    step: int
    executions: int = 1
    keep_from: int = 0
    keep_bytes: int = 1 << 29

    def to_json(self) -> str:
        """Return the request as it travels in the environment."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TraceRequest:
        """Return what `to_json` was given.

        Raises:
            ValueError: the text is something else.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or not all(isinstance(v, int) for v in values.values()):
            raise ValueError(f"not a trace request: {text}")
        return cls(**values)


@dataclass(frozen=True)
class TracedTensor:
    """One tensor that an operation took or gave.

    Attributes:
        digest: 16 hexadecimal digits; `UNINITIALISED`, or empty where there is nothing to read, or
            nothing that must be alike.
        dtype: as torch spells it, without `torch.`.
        shape: sizes.
        made_by: place of the last operation that wrote its memory; -1 for what was there before
            the trace, and is digested as the state of training; None where none was seen.
        memory: number of its piece of memory, which its views share; None where none is known.
    """

    digest: str
    dtype: str
    shape: tuple[int, ...]
    made_by: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class TraceRecord:
    """One call of one operation.

    Attributes:
        operation: as torch's dispatcher calls it.
        phase: forward, backward, optimizer or elsewhere.
        scalars: the arguments that are no tensors, in a fixed spelling.
        inputs: tensors, in the order of the arguments; none for a mere view.
        outputs: tensors, those that were written in place at the end; none for a mere view.
        random_state: digest of the generator that it may draw from.
        module: path of the module that called it, or that belongs to the autograd node.
        node: the autograd node, in backward.
        frame: innermost line of the user's own code.
        library_frame: innermost line outside torch.
        unequal: for each further execution that gave something else: the output's place and its
            digest there.
    """

    operation: str
    phase: str
    scalars: str
    inputs: tuple[TracedTensor, ...] = ()
    outputs: tuple[TracedTensor, ...] = ()
    random_state: str | None = None
    module: str | None = None
    node: str | None = None
    frame: str | None = None
    library_frame: str | None = None
    unequal: tuple[tuple[int, str], ...] = ()

    def to_json(self) -> str:
        """Return the record as one line of JSON, without what is empty."""
        values = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> TraceRecord:
        """Return the record that a line of JSON holds.

        Raises:
            ValueError: a field is unknown, missing or of another kind.
        """
        known = {field.name for field in fields(cls)}
        if not known >= values.keys() or "operation" not in values:
            raise ValueError("not a record of an operation")
        plain = dict(values)
        try:
            for name in ("inputs", "outputs"):
                plain[name] = tuple(
                    TracedTensor(**{**one, "shape": tuple(one["shape"])})
                    for one in values.get(name, ())
                )
            plain["unequal"] = tuple((int(n), str(d)) for n, d in values.get("unequal", ()))
            return cls(**{"phase": "elsewhere", "scalars": "", **plain})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a record of an operation: {error}") from None
