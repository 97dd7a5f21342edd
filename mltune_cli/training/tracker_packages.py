"""The trackers themselves, one class for each package, started by way of `accelerate.tracking`.

Each is kept to what the run tells it: no facts of the host, no code, no output, nothing fetched.
"""

import contextlib
import importlib
import io
import netrc
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Config = Mapping[str, str | int | float | bool]

_PROJECT = "mltune"
# How long a tracker may hold up the training when its server does not answer.
_START_SECONDS, _FINISH_SECONDS = 30, 300
# Each of these sends what Trackio is told to another machine, or fetches from one.
_TRACKIO_REMOTES = (
    "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_DATASET_ID",
    "TRACKIO_WEBHOOK_URL",
)  # fmt: skip


@contextlib.contextmanager
def environment_set(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for a while; None removes one."""
    before = {name: os.environ.get(name) for name in values}
    _put(values)
    try:
        yield
    finally:
        _put(before)


def _put(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _default_environment(values: Mapping[str, str]) -> None:
    """Set variables that the user has left open."""
    for name, value in values.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def _hooks_kept() -> Iterator[None]:
    """Undo what W&B does to the ways a process ends: exceptions here have one place to go."""
    exit_function, exception_hook = sys.exit, sys.excepthook
    try:
        yield
    finally:
        sys.exit, sys.excepthook = exit_function, exception_hook


def _own_folder(folder: Path, name: str) -> Path:
    """Make a tracker's folder, and find out whether it can be written.

    The packages differ in what they do about a folder that cannot be: Trackio warns and goes on,
    W&B moves to another one.

    Raises:
        OSError: it cannot.
    """
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=own):
        return own


class Tracker:
    """One of accelerate's trackers, started.

    Args:
        accelerated: the tracker.
        config: what the run is set to; None where `accelerated` knows it already.
    """

    def __init__(self, accelerated: Any, config: Config | None) -> None:
        self._accelerated = accelerated
        # accelerate would ask which process this is, but that is the caller's decision.
        accelerated.main_process_only = False
        try:
            with _hooks_kept():
                accelerated.start()
            if config is not None:
                accelerated.store_init_configuration(dict(config))
        except BaseException:
            self.abandon()
            raise

    def log(self, values: dict[str, float], step: int) -> None:
        """Pass the values on."""
        self._accelerated.log(values, step=step)

    def finish(self) -> None:
        """Write what is still held, and end."""
        self._end()
        self._release()

    def abandon(self) -> None:
        """End after a failure, as well as can be done."""
        with contextlib.suppress(Exception):
            self._end()
        with contextlib.suppress(Exception):
            self._release()

    def _end(self) -> None:
        self._accelerated.finish()

    def _release(self) -> None:
        """Give back what the package holds on to in this process."""


def _accelerated(class_name: str, /, *arguments: Any, **options: Any) -> Any:
    module = importlib.import_module("accelerate.tracking")
    return getattr(module, class_name)(*arguments, **options)


class _TensorBoard(Tracker):
    def __init__(self, folder: Path, _run_name: str, config: Config) -> None:
        # An empty name leaves out one more folder: the run is the one whose folder this is in.
        own = _own_folder(folder, "tensorboard")
        super().__init__(_accelerated("TensorBoardTracker", "", own), config)


class _WandB(Tracker):
    def __init__(self, folder: Path, run_name: str, config: Config) -> None:
        # Read while the package is imported, and by the process that it starts.
        _default_environment({"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"})
        base = Path(os.environ.get("WANDB_DIR") or folder)
        own = _own_folder(base, "wandb")
        self._wandb = importlib.import_module("wandb")
        options: dict[str, Any] = {"name": run_name, "dir": str(base)}
        default_url = self._wandb.Settings.model_fields["base_url"].default
        if not os.environ.get("WANDB_MODE") and not _has_wandb_login(default_url):
            options["mode"] = "offline"
        tracker = _accelerated(
            "WandBTracker",
            os.environ.get("WANDBPROJECT") or _PROJECT,
            settings=self._settings(),
            **options,
        )
        cache = os.environ.get("WANDB_CACHE_DIR") or str(own / "cache")
        # Its process logs there, by default below the user's home.
        with environment_set({"WANDB_CACHE_DIR": cache}):
            super().__init__(tracker, config)

    def _settings(self) -> Any:
        """Keep to what the run logs: no console, code, repository, packages or facts of the host.

        Those that begin with x_ come and go between versions, so each is set where it is known.
        """
        wanted: dict[str, Any] = {
            "console": "off",
            "save_code": False,
            "disable_code": True,
            "disable_git": True,
            "disable_job_creation": True,
            "host": "unknown",
            "username": "unknown",
            "program": _PROJECT,
            "use_dot_wandb": False,
            "init_timeout": _START_SECONDS,
            "finish_timeout": _FINISH_SECONDS,
            "finish_timeout_raises": True,
            "x_disable_meta": True,
            "x_disable_stats": True,
            "x_disable_machine_info": True,
            "x_save_requirements": False,
        }
        known = self._wandb.Settings.model_fields
        return self._wandb.Settings(
            **{name: value for name, value in wanted.items() if name in known}
        )

    def _release(self) -> None:
        # Its process leads a session of its own, so nobody else would end it, and it holds the
        # worker's output open.
        self._wandb.teardown()


def _has_wandb_login(default_url: str) -> bool:
    """Tell whether the user has given W&B a key, in any of the places where it looks for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    own_url = os.environ.get("WANDB_BASE_URL")
    # The host is W&B's old one in files written before its address changed.
    urls = [own_url] if own_url else [default_url, "https://api.wandb.ai"]
    try:
        entries = netrc.netrc(os.environ.get("NETRC") or Path.home() / ".netrc")
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return False
    return any(entries.authenticators(urlsplit(url).netloc) for url in urls)


class _MLflow(Tracker):
    def __init__(self, folder: Path, run_name: str, config: Config) -> None:
        _default_environment(
            {
                "MLFLOW_DISABLE_TELEMETRY": "true",
                # Seven tries of two minutes each, as it would, are too long to wait for a server.
                "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
                "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_START_SECONDS),
            }
        )
        # The program's path and the repository's address, which may hold a password.
        tags = {"mlflow.source.name": _PROJECT} | dict.fromkeys(
            ("mlflow.source.git.commit", "mlflow.source.git.branch", "mlflow.source.git.repoURL"),
            "",
        )
        self._is_local = not os.environ.get("MLFLOW_TRACKING_URI")
        if self._is_local:
            own = _own_folder(folder, "mlflow")
            tags["mlflow.user"] = "unknown"
            # The store of plain files is the one that needs no database package.
            _default_environment({"MLFLOW_ALLOW_FILE_STORE": "true"})
        self._mlflow = importlib.import_module("mlflow")
        tracker = _accelerated(
            "MLflowTracker", experiment_name=_PROJECT, run_name=run_name, tags=tags
        )
        if self._is_local:
            self._mlflow.set_tracking_uri(own.as_uri())
        # accelerate would leave a longer one out, and print all of it.
        longest = self._mlflow.utils.validation.MAX_PARAM_VAL_LENGTH
        super().__init__(tracker, {key: str(value)[:longest] for key, value in config.items()})

    def _release(self) -> None:
        if self._is_local:
            # It is an environment variable as well, and would pass for the user's.
            self._mlflow.set_tracking_uri(None)


class _Trackio(Tracker):
    def __init__(self, folder: Path, run_name: str, config: Config) -> None:
        _put(dict.fromkeys(_TRACKIO_REMOTES))
        own = os.environ.get("TRACKIO_DIR") or str(_own_folder(folder, "trackio"))
        with environment_set({"TRACKIO_DIR": own}):
            self._trackio = importlib.import_module("trackio")
        bound = self._trackio.TRACKIO_DIR
        if Path(bound) != Path(own):
            raise RuntimeError(f"in this process it writes into {bound}, as it did first")
        tracker = _accelerated(
            "TrackioTracker",
            _PROJECT,
            name=run_name,
            # accelerate's own way would add the name of an option to it.
            config=dict(config),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        with _hub_offline(), _quiet():
            super().__init__(tracker, None)

    def log(self, values: dict[str, float], step: int) -> None:
        super().log(values, step)
        self._require_success()

    def finish(self) -> None:
        super().finish()
        self._require_success()

    def _end(self) -> None:
        # Ends the run as accelerate does and forgets it, or it would be ended again at exit.
        with _quiet():
            self._trackio.finish()

    def _require_success(self) -> None:
        """Ask for the failures of its writing thread, which turns every exception into a warning.

        Raises:
            RuntimeError: there are some.
        """
        failures = getattr(self._accelerated.run, "_warned_failures", ())
        if failures:
            raise RuntimeError(f"it could not write ({', '.join(sorted(failures))})")


@contextlib.contextmanager
def _hub_offline() -> Iterator[None]:
    """Keep Trackio from asking the Hugging Face hub whose token this is."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """Keep Trackio's advertisement out of the run's output."""
    return contextlib.redirect_stdout(io.StringIO())


TRACKERS: dict[str, Callable[[Path, str, Config], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}
