"""What a check is asked for besides its training, and what it is held against."""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mltune_cli.command_secrets import command_without_secrets
from mltune_cli.errors import UsageError
from mltune_cli.paths import is_folder, is_there, sight_problem
from mltune_cli.reproduction.golden import GoldenEntry, SubjectKind, require_recordable
from mltune_cli.reproduction.golden_source import read_source

# What is trained where no recipe is named.
_DEFAULT_RECIPE = "smoke"


@dataclass(frozen=True)
class CheckOptions:
    """The flags of a check.

    Attributes:
        run_count: how many runs are compared; 1 only with `against`.
        output: folder for the runs and the report; replaced if a check of ours wrote it.
        timeout_seconds: of the whole check; None waits for ever.
        variations: what `--vary` was given.
        explain: look for the operation and the cause where runs part.
        as_json: print the report as JSON instead of a tree.
        record: golden file to write the result into.
        against: golden file or run to hold the result against.
        allow_new_environment: without a golden for this environment the runs decide alone.
        junit: file for the report as JUnit XML, besides the one in the output folder.
    """

    run_count: int
    output: Path
    timeout_seconds: float | None = None
    variations: Sequence[str] = ()
    explain: bool = True
    as_json: bool = False
    record: Path | None = None
    against: Path | None = None
    allow_new_environment: bool = False
    junit: Path | None = None

    def require_consistent(self) -> None:
        """Refuse flags that contradict each other.

        Raises:
            UsageError: names them.
        """
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise UsageError("--timeout: must be more than 0 seconds")
        if self.record is not None and self.against is not None:
            raise UsageError("--record and --against exclude each other; drop one")
        if self.allow_new_environment and self.against is None:
            raise UsageError("--allow-new-environment: has no meaning without --against")
        if self.run_count == 1 and self.against is None:
            raise UsageError("--runs 1: there is nothing to compare with; pass --against, or 2")
        if self.run_count == 1 and self.variations:
            raise UsageError("--runs 1: --vary is about the runs after the first; drop one")


@dataclass(frozen=True)
class Reference:
    """What a check records, or is held against.

    Attributes:
        options: of the check.
        flags: that name the training, as a user types them.
        command: that follows them after `--`; None for a recipe.
        entries: of the golden.
    """

    options: CheckOptions
    flags: Sequence[str]
    command: Sequence[str] | None
    entries: Sequence[GoldenEntry] = ()

    @property
    def record_command(self) -> str:
        """What makes the result of this check the golden."""
        against = self.options.against
        is_file = against is not None and not is_folder(against)
        file = str(against) if is_file else "golden.json"
        command = ["--", *self.command] if self.command is not None else []
        return command_without_secrets(
            ["mltune", "repro-check", *self.flags, "--record", file, *command]
        )


def read_reference(
    options: CheckOptions, flags: Sequence[str], command: Sequence[str] | None
) -> Reference:
    """Read the golden that a check is held against, and see that it can write its own.

    Raises:
        UsageError: a file is no golden, is about another kind of training, or cannot be written.
    """
    kind: SubjectKind = "recipe" if command is None else "command"
    for flag, path in (("--junit", options.junit), ("--record", options.record)):
        if path is not None:
            require_place(flag, path)
    if options.record is not None:
        require_recordable(options.record, kind)
    entries = read_source(options.against) if options.against is not None else []
    other = next((entry for entry in entries if entry.kind != kind), None)
    if other is not None:
        named = "name its recipe with --config" if other.kind == "recipe" else "give it after --"
        raise UsageError(
            f"--against {options.against}: is about the {other.kind} {other.subject}; {named}"
        )
    is_file = options.against is not None and not is_folder(options.against)
    if is_file and kind == "recipe" and "--config" not in flags:
        # Without a recipe the smoke recipe would be trained, and called a change of another.
        subjects = {entry.subject for entry in entries}
        if subjects and _DEFAULT_RECIPE not in subjects:
            raise UsageError(
                f"--against {options.against}: is about the recipe {min(subjects)}; name it with "
                "--config"
            )
    return Reference(options, flags, command, entries)


def require_place(flag: str, path: Path) -> None:
    """Refuse a file that cannot be written, before anything expensive starts.

    Raises:
        UsageError: it is a folder, or its folder is missing or cannot be written.
    """
    if is_folder(path):
        raise UsageError(f"{flag} {path}: is a folder; name a file")
    # What a link leads to is written.
    place = Path(os.path.realpath(path))
    if problem := sight_problem(place.parent):
        raise UsageError(f"{flag} {path}: cannot be written: {problem}")
    if not is_folder(place.parent):
        raise UsageError(f"{flag} {path}: there is no folder {place.parent}; make it first")
    probe = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        probe.touch()
        probe.unlink()
        if is_there(path) and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be written: {error.strerror}") from None
