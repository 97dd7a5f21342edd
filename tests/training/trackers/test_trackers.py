"""Trackers, read back with the packages' own readers."""

import getpass
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from mltune_cli.errors import RecipeValueError
from mltune_cli.training.determinism import seed_all, settings
from mltune_cli.training.trackers import Trackers

pytestmark = [
    # The packages' own, as in the worker: they are for their authors.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
SECRET = "s3cr3tValueOfTheUser"
Series = dict[str, dict[int, float]]
Config = dict[str, Any]
# What the fixtures of `conftest.py` are.
Told = Callable[[str], None]
Start = Callable[..., Trackers]
LogRun = Callable[[Trackers], None]
Require = Callable[..., None]
Readers = dict[str, Callable[[Path], tuple[Series, Config]]]
Holds = Callable[[str, Path], None]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_can_be_read_back(
    tmp_path: Path, name: str, start: Start, log_run: LogRun, assert_holds_run: Holds
) -> None:
    folder = tmp_path / "run" / "trackers"
    log_run(start((name,), folder))
    assert [path.name for path in folder.iterdir()] == [name]
    assert list(Path.home().iterdir()) == []
    assert_holds_run(name, folder / name)


def test_no_trackers_write_nothing(
    tmp_path: Path, log_run: LogRun, never_trouble: Told, run_config: Config
) -> None:
    log_run(Trackers([], tmp_path / "trackers", "run-001", run_config, never_trouble))
    assert not (tmp_path / "trackers").exists()


def test_values_that_no_tracker_knows_become_text(
    tmp_path: Path, never_trouble: Told, require_installed: Require, readers: Readers
) -> None:
    require_installed("tensorboard")
    odd: dict[str, Any] = {"a": None, "b": ["x", "y"], "c": tmp_path}
    Trackers(["tensorboard"], tmp_path / "t", "run-001", odd, never_trouble).finish()
    _, config = readers["tensorboard"](tmp_path / "t" / "tensorboard")
    assert config == {"a": "None", "b": "['x', 'y']", "c": str(tmp_path)}


def small_training() -> bytes:
    """Some steps of a network, with subnormal numbers: a library can switch those off."""
    seed_all(7)
    model = torch.nn.Sequential(torch.nn.Linear(33, 65), torch.nn.GELU(), torch.nn.Linear(65, 1))
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(17, 33)).square().mean().backward()
        optimizer.step()
    subnormal = torch.tensor([1e-310, 3e-320], dtype=torch.float64) * 0.5
    assert subnormal.count_nonzero() == 2
    parts = [*model.parameters(), subnormal]
    return b"".join(part.detach().numpy().tobytes() for part in parts)


def process_state() -> dict[str, Any]:
    """All that a run relies on and that a library might take for itself."""
    return settings() | {
        "interop_threads": torch.get_num_interop_threads(),
        "default_dtype": torch.get_default_dtype(),
        "default_device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "group": torch.distributed.is_initialized(),
        "affinity": os.sched_getaffinity(0),
        "working_directory": os.getcwd(),  # noqa: PTH109 - as the process has it
        "streams": (sys.stdout, sys.stderr),
        "ways_out": (sys.exit, sys.excepthook, threading.excepthook),
        "signals": [
            signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        ],
        "threads_of": {
            name: value for name, value in os.environ.items()
            if name.startswith(("OMP_", "MKL_", "CUBLAS", "CUDA", "MASTER_", "TORCH_"))
        },
    }  # fmt: skip


def test_nothing_that_decides_bits_is_touched(tmp_path: Path, start: Start) -> None:
    state, numbers = process_state(), small_training()
    trackers = start(NAMES, tmp_path)
    assert process_state() == state
    assert small_training() == numbers
    trackers.log({"loss": 1.0}, 1)
    assert process_state() == state
    assert small_training() == numbers
    trackers.finish()
    assert process_state() == state
    assert small_training() == numbers
    assert not [child for child in psutil.Process().children() if "wandb" in child.name()]


def test_the_caller_decides_which_process_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Start,
    log_run: LogRun,
    require_installed: Require,
    assert_holds_run: Holds,
) -> None:
    """Somebody else may have told accelerate that this is the second process of two."""
    require_installed("tensorboard", "mlflow")
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    state = PartialState(cpu=True)
    monkeypatch.setattr(state, "distributed_type", DistributedType.MULTI_GPU)
    monkeypatch.setattr(state, "num_processes", 2)
    monkeypatch.setattr(state, "process_index", 1)
    log_run(start(("tensorboard", "mlflow"), tmp_path))
    assert_holds_run("tensorboard", tmp_path / "tensorboard")
    assert_holds_run("mlflow", tmp_path / "mlflow")


