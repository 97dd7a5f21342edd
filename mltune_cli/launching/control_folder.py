"""What the elastic launcher and its workers share: a private folder with four entries.

The elastic agent starts workers with neither pipes nor descriptors of ours, and starts new ones in
place of those that died. What a worker must know therefore lies in files, where any successor
finds it. Standard library only: workers read it before anything heavy is imported.
"""

from pathlib import Path

from mltune_cli.errors import ExitCode


class ControlFolder:
    """The launcher's and the workers' view of one folder.

    Attributes:
        job: file with the training job, as JSON.
        events: named pipe to the launcher; each event is one line.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.job = folder / "job.json"
        self.events = folder / "events"
        self._stop = folder / "stop"
        self._run_folder = folder / "run_folder"

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


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_suffix(".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _read(path: Path) -> str | None:
    try:
        return path.read_bytes().decode()  # every character as it is, line ends too
    except FileNotFoundError:
        return None
