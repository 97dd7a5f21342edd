"""Trackers, read back with the packages' own readers."""

import getpass
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import mltune_cli
from mltune_cli.errors import RecipeValueError
from mltune_cli.training.determinism import seed_all, settings
from mltune_cli.training.trackers import Trackers, require_trackers

pytestmark = [
    # The packages' own, as in the worker: they are for their authors.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
NAMES = ("tensorboard", "wandb", "mlflow", "trackio")
CONFIG = {
    "train.learning_rate": 1e-4,
    "train.max_steps": 3,
    "data.packing": True,
    "model.name_or_path": "tiny",
    "adapter.targets": "q_proj, v_proj",
}
LOSSES = {1: 3.0, 2: 2.5, 3: 2.25}
SECRET = "s3cr3tValueOfTheUser"

Series = dict[str, dict[int, float]]


@pytest.fixture(autouse=True)
def _clean_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Start without settings or logins of the user's, and leave nothing to the next test."""
    before = dict(os.environ)
    for name in before:
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_", "NETRC", "HF_TOKEN")):
            del os.environ[name]
    home = tmp_path / "home"
    home.mkdir()
    os.environ["HOME"] = str(home)
    # Trackio keeps the folder that it was first imported with, which a worker does once.
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[name]
    os.environ.clear()
    os.environ.update(before)


def require_installed(*names: str) -> None:
    """Skip where the optional extra is left out; importing a package here would settle it."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: it comes with mltune's extra trackers")


def never_trouble(sentence: str) -> None:
    raise AssertionError(sentence)


def start(
    names: tuple[str, ...], folder: Path, on_trouble: Callable[[str], None] = never_trouble
) -> Trackers:
    require_installed(*names)
    return Trackers(names, folder, "run-001", CONFIG, on_trouble)


def log_run(trackers: Trackers) -> None:
    """Log as the loop does: each step, and a held-out loss after the last."""
    for step, loss in LOSSES.items():
        trackers.log({"loss": loss, "learning_rate": 1e-4 / step}, step)
    trackers.log({"validation_loss": 2.125}, 3)
    trackers.finish()


EXPECTED: Series = {
    "loss": LOSSES,
    "learning_rate": {step: 1e-4 / step for step in LOSSES},
    "validation_loss": {3: 2.125},
}


def read_tensorboard(folder: Path) -> tuple[Series, dict[str, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    events = EventAccumulator(str(folder)).Reload()
    series = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    # The hyperparameters are written as a run of their own, in a folder below.
    (below,) = {path.parent for path in folder.glob("*/events.out.tfevents.*")}
    content = EventAccumulator(str(below)).Reload().PluginTagToContent("hparams")
    start_info = metadata.parse_session_start_info_plugin_data(
        content[metadata.SESSION_START_INFO_TAG]
    )
    config = {
        key: getattr(value, value.WhichOneof("kind")) for key, value in start_info.hparams.items()
    }
    return series, config


def read_mlflow(folder: Path) -> tuple[Series, dict[str, Any]]:
    from mlflow import MlflowClient

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # asked of every reader as well
    client = MlflowClient(tracking_uri=folder.as_uri())
    experiment = client.get_experiment_by_name("mltune")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run-001"
    assert run.info.status == "FINISHED"
    series = {
        name: {
            metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)
        }
        for name in run.data.metrics
    }
    return series, dict(run.data.params)


def wandb_records(path: Path) -> Iterator[Any]:
    """Parse a .wandb file: a header of seven bytes, then a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, pending = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        if kind == 0:
            break
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield Record.FromString(pending)
            pending = b""


def read_wandb(folder: Path) -> tuple[Series, dict[str, Any]]:
    (path,) = folder.glob("offline-run-*/run-*.wandb")
    series: Series = {}
    config = {}
    for record in wandb_records(path):
        if record.HasField("run"):
            assert (record.run.project, record.run.display_name) == ("mltune", "run-001")
        for update in record.config.update:
            config[update.key or ".".join(update.nested_key)] = json.loads(update.value_json)
        items = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for key, value in items.items():
            if not key.startswith("_"):
                series.setdefault(key, {})[record.history.step.num or items["_step"]] = value
    return series, config


def read_trackio(folder: Path) -> tuple[Series, dict[str, Any]]:
    connection = sqlite3.connect(folder / "mltune.db")
    try:
        series: Series = {}
        rows = connection.execute("select run_name, step, metrics from metrics order by id")
        for run_name, step, metrics in rows:
            assert run_name == "run-001"
            for key, value in json.loads(metrics).items():
                series.setdefault(key, {})[step] = value
        ((config,),) = connection.execute("select config from configs")
    finally:
        connection.close()
    return series, {k: v for k, v in json.loads(config).items() if not k.startswith("_")}


READERS: dict[str, Callable[[Path], tuple[Series, dict[str, Any]]]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
    "trackio": read_trackio,
}


def assert_holds_run(name: str, folder: Path) -> None:
    series, config = READERS[name](folder)
    assert series.keys() == EXPECTED.keys()
    for key, values in EXPECTED.items():
        # TensorBoard keeps 32 bits of each.
        assert series[key] == pytest.approx(values, rel=1e-6)
    assert config.keys() >= CONFIG.keys()
    assert float(config["train.learning_rate"]) == CONFIG["train.learning_rate"]
    # TensorBoard's way into torch takes True for a number.
    assert str(config["data.packing"]) == ("1.0" if name == "tensorboard" else "True")
    assert config["adapter.targets"] == "q_proj, v_proj"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_logged_can_be_read_back(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run" / "trackers"
    log_run(start((name,), folder))
    assert [path.name for path in folder.iterdir()] == [name]
    assert list(Path.home().iterdir()) == []
    assert_holds_run(name, folder / name)


def test_no_trackers_write_nothing(tmp_path: Path) -> None:
    log_run(Trackers([], tmp_path / "trackers", "run-001", CONFIG, never_trouble))
    assert not (tmp_path / "trackers").exists()


def test_values_that_no_tracker_knows_become_text(tmp_path: Path) -> None:
    require_installed("tensorboard")
    odd: dict[str, Any] = {"a": None, "b": ["x", "y"], "c": tmp_path}
    Trackers(["tensorboard"], tmp_path / "t", "run-001", odd, never_trouble).finish()
    _, config = read_tensorboard(tmp_path / "t" / "tensorboard")
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


def test_nothing_that_decides_bits_is_touched(tmp_path: Path) -> None:
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
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
def test_the_users_place_comes_first(tmp_path: Path, name: str, variable: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    os.environ[variable] = elsewhere.as_uri() if name == "mlflow" else str(elsewhere)
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    log_run(start((name,), tmp_path / "trackers"))
    assert not (tmp_path / "trackers").exists()
    assert_holds_run(name, elsewhere / "wandb" if name == "wandb" else elsewhere)
    assert os.environ[variable].endswith("elsewhere")


def test_a_place_of_ours_does_not_pass_for_the_users(tmp_path: Path) -> None:
    for run in ("first", "second"):
        log_run(start(("mlflow",), tmp_path / run))
        assert_holds_run("mlflow", tmp_path / run / "mlflow")
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_trackio_says_so_where_it_cannot_move(tmp_path: Path) -> None:
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


def child_environment(**variables: str) -> dict[str, str]:
    return {**os.environ, **variables, "PYTHONPATH": str(Path(mltune_cli.__file__).parents[1])}


def test_packages_that_are_missing_are_named(tmp_path: Path) -> None:
    """Without site-packages nothing is installed; a folder that W&B left is no package."""
    (tmp_path / "wandb").mkdir()
    program = """
        import sys
        from mltune_cli.errors import RecipeValueError
        from mltune_cli.training.trackers import require_trackers
        for names in [["wandb"], ["tensorboard", "wandb", "mlflow", "trackio"]]:
            try:
                require_trackers(names)
            except RecipeValueError as error:
                print(error.message)
        require_trackers([])
    """
    finished = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    advice = (
        "install mltune with its extra trackers (pip install 'mltune[trackers]'), or pip install"
    )
    every_name = "tensorboard and wandb and mlflow and trackio"
    every_package = "tensorboard wandb mlflow-skinny trackio"
    assert finished.stdout.splitlines() == [
        f"log.trackers: wandb is not installed; {advice} wandb",
        f"log.trackers: {every_name} are not installed; {advice} {every_package}",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RecipeValueError, match=rf"^log\.trackers: {name} is not installed") as seen:
        Trackers([name], tmp_path / "t", "run-001", CONFIG, never_trouble)
    assert seen.value.key == "log.trackers"
    assert not (tmp_path / "t").exists()


def test_installed_packages_are_accepted() -> None:
    require_installed(*NAMES)
    require_trackers(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_cannot_be_made_stops_the_start(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a file")
    sentence = rf"^log\.trackers: {name} could not be started: .*File exists"
    with pytest.raises(RecipeValueError, match=sentence):
        start((name,), tmp_path)


def test_a_failed_start_ends_what_was_started(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(RecipeValueError, match="tensorboard could not be started"):
        start(("mlflow", "tensorboard"), tmp_path)
    import mlflow

    assert mlflow.active_run() is None
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_a_server_that_is_away_stops_the_start(tmp_path: Path) -> None:
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"http://somebody:{SECRET}@127.0.0.1:9",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    with pytest.raises(RecipeValueError, match=r"mlflow could not be started: .*refused") as seen:
        start(("mlflow",), tmp_path)
    assert SECRET not in seen.value.message
    assert os.environ["MLFLOW_TRACKING_URI"].endswith("@127.0.0.1:9")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("first line\nsecond line", "first line"),
        ("", "OSError"),
        ("at https://me:hunter2@example.org/api", "at https://***@example.org/api"),
        (f"the key {SECRET} is refused", "the key *** is refused"),
    ],
)
def test_a_reason_is_one_line_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    require_installed("tensorboard")
    from accelerate import tracking

    def fail(self: Any) -> None:
        raise OSError(text)

    monkeypatch.setattr(tracking.TensorBoardTracker, "start", fail)
    os.environ["WANDB_API_KEY"] = SECRET
    with pytest.raises(RecipeValueError) as seen:
        start(("tensorboard",), tmp_path)
    assert seen.value.problem == f"tensorboard could not be started: {reason}"


def test_a_long_value_is_cut_for_mlflow(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    require_installed("mlflow")
    config = {"data.chat_template": "x" * 9000}
    Trackers(["mlflow"], tmp_path, "run-001", config, never_trouble).finish()
    _, written = read_mlflow(tmp_path / "mlflow")
    assert set(written["data.chat_template"]) == {"x"}
    assert "xxx" not in capfd.readouterr().err


def break_tracker(name: str, folder: Path) -> None:
    """Take its place away, or what writes for it."""
    if name == "wandb":
        # Its process holds its files open and would not notice.
        for child in psutil.Process().children():
            if "wandb-core" in child.name():
                child.kill()
                child.wait()
    else:
        shutil.rmtree(folder / name)
        (folder / name).write_text("a file")


# Two packages report from threads of theirs.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore:trackio :UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_fails_is_dropped_and_the_other_goes_on(tmp_path: Path, name: str) -> None:
    other = "mlflow" if name == "tensorboard" else "tensorboard"
    troubles: list[str] = []
    trackers = start((name, other), tmp_path, troubles.append)
    trackers.log({"loss": 1.0}, 1)
    break_tracker(name, tmp_path)
    step, deadline = 1, time.monotonic() + 20
    while not troubles and time.monotonic() < deadline:
        step += 1
        trackers.log({"loss": 1.0}, step)
        time.sleep(0.02)
    for later in range(step + 1, step + 4):
        trackers.log({"loss": 1.0}, later)
    trackers.finish()
    trackers.finish()
    (sentence,) = troubles
    assert sentence.startswith(f"log.trackers: {name} failed at step {step} and is told no more")
    assert "\n" not in sentence
    series, _ = READERS[other](tmp_path / other)
    assert list(series["loss"]) == list(range(1, step + 4))


def test_a_failure_at_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_installed("tensorboard", "mlflow")
    from accelerate import tracking

    def fail(self: Any) -> None:
        raise OSError(28, "No space left on device")

    troubles: list[str] = []
    trackers = start(("tensorboard", "mlflow"), tmp_path, troubles.append)
    monkeypatch.setattr(tracking.TensorBoardTracker, "finish", fail)
    log_run(trackers)
    (sentence,) = troubles
    assert sentence.startswith("log.trackers: tensorboard failed while it was ended, and may lack")
    assert sentence.endswith(": [Errno 28] No space left on device")
    assert_holds_run("mlflow", tmp_path / "mlflow")


FULL_DISK = """
    import os, resource, sys, time, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    from mltune_cli.training.trackers import Trackers
    import torch
    folder, troubles = Path(sys.argv[1]), []
    names = ["tensorboard", "mlflow", "trackio"]
    trackers = Trackers(names, folder, "run-001", {"a": 1}, troubles.append)
    assert not torch.distributed.is_initialized()
    assert os.environ["WORLD_SIZE"] == "2"
    trackers.log({"loss": 1.0}, 1)
    # No file may grow beyond what TensorBoard's and MLflow's hold in a few steps.
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
    for step in range(2, 150):
        trackers.log({"loss": 1.0, "learning_rate": 0.5}, step)
        time.sleep(0.01)
    trackers.finish()
    print(*sorted(troubles), sep="\\n")
"""


def test_a_full_disk_stops_no_training_and_a_launcher_is_not_joined(tmp_path: Path) -> None:
    """The variables say that a second process exists; waiting for it would take for ever."""
    require_installed("tensorboard", "mlflow", "trackio")
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), tmp_path / "trackers"],
        env=child_environment(
            WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1"
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["mlflow", "tensorboard", "trackio"]
    assert all("the training goes on without it" in line for line in lines)


IN_A_GROUP = """
    import os, socket, sys, time, warnings
    from pathlib import Path
    warnings.simplefilter("ignore")
    asked = []
    def look_up(host, *arguments, **options):
        asked.append(host)
        raise socket.gaierror(-2, "there is no network in this test")
    socket.getaddrinfo = look_up
    import torch
    import torch.distributed as dist
    from mltune_cli.training.determinism import settings, settle
    from mltune_cli.training.trackers import Trackers
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    settle(2)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank,
                            world_size=2)
    # The other process is inside a collective all the while, and takes part in nothing else.
    if rank == 0:
        def state():
            return (settings(), dist.get_world_size(), dist.get_rank(), dist.get_backend(),
                    os.sched_getaffinity(0), torch.get_num_interop_threads(),
                    {n: v for n, v in os.environ.items() if "RANK" in n or "SIZE" in n})
        before, group = state(), dist.group.WORLD
        trackers = Trackers(sys.argv[3:], folder / "trackers", "run-001", {"a": 1}, sys.exit)
        for step in (1, 2, 3):
            trackers.log({"loss": 1.0 / step}, step)
        assert state() == before
        trackers.finish()
        assert state() == before
        assert dist.group.WORLD is group
        time.sleep(0.5)  # for those who would ask from a thread of theirs
        assert asked == []
    total = torch.ones(3) * (rank + 1)
    dist.all_reduce(total)
    assert total.tolist() == [3.0, 3.0, 3.0]
    dist.destroy_process_group()
"""


def test_in_a_group_one_process_is_busy_and_nobody_outside_is_asked(tmp_path: Path) -> None:
    """Neither for telemetry nor for the user's name, even with tokens and remotes at hand."""
    require_installed(*NAMES)
    for name in ("PYTEST_CURRENT_TEST", "CI", "GITHUB_ACTIONS"):
        # MLflow's telemetry rests where it believes itself under test.
        os.environ.pop(name, None)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(IN_A_GROUP), str(rank), tmp_path, *NAMES],
            env=child_environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                ACCELERATE_CPU_AFFINITY="1", ACCELERATE_USE_CPU="1", HF_TOKEN="hf_" + SECRET,
                TRACKIO_SPACE_ID="somebody/dashboard", TRACKIO_BUCKET_ID="somebody/bucket",
                TRACKIO_SERVER_URL="http://example.org", TRACKIO_WEBHOOK_URL="http://example.org",
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    for name in NAMES:
        series, _ = READERS[name](tmp_path / "trackers" / name)
        assert list(series["loss"]) == [1, 2, 3]
