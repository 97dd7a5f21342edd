"""The run folder: its files, who may write into it, and its logs."""

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, TextIO

from mltune_cli.errors import NoVerdictError, UsageError
from mltune_cli.manifest import MANIFEST_FILE

TRAINING_LOG, WITNESS_LOG = "training_log.jsonl", "witness.jsonl"
EVALUATION_LOG, TIMINGS_LOG = "evaluation_log.jsonl", "timings.jsonl"
LAST_LOSS, CHECKPOINTS = "last_loss.txt", "checkpoints"
ADAPTER, MODEL, BEST, TRACKERS = "adapter", "model", "best", "trackers"
LOCK = ".lock"
_PROBE = ".mltune-probe-"
# What a kill in the first moment may leave: nothing of a run yet.
_PRELUDE = frozenset({LOCK, f"{MANIFEST_FILE}.part"})
RUN_ENTRIES = frozenset(
    {
        MANIFEST_FILE, TRAINING_LOG, WITNESS_LOG, EVALUATION_LOG, TIMINGS_LOG, LAST_LOSS,
        CHECKPOINTS, ADAPTER, MODEL, BEST, TRACKERS,
        f".{ADAPTER}.part", f".{MODEL}.part", f".{BEST}.part",
        *(f"{name.removesuffix('.jsonl')}.part" for name in (TRAINING_LOG, WITNESS_LOG,
          EVALUATION_LOG, TIMINGS_LOG)),
    }
) | _PRELUDE  # fmt: skip


def require_writable_target(folder: Path, overwrite: bool, resume: bool = False) -> None:
    """Refuse an output folder before anything expensive starts; nothing is changed.

    Args:
        folder: the run folder that is wanted.
        overwrite: whether an earlier run in it may be replaced.
        resume: whether an earlier run in it may be gone on with.

    Raises:
        UsageError: it is a file, it holds another run or something else, or cannot be written.
    """
    if _is_other_than_folder(folder):
        raise UsageError(f"{folder}: is a file, and a run needs a folder; choose another")
    entries = _entries(folder)
    if _PRELUDE.issuperset(entries):
        _require_writable(folder)
        return
    if MANIFEST_FILE not in entries:
        raise UsageError(
            f"{folder}: holds {entries[0]}, which is no run of mltune; choose an empty folder"
        )
    strange = [name for name in entries if name not in RUN_ENTRIES]
    if strange:
        raise UsageError(
            f"{folder}: holds a run and also {strange[0]}, which mltune did not write; "
            "move it away, or choose another folder"
        )
    if not overwrite and not resume:
        raise UsageError(
            f"{folder}: holds another run; pass --resume to go on with it, --overwrite to "
            "replace it, or choose another folder"
        )
    _require_writable(folder)


def _is_other_than_folder(path: Path) -> bool:
    try:
        return path.exists() and not path.is_dir()
    except OSError as error:  # such as a name too long for any file
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None


def _entries(folder: Path) -> list[str]:
    try:
        # A probe's folder stays behind where the probing process was killed.
        names = (path.name for path in folder.iterdir())
        return sorted(name for name in names if not name.startswith(_PROBE))
    except (FileNotFoundError, NotADirectoryError):
        return []  # below a file: `_require_writable` will say so
    except OSError as error:
        raise UsageError(f"{folder}: cannot be read: {error.strerror}") from None


def _require_writable(folder: Path) -> None:
    """Find the nearest folder that exists, and ask whether something can be made in it."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        Path(tempfile.mkdtemp(prefix=_PROBE, dir=existing)).rmdir()
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None


def claim_folder(folder: Path, overwrite: bool, resume: bool = False) -> "RunLock":
    """Make the run folder ours; called when recipe, data and model have been found good.

    It is empty afterwards, unless an earlier run in it is gone on with.

    Raises:
        UsageError: as `require_writable_target`, or another process is writing into it.
    """
    require_writable_target(folder, overwrite, resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock(folder)
        try:
            require_writable_target(folder, overwrite, resume)
            for name in _entries(folder):
                if name != LOCK and not resume:
                    remove(folder / name)
        except BaseException:
            lock.close()
            raise
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written: {error.strerror}") from None
    return lock


def remove(entry: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it."""
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink(missing_ok=True)


class RunLock:
    """Holds a run folder for this process.

    The kernel drops the lock when the process ends, however it ends: a stale lock cannot be.

    Raises:
        UsageError: another process holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._file = self._locked_file(folder)
        # A forked child, such as a process that loads data, would hold the lock while it lives.
        os.register_at_fork(after_in_child=self._file.close)
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def _locked_file(self, folder: Path) -> TextIO:
        while True:
            file = self._path.open("a+", encoding="ascii")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                file.close()
                raise UsageError(
                    f"{folder}: another run is writing into it (process {holder}); "
                    "wait for it, or choose another folder"
                ) from None
            # The holder before us may have removed the file between our opening and our locking.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    return file
            file.close()

    def close(self) -> None:
        """Let go of the folder before the process ends."""
        self._path.unlink(missing_ok=True)
        self._file.close()


def cut_log(path: Path, last_step: int) -> None:
    """Drop a log's lines of later steps, and a torn last line, before a run is gone on with."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            break
        if not line.endswith("\n") or step > last_step:
            break
        kept.append(line)
    draft = path.with_suffix(".part")
    draft.write_text("".join(kept), encoding="utf-8")
    draft.replace(path)


def claim_next_folder(base: Path, stem: str) -> Path:
    """Make and return the next free `<base>/<stem>-NNN`; two processes never get the same.

    Raises:
        UsageError: `base` cannot be written.
    """
    pattern = re.compile(re.escape(stem) + r"-(\d+)")
    try:
        base.mkdir(parents=True, exist_ok=True)
        while True:
            taken = [int(m[1]) for p in base.iterdir() if (m := pattern.fullmatch(p.name))]
            folder = base / f"{stem}-{max(taken, default=0) + 1:03d}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise UsageError(f"{base}: cannot be written: {error.strerror}") from None


class JsonLog:
    """A file of JSON lines, written through at once, so that a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: TextIO = path.open("a", encoding="utf-8", newline="\n")

    def write(self, record: dict[str, Any]) -> None:
        """Append one object.

        Raises:
            NoVerdictError: the disk is full or gone.
        """
        self.write_line(json.dumps(record, separators=(",", ":")))

    def write_line(self, line: str) -> None:
        """Append one line that is JSON already."""
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError as error:
            raise NoVerdictError(f"{self._path}: cannot be written: {error.strerror}") from None

    def flush_to_disk(self) -> None:
        """Wait until what was written is on the disk, not only in the system's memory."""
        os.fsync(self._stream.fileno())

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
