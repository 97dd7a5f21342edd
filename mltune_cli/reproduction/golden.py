"""Goldens: what a training gave once, kept in a file for later runs to be held against.

A file is about one training. It holds one entry for each environment class that somebody recorded,
since another processor or another torch gives other bits and nobody is to blame.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from mltune_cli.errors import NoVerdictError, UsageError, is_machine_failure
from mltune_cli.paths import is_there
from mltune_cli.reproduction.kept_commands import kept_subject
from mltune_cli.witness.record import WitnessRecord

SubjectKind = Literal["recipe", "command"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GoldenEntry(_Frozen):
    """What one training gave in one environment class.

    Attributes:
        subject: the recipe's name, or the command without its secrets and without folders.
        environment: what the class is the digest of, flat.
        commit: of the folder that the check was started in; `+` at its end where it was dirty.
        recipe: the resolved recipe, flat, without what only names places.
        inputs: digests of model, tokenizer and data, by name.
        records: of each process that trains, every step's digests as the witness wrote them.
        digests: how a command's were computed; those of another number cannot be compared.
    """

    subject: str
    kind: SubjectKind
    environment_class: str
    environment: dict[str, str]
    mltune: str
    commit: str | None
    recipe: dict[str, Any]
    inputs: dict[str, str]
    last_loss: float | None
    records: dict[str, list[dict[str, Any]]]
    digests: int = 1

    @property
    def steps(self) -> int:
        """The last step of the training."""
        last = [int(record["step"]) for stream in self.records.values() for record in stream]
        return max(last, default=0)

    def witness(self) -> dict[str, list[WitnessRecord]]:
        """Return the records of each process.

        Raises:
            ValueError: one is none.
        """
        return {
            name: [WitnessRecord.from_fields(fields) for fields in stream]
            for name, stream in self.records.items()
        }


class Golden(_Frozen):
    """A golden file."""

    schema_name: Literal["mltune.golden/1"] = "mltune.golden/1"
    entries: list[GoldenEntry]

    def with_entry(self, entry: GoldenEntry) -> Golden:
        """Return the golden with an entry that replaces the one of its environment class."""
        others = [e for e in self.entries if e.environment_class != entry.environment_class]
        ordered = sorted([*others, entry], key=lambda e: e.environment_class)
        return Golden(entries=ordered)

    def to_json(self) -> str:
        """Return the file's text: a line for each step, so that a review shows which changed."""
        entries = ",\n".join(map(_entry_json, self.entries))
        return f'{{"schema_name": "{self.schema_name}",\n"entries": [\n{entries}\n]}}\n'


def _entry_json(entry: GoldenEntry) -> str:
    head = json.dumps(entry.model_dump(exclude={"records"}), indent=1, ensure_ascii=False)
    streams = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, stream)) + "\n]"
        for name, stream in entry.records.items()
    )
    return f'{head.removesuffix("}").rstrip()},\n "records": {{{streams}}}\n}}'


def read_golden(path: Path) -> Golden:
    """Read a golden file.

    Raises:
        UsageError: it is none, or it is damaged.
    """
    try:
        golden = Golden.model_validate_json(path.read_text(encoding="utf-8"))
        for entry in golden.entries:
            entry.witness()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such golden; --record {path} makes it") from None
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read: {problem}") from None
    except ValidationError as error:
        details = error.errors()[0]
        where = ".".join(map(str, details["loc"])) or "the file"
        raise UsageError(f"{path}: is no golden of mltune: {where}: {details['msg']}") from None
    except ValueError as error:
        raise UsageError(f"{path}: is damaged: a record's {error}") from None
    return Golden(entries=[_as_kept_now(entry) for entry in golden.entries])


def _as_kept_now(entry: GoldenEntry) -> GoldenEntry:
    if entry.kind == "recipe":
        return entry
    return entry.model_copy(update={"subject": kept_subject(entry.subject)})


def require_recordable(path: Path, kind: SubjectKind) -> None:
    """Refuse a file that holds something else than goldens of this kind of training.

    Raises:
        UsageError: says what it holds.
    """
    if not is_there(path):
        return
    held = {entry.kind for entry in read_golden(path).entries}
    if held - {kind}:
        raise UsageError(
            f"--record {path}: holds the golden of a {held.pop()}, not of a {kind}; "
            "choose another file"
        )


def record_golden(path: Path, entry: GoldenEntry) -> list[GoldenEntry]:
    """Write an entry into a golden file, whole or not at all; return the other classes' entries.

    A symbolic link stays one: what it leads to is written. Whoever records at the same time waits,
    so that no entry is lost.

    Raises:
        UsageError: the file is no golden, or cannot be written.
        NoVerdictError: the machine failed, such as a full disk.
    """
    place = Path(os.path.realpath(path))
    draft = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        with _claimed(place.parent):
            golden = read_golden(path) if is_there(path) else Golden(entries=[])
            written = golden.with_entry(entry)
            draft.write_text(written.to_json(), encoding="utf-8")
            draft.replace(place)
    except OSError as error:
        draft.unlink(missing_ok=True)
        kind = NoVerdictError if is_machine_failure(error) else UsageError
        raise kind(f"--record {path}: cannot be written: {error.strerror}") from None
    return [e for e in written.entries if e.environment_class != entry.environment_class]


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """Wait for whoever else is recording in the folder; no lock file stays behind."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
