"""What a check finds, and what a check is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from mltune_cli.diagnosis.subject import Subject

Severity = Literal["ok", "info", "warning", "error"]
Scope = Literal["everything", "scripts", "images"]
SEVERITIES: tuple[Severity, ...] = ("ok", "info", "warning", "error")


class Finding(BaseModel):
    """One thing that a check saw.

    Attributes:
        severity: `error` stops or breaks a run; `warning` may, or breaks equality of bits; `info`
            is worth knowing; `ok` is in order.
        seen: what was seen.
        why: why it matters; None where it is in order.
        remedy: what to do about it; None where there is nothing to be done.
        command: the shell command that does it, where one does.
        scope: whom it concerns: `scripts` is training code that is not mltune's own, which gets
            the environment as it is; `images` is `build-image`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    severity: Severity
    seen: str
    why: str | None = None
    remedy: str | None = None
    command: str | None = None
    scope: Scope = "everything"

    def with_texts(self, change: Callable[[str], str]) -> "Finding":
        """Return the finding with its sentences and its command changed."""
        names = ("seen", "why", "remedy", "command")
        texts = {name: getattr(self, name) for name in names}
        return self.model_copy(update={n: t and change(t) for n, t in texts.items()})


def in_order(seen: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(severity="ok", seen=seen)


def known(
    seen: str,
    why: str | None = None,
    remedy: str | None = None,
    *,
    command: str | None = None,
    scope: Scope = "everything",
) -> Finding:
    """Return a finding that is worth knowing, and no fault."""
    return Finding(severity="info", seen=seen, why=why, remedy=remedy, command=command, scope=scope)


def doubtful(
    seen: str, why: str, remedy: str, *, command: str | None = None, scope: Scope = "everything"
) -> Finding:
    """Return a finding that may break a run, or the equality of bits."""
    return Finding(
        severity="warning", seen=seen, why=why, remedy=remedy, command=command, scope=scope
    )


def broken(
    seen: str, why: str, remedy: str, *, command: str | None = None, scope: Scope = "everything"
) -> Finding:
    """Return a finding that will stop or break a run."""
    return Finding(
        severity="error", seen=seen, why=why, remedy=remedy, command=command, scope=scope
    )


def judged(
    is_error: bool,
    seen: str,
    why: str,
    remedy: str,
    *,
    command: str | None = None,
    scope: Scope = "everything",
) -> Finding:
    """Return a finding that stops this recipe's run, or else may stop another's."""
    make = broken if is_error else doubtful
    return make(seen, why, remedy, command=command, scope=scope)


@dataclass(frozen=True)
class Check:
    """One rule.

    Attributes:
        name: what `--only` takes.
        title: what it looks at, in a few words.
        look: returns what it sees; one finding at least, or none where it has nothing to look at.
        needs_torch: it is started when the process that asks torch has answered.
    """

    name: str
    title: str
    look: Callable[["Subject"], Sequence[Finding]]
    needs_torch: bool = False


def worst(severities: Sequence[Severity]) -> Severity:
    """Return the worst of several severities; `ok` of none."""
    return max(severities, key=SEVERITIES.index, default="ok")
