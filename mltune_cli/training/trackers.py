"""Experiment trackers beside the run's own logs, by way of `accelerate.tracking`.

A tracker watches. It decides nothing about the run: a package that is missing, or a tracker that
cannot be started, is said before the first step; one that fails later is dropped with a sentence,
and the training goes on.
"""

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mltune_cli.errors import RecipeValueError
from mltune_cli.training.tracker_packages import TRACKERS, Config, Tracker, environment_set

_KEY = "log.trackers"
# Name of the tracker, which is also the module's, to what pip knows it by.
_DISTRIBUTIONS = {
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow-skinny",
    "trackio": "trackio",
}
# What tells accelerate that it stands in a group of processes, and how to behave there.
_LAUNCHER_VARIABLES = re.compile(
    "ACCELERATE_.*|FORK_LAUNCHED|(LOCAL_)?RANK|(OMPI_COMM_|MV2_COMM_)?WORLD_SIZE|PMI_SIZE"
)
_SECRET_NAME = re.compile("TOKEN|SECRET|KEY|PASSW|CREDENTIAL")
_SHORTEST_SECRET = 8


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not there; nothing is imported.

    Args:
        names: of `log.trackers`.

    Raises:
        RecipeValueError: a package is not installed.
    """
    missing = [name for name in dict.fromkeys(names) if not _is_installed(name)]
    if not missing:
        return
    verb = "is" if len(missing) == 1 else "are"
    packages = " ".join(_DISTRIBUTIONS[name] for name in missing)
    raise RecipeValueError(
        _KEY,
        f"{' and '.join(missing)} {verb} not installed; install mltune from where it came, with "
        f"its extra trackers, or pip install {packages}",
    )


def _is_installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return False
    # W&B leaves a folder `wandb` where it runs. Without code in it, it passes for a package.
    return spec is not None and spec.origin is not None


class Trackers:
    """The trackers of a run, made and used by one thread of one of its processes.

    Nothing here talks to the run's other processes, and no setting of torch is touched.

    Args:
        names: which; those of `log.trackers`.
        folder: where they write, each below a folder of its own name, unless the user's
            environment sends one elsewhere (WANDB_DIR, MLFLOW_TRACKING_URI, TRACKIO_DIR).
        run_name: what they call the run.
        config: the recipe, by dotted keys.
        on_trouble: told in one sentence of each tracker that fails later on.

    Raises:
        RecipeValueError: a package is not installed, or a tracker cannot be started.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        run_name: str,
        config: Config,
        on_trouble: Callable[[str], None],
    ) -> None:
        require_trackers(names)
        self._on_trouble = on_trouble
        self._active: dict[str, Tracker] = {}
        if names:
            _let_accelerate_log()
        plain = {key: _plain(value) for key, value in config.items()}
        for name in dict.fromkeys(names):
            try:
                self._active[name] = TRACKERS[name](folder.absolute(), run_name, plain)
            except BaseException as error:
                for started in self._active.values():
                    started.abandon()
                if not isinstance(error, Exception):
                    raise
                problem = f"{name} could not be started: {_reason(error)}"
                raise RecipeValueError(_KEY, problem) from error

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Tell every tracker what was measured; one that fails is dropped.

        Args:
            values: by name.
            step: after which they were measured.
        """
        for name, tracker in list(self._active.items()):
            try:
                tracker.log(dict(values), step)
            except Exception as error:  # noqa: BLE001 - whatever it is, training goes on
                del self._active[name]
                tracker.abandon()
                self._on_trouble(
                    f"{_KEY}: {name} failed at step {step} and is told no more; the training "
                    f"goes on without it: {_reason(error)}"
                )

    def finish(self) -> None:
        """Let every tracker write what it still holds, and end it; safe to call twice."""
        while self._active:
            name, tracker = self._active.popitem()
            try:
                tracker.finish()
            except Exception as error:  # noqa: BLE001 - the run itself is whole
                tracker.abandon()
                self._on_trouble(
                    f"{_KEY}: {name} failed while it was ended, and may lack the last steps: "
                    f"{_reason(error)}"
                )


def _plain(value: object) -> str | int | float | bool:
    """Return a value that every tracker can hold: TensorBoard refuses all other types."""
    return value if isinstance(value, str | int | float | bool) else str(value)


def _reason(error: BaseException) -> str:
    """Return the first line of an error, without what a log must not hold."""
    lines = str(error).strip().splitlines()
    text = re.sub(r"://[^/\s@]+@", "://***@", lines[0]) if lines else type(error).__name__
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


def _let_accelerate_log() -> None:
    """Make the state without which accelerate's trackers cannot log a line of their own.

    Left to itself it reads the launcher's variables, and then joins a process group, or starts
    one, picks a GPU and sets the number of threads. Where they are hidden it finds a single
    process, does none of this, and asks nobody.
    """
    hidden = [name for name in os.environ if _LAUNCHER_VARIABLES.fullmatch(name)]
    with environment_set(dict.fromkeys(hidden)):
        importlib.import_module("accelerate.state").PartialState(cpu=True)
