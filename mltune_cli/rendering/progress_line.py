"""The line at a terminal's foot that says what is being done."""

from mltune_cli.rendering.console import is_interactive, stderr


class ProgressLine:
    """Says on stderr what is being done: in one line where somebody watches, else line by line."""

    def __init__(self) -> None:
        self._status = stderr().status("starting") if is_interactive() else None

    @property
    def is_live(self) -> bool:
        """Whether the line is drawn anew, so that saying much costs nobody anything."""
        return self._status is not None

    def start(self) -> None:
        """Begin to show progress."""
        if self._status is not None:
            self._status.start()

    def stop(self) -> None:
        """Take the progress line down."""
        if self._status is not None:
            self._status.stop()

    def show_progress(self, text: str) -> None:
        """Show what is being done."""
        if self._status is not None:
            self._status.update(text)
        else:
            stderr().print(text, markup=False)
