"""The result of `mltune diff`: a tree of differences; what is equal is not in it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mltune_cli.errors import ExitCode

DIFF_SCHEMA = "mltune.diff/1"
NodeStatus = Literal["different", "only_in_a", "only_in_b"]


@dataclass(frozen=True)
class DiffNode:
    """One difference.

    Attributes:
        name: key, step or tensor.
        status: different, or present on one side alone.
        detail: how far apart, or how much below the node is equal.
        a: the value in the first run, as text.
        b: the value in the second run, as text.
        children: the differences below.
    """

    name: str
    status: NodeStatus
    detail: str | None = None
    a: str | None = None
    b: str | None = None
    children: tuple["DiffNode", ...] = ()


@dataclass(frozen=True)
class RunDiff:
    """Two runs compared.

    Attributes:
        verdict: about rows, steps and trained tensors; `no_verdict` when a run is not finished.
        reason: why there is no verdict.
        nodes: recipe, environment, data, steps, tensors, as far as they differ.
    """

    a: str
    b: str
    verdict: Literal["same", "different", "no_verdict"]
    reason: str | None
    nodes: tuple[DiffNode, ...]
    exit_code: ExitCode

    def to_json(self) -> dict[str, Any]:
        """Return the versioned JSON object."""
        fields = asdict(self)
        del fields["exit_code"]
        return {"schema_name": DIFF_SCHEMA, **fields}