def test_no_secret_and_no_fact_of_the_host_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], start: Start, log_run: LogRun
) -> None:
    os.environ |= {
        "WANDB_API_KEY": (SECRET * 2)[:40],
        "WANDB_MODE": "offline",
        "HF_TOKEN": "hf_" + SECRET,
        "AWS_SECRET_ACCESS_KEY": SECRET,
    }
    folder = tmp_path / "trackers"
    log_run(start(NAMES, folder))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.relative_to(folder).parts[0] for path in files} == set(NAMES)
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    # W&B's facts of the host, lists of packages, copies of code and of output would be there.
    assert not [path for path in files if path.parent.name in ("files", "code")]
    tags = {path.name: path.read_text() for path in (folder / "mlflow").glob("*/*/tags/*")}
    assert tags["mlflow.user"] == "unknown" != getpass.getuser()
    assert tags["mlflow.source.name"] == "mltune"
    assert tags["mlflow.source.git.repoURL"] == ""
    printed = capfd.readouterr()
    assert printed.out == ""


@pytest.mark.parametrize(
    ("name", "variable"),
    [("wandb", "WANDB_DIR"), ("mlflow", "MLFLOW_TRACKING_URI"), ("trackio", "TRACKIO_DIR")],
)
def test_the_users_place_comes_first(
    tmp_path: Path, name: str, variable: str, start: Start, log_run: LogRun, assert_holds_run: Holds
) -> None:
    elsewhere = tmp_path / "elsewhere"
    os.environ[variable] = elsewhere.as_uri() if name == "mlflow" else str(elsewhere)
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    log_run(start((name,), tmp_path / "trackers"))
    assert not (tmp_path / "trackers").exists()
    assert_holds_run(name, elsewhere / "wandb" if name == "wandb" else elsewhere)
    assert os.environ[variable].endswith("elsewhere")


def test_a_place_of_ours_does_not_pass_for_the_users(
    tmp_path: Path, start: Start, log_run: LogRun, assert_holds_run: Holds
) -> None:
    for run in ("first", "second"):
        log_run(start(("mlflow",), tmp_path / run))
        assert_holds_run("mlflow", tmp_path / run / "mlflow")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_trackio_says_so_where_it_cannot_move(
    tmp_path: Path, start: Start, log_run: LogRun
) -> None:
    log_run(start(("trackio",), tmp_path / "first"))
    with pytest.raises(RecipeValueError, match=r"trackio could not be started: .*first/trackio"):
        start(("trackio",), tmp_path / "second")


@pytest.mark.parametrize(
    ("variables", "netrc", "is_offline"),
    [
        ({}, None, True),
        ({"WANDB_API_KEY": "a" * 40}, None, False),
        ({"WANDB_MODE": "online"}, None, False),
        ({"WANDB_MODE": ""}, None, True),
        ({}, "machine api.wandb.ai login user password " + "a" * 40, False),
        ({}, "machine example.org login user password " + "a" * 40, True),
        ({}, "machine", True),
        (
            {"WANDB_BASE_URL": "https://own.example.org"},
            "machine own.example.org login user password " + "a" * 40,
            False,
        ),
        (
            {"WANDB_BASE_URL": "https://own.example.org"},
            "machine api.wandb.ai login user password " + "a" * 40,
            True,
        ),
    ],
)
def test_wandb_is_offline_unless_the_user_has_a_key_or_a_say(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    netrc: str | None,
    is_offline: bool,
    start: Start,
    require_installed: Require,
) -> None:
    require_installed("wandb")
    from accelerate import tracking

    asked: list[dict[str, Any]] = []

    class Recorder:
        def __init__(self, project: str, **options: Any) -> None:
            asked.append(options)

        def start(self) -> None:
            """Accept everything."""

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            """Accept everything."""

        finish = start

    monkeypatch.setattr(tracking, "WandBTracker", Recorder)
    os.environ |= variables
    if netrc is not None:
        (Path.home() / ".netrc").write_text(netrc)
        (Path.home() / ".netrc").chmod(0o600)
    start(("wandb",), tmp_path).finish()
    (options,) = asked
    assert (options.get("mode") == "offline") == is_offline
    assert options["settings"].console == "off"


def test_a_long_value_is_cut_for_mlflow(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    never_trouble: Told,
    require_installed: Require,
    readers: Readers,
) -> None:
    require_installed("mlflow")
    config = {"data.chat_template": "x" * 9000}
    Trackers(["mlflow"], tmp_path, "run-001", config, never_trouble).finish()
    _, written = readers["mlflow"](tmp_path / "mlflow")
    assert set(written["data.chat_template"]) == {"x"}
    assert "xxx" not in capfd.readouterr().err
