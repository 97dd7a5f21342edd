"""What the elastic launcher and its workers share: a private folder with five entries.

The elastic agent starts workers with neither pipes nor descriptors of ours, and starts new ones in
place of those that died. What a worker must know therefore lies in files, where any successor
finds it. Standard library only: workers read it before anything heavy is imported.
"""

from dataclasses import dataclass
from pathlib import Path

from mltune_cli.errors import ExitCode


@dataclass(frozen=True)
class Round:
    """One of the times that workers are started.

    Attributes:
        processes: of all machines.
        restarts: how often the agent of this machine has replaced dead workers before.
    """

    processes: int
    restarts: int

    def change_since(self, earlier: "Round") -> str:
        """Say why the workers of an earlier round were followed by those of this one.

        An agent starts all its workers again for one that died, here or elsewhere, which it counts,
        and for machines that join, which it does not count. It says neither to the workers.
        """
        if self.processes > earlier.processes:
            return "more machines joined"
        if self.processes < earlier.processes or self.restarts != earlier.restarts:
            return "a process died"
        return "processes went or came"


class ControlFolder:
    """The launcher's and the workers' view of one folder.

    Attributes:
        job: file with the training job, as JSON.
        events: named pipe to the launcher; each event is one line.
        logs: folder that the elastic agent fills when it starts workers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.job = folder / "job.json"
        self.events = folder / "events"
        self.logs = folder / "logs"
        self._stop = folder / "stop"
        self._run_folder = folder / "run_folder"
        self._round = folder / "round"

    @property
    def path(self) -> Path:
        """Where the folder is."""
        return self._folder

    def ask_to_stop(self, code: ExitCode) -> None:
        """Let all workers end after their step, the run with this code."""
        _write_whole(self._stop, str(int(code)))

    def stop_code(self) -> ExitCode | None:
        """Return what the run is to end with; None while nobody asked."""
        text = _read(self._stop)
        return ExitCode(int(text)) if text else None

    def remember_run_folder(self, folder: Path) -> None:
        """Let workers that are started later go on in the same run folder."""
        _write_whole(self._run_folder, str(folder))

    def run_folder(self) -> Path | None:
        """Return the run folder that earlier workers claimed; None for the first ones."""
        text = _read(self._run_folder)
        return Path(text) if text else None

    def begin_round(self, this: Round) -> Round | None:
        """Remember a start of workers; one of a machine's says it.

        Returns:
            The start before; None at the first.
        """
        text = _read(self._round)
        _write_whole(self._round, f"{this.processes} {this.restarts}")
        return Round(*map(int, text.split())) if text else None


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()  # every character as it is, line ends too
    except FileNotFoundError:
        return None
