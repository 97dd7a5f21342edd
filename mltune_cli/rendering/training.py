"""A training run as it goes on: a progress bar in a terminal, plain lines elsewhere."""

from types import TracebackType
from typing import TYPE_CHECKING, Self

from mltune_cli.launching.events import Evaluated, Event, Finished, Notice, Started, StepDone
from mltune_cli.rendering.console import is_interactive, stderr, stdout

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class TrainingView:
    """Shows the events of one run. Use as a context manager, so that the bar is taken down."""

    def __init__(self) -> None:
        self._bar = _new_bar() if is_interactive() else None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._take_bar_down()

    def _take_bar_down(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: Event) -> None:
        """Show one event."""
        match event:
            case Notice():
                self.show_output(f"note: {event.message}")
            case Started():
                packs = f" in {event.units:,} packs" if event.units != event.rows else ""
                processes = f" on {event.processes} processes" if event.processes > 1 else ""
                self.show_output(
                    f"training {event.trained_parameters:,} of {event.parameters:,} parameters "
                    f"on {event.rows:,} rows{packs}, {event.total_steps} steps, "
                    f"{event.device} {event.dtype}{processes}, in {event.folder}"
                )
                if self._bar is not None:
                    self._task = self._bar.add_task("step", total=event.total_steps, detail="")
            case StepDone():
                self._show_step(event)
            case Evaluated():
                self.show_output(f"step {event.step}: held-out loss {event.loss:.4f}")
            case Finished():
                self._take_bar_down()  # the result is for stdout, which the bar knows nothing of
                stdout().print(
                    f"done: last loss {event.last_loss:.4f}, {event.trained}", markup=False
                )

    def show_output(self, line: str) -> None:
        """Show a line that the worker or one of its libraries printed."""
        console = self._bar.console if self._bar is not None else stderr()
        console.print(line, markup=False)

    def _show_step(self, event: StepDone) -> None:
        detail = (
            f"loss {event.loss:.4f}  {event.tokens_per_second:,.0f} tok/s  "
            f"{_duration(event.seconds_left)} left"
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=event.step, detail=detail)
        elif event.logged:
            self.show_output(f"step {event.step}/{event.total_steps}  {detail}")


def _new_bar() -> "Progress":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        console=stderr(),
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
